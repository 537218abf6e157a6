"""What a person sees of stages that run at once.

A line with the time when a stage starts and ends. Meanwhile on a terminal a live table, elsewhere (a file, a pipe, CI) a line every
half minute; in the end a table of what has failed, was not run, was found and was done.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipelines.errors import DATA, DONE, OTHER, PARAMETERS
from pipelines.graph import StageRun
from pipelines.redaction import without_secrets
from pipelines.scheduling.needs import Need
from pipelines.scheduling.parts import Result, State, Summary
from pipelines.scheduling.progress import Steps
from pipelines.terminal.console import TableConsole

REFRESH_SECONDS = 0.5
HEARTBEAT_SECONDS = 30.0
MAIN_PHASE = "main"
"""The phase of a stage that has no others."""
TAIL_LINES = 15
"""Lines of a stage's log that are shown when it has failed."""
REASON_LETTERS = 60
"""Letters of a reason in the table; the line of the stage's end has it whole."""
NEXT = {
    DONE: "",
    OTHER: "; mend what failed, then the same command goes on from here",
    PARAMETERS: "; correct what is named above, then the same command goes on from here",
    DATA: "; put the data right that is named above, then the same command goes on from here",
}
"""What to do, by the exit code; of any other, the cause may have passed."""
RUN_AGAIN = "; the same command goes on from here"
STYLES = {
    State.DONE: "green",
    State.FOUND: "green",
    State.FAILED: "red",
    State.STOPPED: "yellow",
    State.NOT_RUN: "yellow",
}


class Progress(Protocol):
    def read(self) -> Steps | None: ...


class ShownStage(Protocol):
    """What of a running stage's process is shown."""

    @property
    def log(self) -> Path: ...

    @property
    def pid(self) -> int: ...

    def tail(self, lines: int) -> list[str]: ...


@dataclass
class _Row:
    run: StageRun
    stage: ShownStage
    progress: Progress
    since: float


