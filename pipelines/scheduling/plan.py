"""The stage runs that a command is about, their order, and which of them come first: those with most work behind them.

Nothing is read or run here. `chosen_runs` has the meaning of DVC's targets and options; the edges are those of `pipelines.graph`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from components.errors import ParameterError
from pipelines.graph import StageRun, all_runs, all_stages, find_default, runs_of, with_upstream

Fits = Callable[[StageRun, Sequence[StageRun]], bool]
"""(a stage run, those that are running) -> whether it can start beside them."""


@dataclass(frozen=True)
class Plan:
    """Stage runs, each after what it reads, and the seconds that each is expected to take."""

    runs: Sequence[StageRun]
    expected: Callable[[StageRun], float] = field(default=lambda run: 1.0)

    def upstream(self, run: StageRun) -> list[StageRun]:
        """Return the runs of the plan whose outputs `run` reads itself."""
        return self._upstream[run.address]

    def downstream(self, run: StageRun) -> list[StageRun]:
        """Return the runs of the plan that need `run`, straight or through others, in the plan's order."""
        found = {run.address}
        for other in self.runs:
            if any(source.address in found for source in self.upstream(other)):
                found.add(other.address)
        return [other for other in self.runs if other.address in found - {run.address}]

    def ready(self, finished: Collection[str]) -> list[StageRun]:
        """Return the runs that are not among the `finished` addresses and whose inputs are, longest remaining path first."""
        waiting = [run for run in self.runs if run.address not in finished]
        ready = [run for run in waiting if all(source.address in finished for source in self.upstream(run))]
        return sorted(ready, key=self.remaining, reverse=True) if len(ready) > 1 else ready

    def remaining(self, run: StageRun) -> float:
        """Return the seconds of the longest path that begins with `run`."""
        return self._remaining[run.address][0]

    def longest_path(self) -> list[StageRun]:
        """Return the runs of the path that takes longest, which no number of places can shorten."""
        path = [max(self.runs, key=self.remaining)] if self.runs else []
        while path and (after := self._remaining[path[-1].address][1]):
            path.append(after)
        return path

    @cached_property
    def _upstream(self) -> Mapping[str, list[StageRun]]:
        made_by = {path: run for run in self.runs for path in run.all_outputs}
        found = {}
        for run in self.runs:
            sources = {made_by[path].address: made_by[path] for path in run.inputs.values() if path in made_by}
            found[run.address] = list(sources.values())
        return found

    @cached_property
    def _remaining(self) -> Mapping[str, tuple[float, StageRun | None]]:
        """By address the longest path from there, and the run that comes next on it."""
        longest: dict[str, tuple[float, StageRun | None]] = {}
        after: dict[str, tuple[float, StageRun | None]] = {}
        for run in reversed(self.runs):
            seconds, following = after.get(run.address, (0.0, None))
            longest[run.address] = (self.expected(run) + seconds, following)
            for source in self.upstream(run):
                if longest[run.address][0] > after.get(source.address, (-1.0, None))[0]:
                    after[source.address] = (longest[run.address][0], run)
        return longest


def chosen_runs(targets: Sequence[str], *, single_item: bool = False, downstream: bool = False) -> list[StageRun]:
    """Return what `dvc repro <targets>` is about: the named stages (all without a name) and what they need.

    A name without an arm means all its arms. `single_item`: the named ones alone; `downstream`: they and what needs them. Raises
    ParameterError for a name that does not exist.
    """
    named = _named(targets)
    if single_item:
        chosen = {run.address for run in named}
        return [run for run in all_runs() if run.address in chosen]
    if not downstream:
        return with_upstream(named)
    whole = Plan(all_runs())
    chosen = {other.address for run in named for other in (run, *whole.downstream(run))}
    return [run for run in whole.runs if run.address in chosen]


def _named(targets: Iterable[str]) -> list[StageRun]:
    stages = {stage.name: stage for stage in all_stages()}
    found: list[StageRun] = []
    for target in targets:
        name = target.removeprefix("dvc.yaml:")
        if name == "dvc.yaml":
            return all_runs()
        if ":" in name or "/" in name:
            raise ParameterError(f"{target}: only stages of dvc.yaml are run here: use `dvc repro {target}`")
        found += runs_of(stages[name]) if name in stages else [find_default(name)]
    return found or all_runs()


def expected_time(plan: Plan, fits: Fits) -> float:
    """Return the seconds until every run of the plan has ended, started as `ready` orders them wherever one fits.

    Raises ParameterError for a run that does not even fit alone.
    """
    now, finished, started = 0.0, set[str](), set[str]()
    running: list[tuple[float, StageRun]] = []
    while len(finished) < len(plan.runs):
        for run in plan.ready(finished):
            if run.address not in started and fits(run, [other for _, other in running]):
                running.append((now + plan.expected(run), run))
                started.add(run.address)
        if not running:
            raise ParameterError(f"{plan.ready(finished)[0].address}: fits in no place")
        now, ended = min(running, key=lambda one: one[0])
        running.remove((now, ended))
        finished.add(ended.address)
    return now
