"""Progress of a running sweep: a table on a terminal, otherwise a line when a trial starts and when it ends."""

import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.sweeps.journal import COMPLETE, WAITING, Trial
from pipelines.sweeps.results import best_trial, pareto_front
from pipelines.sweeps.spaces import Space

REFRESH = 1.0


class SweepProgress:
    """Displays the trials of a sweep; a context manager."""

    def __init__(
        self,
        space: Space,
        samples: int,
        workers: int,
        trials: Mapping[int, Trial],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._space = space
        self._samples = samples
        self._workers = workers
        self._trials = dict(trials)
        self._running: dict[int, tuple[float, str]] = {}
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._clock = clock
        self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=REFRESH, transient=True)

    def __enter__(self) -> "SweepProgress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *of_error: object) -> None:
        self._live.stop()

    def started(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        self._running[trial.number] = (self._clock(), "")
        self._line(f"trial {trial.number}: {_words(trial.values)}")

    def reported(self, trial: Trial, step: int, value: float) -> None:
        begun, _ = self._running.get(trial.number, (self._clock(), ""))
        self._running[trial.number] = (begun, f"step {step}: {value:.4g}")

    def ended(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        self._running.pop(trial.number, None)
        self._line(f"trial {trial.number}: {self.outcome(trial)} ({trial.seconds:.1f} s); {self.summary()}")

    def paused(self, trial: Trial) -> None:
        self._running.pop(trial.number, None)
        self._line(f"trial {trial.number}: paused; the same command resumes it")

    def lost(self, trial: Trial, reason: str) -> None:
        self._running.pop(trial.number, None)
        self._line(f"trial {trial.number}: broke off ({reason}); it resumes from its checkpoint")

    def print(self, line: str) -> None:
        self._console.print(line, markup=False)

    def outcome(self, trial: Trial) -> str:
        """Return a trial's outcome in words: its objectives, the step at which it was stopped, or its error."""
        if trial.state == COMPLETE:
            pairs = zip(self._space.objectives, trial.means(), strict=True)
            return ", ".join(f"{objective.metric} {value:.4g}" for objective, value in pairs)
        return f"{trial.state}: {trial.error}" if trial.error else f"{trial.state} at step {trial.steps}"

    def summary(self) -> str:
        """Return in words how many trials have ended, the best so far, and the time left."""
        ended = [trial for trial in self._trials.values() if trial.state != WAITING]
        parts = [f"{len(ended)}/{self._samples}"]
        best = best_trial(ended, self._space.objectives)
        if best and len(self._space.objectives) == 1:
            parts.append(f"best {best.means()[0]:.4g} (trial {best.number})")
        elif best:
            front = pareto_front(ended, self._space.objectives)
            parts.append(f"Pareto front {', '.join(str(trial.number) for trial in front)}")
        left = self._samples - len(ended)
        if ended and left > 0:
            mean = sum(trial.seconds for trial in ended) / len(ended)
            parts.append(f"about {_duration(mean * left / self._workers)} left")
        return ", ".join(parts)

    def render(self) -> Group:
        """Return the table of running trials below the summary."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("trial", "for", "at", "values"):
            table.add_column(heading, style="dim" if heading == "values" else "")
        for number, (begun, at) in sorted(self._running.items()):
            seconds = _duration(self._clock() - begun)
            table.add_row(str(number), seconds, at, Text(_words(self._trials[number].values)))
        return Group(Text(self.summary(), style="bold"), table)

    def _line(self, text: str) -> None:
        """Print a line; on a terminal only how a trial ended, which the table does not show."""
        if not self._console.is_terminal or "; " in text:
            self.print(text)


def print_results(trials: Sequence[Trial], space: Space, console: Console) -> None:
    """Print the table of finished trials, the best first."""
    sign = 1 if space.objectives[0].mode == "max" else -1
    done = sorted((t for t in trials if t.state == COMPLETE), key=lambda t: (-sign * t.means()[0], t.number))
    front = {trial.number for trial in pareto_front(trials, space.objectives)}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("trial", *(objective.metric for objective in space.objectives), "run", "values"):
        table.add_column(heading, no_wrap=heading != "values")
    for trial in done[:10]:
        mark = "*" if len(space.objectives) > 1 and trial.number in front else ""
        means = [f"{mean:.4g}" for mean in trial.means()]
        table.add_row(f"{trial.number}{mark}", *means, trial.run or "", _words(trial.values))
    console.print(table)


def _words(values: Mapping[str, object]) -> str:
    return ", ".join(f"{path.split('.')[-1]} {value}" for path, value in values.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
