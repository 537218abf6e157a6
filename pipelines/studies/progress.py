"""Progress of a running study: a bar on a terminal, otherwise one line per cell."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class StudyProgress:
    """Displays the progress of `total` cells, measured one after another or several at once; a context manager."""

    def __init__(self, total: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._total = total
        self._ended = 0
        self._started: dict[str, float] = {}
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "StudyProgress":
        self._bar.start()
        return self

    def __exit__(self, *of_error: object) -> None:
        self._bar.stop()

    def begin(self, key: str) -> None:
        """Show that a cell is being measured."""
        self._started[key] = time.monotonic()
        self._bar.update(self._task, description=key)

    def done(self, key: str, result: Mapping[str, Any]) -> None:
        """Count a measured cell, with the numbers of its result."""
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in result.items() if isinstance(value, int | float))
        seconds = time.monotonic() - self._started.pop(key)
        self._end()
        if not self._console.is_terminal:
            self._print(f"[{self._ended}/{self._total}] {key}: {numbers} ({seconds:.1f} s)")

    def failed(self, key: str, reason: str) -> None:
        """Count a cell that failed."""
        self._started.pop(key, None)
        self._end()
        self._print(f"[{self._ended}/{self._total}] {key}: failed: {reason}")

    def _end(self) -> None:
        self._ended += 1
        self._bar.advance(self._task)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False)
