"""The console: tables in which nothing is cut, in 80 columns and in a pipe."""

import os
from typing import Any

from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 10_000
"""Letters in a line of a file or a pipe, where no terminal says how many fit."""
TEXT_WIDTH = 16
"""Letters to which a column of text may shrink."""


class TableConsole(Console):
    """A console that prints tables whole.

    Columns aligned to the right hold numbers, which are never broken over lines; text is folded. Where even that does not fit, the
    table is wider than the terminal, which wraps its lines; rich alone would cut the cells.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not self.is_terminal and "width" not in options and "COLUMNS" not in os.environ:
            self.width = PIPE_WIDTH

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, tables at least as wide as they need."""
        usual = self.width
        needed = max((self._narrowest(each) for each in objects if isinstance(each, Table)), default=0)
        if needed <= usual:
            super().print(*objects, **options)
            return
        self.width = needed
        super().print(*objects, **options)
        self.width = usual

    def _narrowest(self, table: Table) -> int:
        """Set how the columns of `table` behave, and return the width that it needs at least."""
        width = 1 + 3 * len(table.columns)  # borders and padding
        for column in table.columns:
            if column.justify == "right":
                column.no_wrap = True
            elif not column.no_wrap:
                column.overflow = "fold"
            longest = max(self.measure(cell).maximum for cell in (column.header, *column.cells))
            width += longest if column.no_wrap else min(longest, TEXT_WIDTH)
        return width
