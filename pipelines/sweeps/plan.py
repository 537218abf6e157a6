"""The plan of a search space: which stages all trials share, and which a trial runs itself."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines import graph
from pipelines.graph import StageRun


@dataclass(frozen=True)
class SweepPlan:
    """Stages in the order in which they run.

    shared    independent of the searched parameters: run once, before the trials
    upstream  dependent on them: trials with the same values share a result, through the runner's fingerprints
    repeated  those that the space names, and those between them: run again for every seed
    """

    shared: tuple[StageRun, ...]
    upstream: tuple[StageRun, ...]
    repeated: tuple[StageRun, ...]

    @property
    def own(self) -> tuple[StageRun, ...]:
        """Stages that a trial runs itself."""
        return (*self.upstream, *self.repeated)

    @property
    def linked(self) -> list[str]:
        """Outputs of shared stages that a trial reads."""
        wanted = {path for run in self.own for path in run.inputs.values()}
        return sorted(path for run in self.shared for path in run.outputs.values() if path in wanted)

    @property
    def given(self) -> list[str]:
        """Inputs that no stage writes, such as data/raw."""
        makers = graph.producers()
        return sorted({path for run in (*self.shared, *self.own) for path in run.inputs.values() if path not in makers})


def make_plan(stages: Iterable[str], searched: Iterable[str]) -> SweepPlan:
    """Make the plan for a space that names `stages` and searches over `searched` (paths in params.yaml)."""
    named = {graph.find_default(stage).address for stage in stages}
    sections = {path.split(".")[0] for path in searched}
    makers = graph.producers()
    shared: list[StageRun] = []
    upstream: list[StageRun] = []
    repeated: list[StageRun] = []
    for run in graph.with_upstream(map(graph.find_default, named)):
        inputs = [makers[path] for path in run.inputs.values() if path in makers]
        if run.address in named or any(each in repeated for each in inputs):
            repeated.append(run)
        elif sections & set(run.stage.reads) or any(each in upstream for each in inputs):
            upstream.append(run)
        else:
            shared.append(run)
    return SweepPlan(tuple(shared), tuple(upstream), tuple(repeated))


def sections_read(runs: Iterable[StageRun], document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of params.yaml that any of `runs` depends on."""
    return {key: document[key] for key in sorted({key for run in runs for key in run.stage.reads})}
