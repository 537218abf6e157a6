"""Tables of numbers."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table


def number_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers, aligned to the right."""
    table = Table(title=title, title_justify="left", caption=None if rows else "none", caption_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(escape(heading), justify="right" if place else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