class LiveView:
    """Shows the stage runs of a plan. `progress` follows a run whose runner has this process id, `expected` gives its seconds."""

    def __init__(
        self,
        runs: Sequence[StageRun],
        progress: Callable[[StageRun, int], Progress],
        expected: Callable[[StageRun], float | None],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runs = runs
        self.console = console or TableConsole(file=sys.stdout, highlight=False)
        self._progress, self._expected, self._clock = progress, expected, clock
        self._rows: dict[str, _Row] = {}
        self._results: dict[str, Result] = {}
        self._began = self._shown = clock()
        self._live: Live | None = None
        self._logs: Path | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:  # refreshed by `waiting`: no thread
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def started(self, run: StageRun, stage: ShownStage) -> None:
        self._rows[run.address] = _Row(run, stage, self._progress(run, stage.pid), self._clock())
        expected = self._expected(run)
        about = f", about {duration(expected)}" if expected else ""
        if stage.log.parent != self._logs:
            self._logs = stage.log.parent
            self._line(f"what stages print goes to {_from_here(self._logs)}")
        self._line(f"{run.address} started{about}")

    def ended(self, run: StageRun, result: Result) -> None:
        row = self._rows.pop(run.address, None)
        again = run.address in self._results
        self._results[run.address] = result
        if result.state is State.NOT_RUN or _is_unchanged(result):
            return  # the table in the end has it
        after = f" after {duration(result.seconds)}" if row else ""
        reason = f": {without_secrets(result.reason)}" if result.reason else ""
        self._line(f"{run.address} {result.state}{after}{reason}", STYLES[result.state])
        if result.state is State.FAILED and row and not again:
            self._show_log(row.stage, result.reason)

    def _show_log(self, stage: ShownStage, printed: str) -> None:
        """Print the end of a stage's log, without the error that is `printed` already."""
        lines = [line for line in stage.tail(TAIL_LINES) if line.removeprefix("error: ").strip() != printed]
        if lines:
            self.console.print(f"    the end of {_from_here(stage.log)}:", soft_wrap=True)
        for line in lines:
            self.console.print(Text(f"    {without_secrets(line)}", style="dim"), soft_wrap=True)

    def say(self, text: str) -> None:
        self._line(text)

    def waiting(self) -> None:
        """Refresh what is shown, if it is time for that."""
        now = self._clock()
        if self._live:
            if now - self._shown >= REFRESH_SECONDS:
                self._shown = now
                self._live.update(self._table(now), refresh=True)
        elif now - self._shown >= HEARTBEAT_SECONDS:
            self._line(
                "; ".join(
                    f"{row.run.address} {', '.join(filter(None, self._cells(row, now)))}" for row in self._rows.values()
                )
            )

    def summarise(self, summary: Summary) -> None:
        """Print how the stages have ended, failures first, as a table; those that were up to date are counted."""
        results = [(run, summary.results[run.address]) for run in self.runs]
        shown = [(run, result) for run, result in results if not _is_unchanged(result)]
        unchanged = len(results) - len(shown)
        if not shown:
            self.console.print(f"{unchanged} stage{'' if unchanged == 1 else 's'} up to date")
            return
        self.console.print(_ends(shown))
        states = [result.state for _, result in shown]
        counts = [f"{states.count(state)} {state}" for state in State if state in states]
        counts += [f"{unchanged} unchanged"] if unchanged else []
        took = duration(self._clock() - self._began)
        self.console.print(f"{', '.join(counts)} in {took}{NEXT.get(summary.exit_code, RUN_AGAIN)}", soft_wrap=True)

    def _line(self, text: str, style: str = "") -> None:
        """Print a line with the time, above the live table."""
        self._shown = self._clock()
        self.console.print(Text.assemble((time.strftime("%H:%M:%S "), "dim"), (text, style)), soft_wrap=True)
        if self._live:
            self._live.update(self._table(self._shown), refresh=True)
        else:
            self.console.file.flush()

    def _cells(self, row: _Row, now: float) -> tuple[str, str, str, str]:
        """Return time so far, step, rate and time left of a running stage, "" where there is none."""
        gone = now - row.since
        steps = row.progress.read()
        expected = self._expected(row.run)
        if steps is None:
            left = max(0.0, expected - gone) if expected else None
            return duration(gone), "", "", f"about {duration(left)} left" if left else ""
        phase = "" if steps.phase == MAIN_PHASE else f"{steps.phase}: "
        total = f" of {steps.total}" if steps.total else ""
        rate = f"{steps.rate:.3g}/s" if steps.rate else ""
        return (
            duration(gone),
            f"{phase}step {steps.step}{total}",
            rate,
            f"{duration(steps.left)} left" if steps.left else "",
        )

    def _table(self, now: float) -> Group:
        """The running stages, one row each, and below them how many stages stand how, with their names."""
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for row in self._rows.values():
            gone, *rest = self._cells(row, now)
            table.add_row(Text(row.run.address, "bold"), Text("running", "cyan"), gone, *rest)
        lines = [self._names(state) for state in (State.FAILED, State.NOT_RUN, State.WAITING, State.FOUND, State.DONE)]
        return Group(table, *(line for line in lines if line))

    def _names(self, state: State) -> Text | None:
        if state is State.WAITING:
            names = [
                run.address for run in self.runs if run.address not in self._results and run.address not in self._rows
            ]
        else:
            names = [address for address, result in self._results.items() if result.state is state]
        line = Text(
            f"{len(names)} {state}: {', '.join(names)}", STYLES.get(state, "dim"), no_wrap=True, overflow="ellipsis"
        )
        return line if names else None


def _ends(shown: Sequence[tuple[StageRun, Result]]) -> Table:
    """Return a row per run, failures first; a column for reasons where there is one."""
    with_reasons = any(result.reason for _, result in shown)
    table = Table()
    for heading in ("stage", "result", "time", *(["why"] if with_reasons else [])):
        table.add_column(heading, justify="right" if heading == "time" else "left")
    for state in (State.FAILED, State.STOPPED, State.NOT_RUN, State.FOUND, State.DONE):
        for run, result in shown:
            if result.state is state:
                seconds = duration(result.seconds) if result.seconds >= 1 else ""
                why = [escape(_short(without_secrets(result.reason)))] if with_reasons else []
                table.add_row(escape(run.address), Text(state, STYLES[state]), seconds, *why)
    return table


def _short(text: str) -> str:
    return text if len(text) <= REASON_LETTERS else f"{text[: REASON_LETTERS - 3]}..."


def duration(seconds: float) -> str:
    """Return "0:07", "12:03" or "1:02:03"."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _from_here(path: Path) -> Path:
    """Return the path from the current folder, if it is below that."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _is_unchanged(result: Result) -> bool:
    return result.state is State.FOUND and result.reason == Need.UNCHANGED
