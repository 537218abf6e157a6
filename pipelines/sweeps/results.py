"""The results of a sweep as one JSON document; docs/sweeps.md has its schema."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.sweeps.documents import value_at
from pipelines.sweeps.journal import BROKEN, COMPLETE, STOPPED, WAITING, Trial
from pipelines.sweeps.spaces import Objective, Space

SCHEMA = 1
LEVEL = 0.95


def mean_with_interval(values: Sequence[float]) -> dict[str, float]:
    """Return {"mean"}, with "low" and "high" from two values on: the Student t interval of the mean over seeds, at 95 %."""
    if not values:
        return {}
    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean}
    from scipy.stats import t

    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * (variance / len(values)) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def best_trial(trials: Sequence[Trial], objectives: Sequence[Objective]) -> Trial | None:
    """Return the finished trial with the best mean of the first objective, the earliest of equals."""
    finished = [trial for trial in trials if trial.state == COMPLETE]
    sign = 1 if objectives[0].mode == "max" else -1
    return max(finished, key=lambda trial: (sign * trial.means()[0], -trial.number), default=None)


def pareto_front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """Return the finished trials that no other dominates: none is as good in every objective's mean and better in one."""
    signs = [1 if objective.mode == "max" else -1 for objective in objectives]
    finished = [trial for trial in trials if trial.state == COMPLETE]
    scores = {trial.number: [s * v for s, v in zip(signs, trial.means(), strict=True)] for trial in finished}

    def dominated(mine: list[float]) -> bool:
        return any(other != mine and all(o >= m for o, m in zip(other, mine, strict=True)) for other in scores.values())

    return [trial for trial in finished if not dominated(scores[trial.number])]


def summary(
    identity: str,
    name: str,
    space: Space,
    document: Mapping[str, Any],
    trials: Sequence[Trial],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the document, as JSON values."""
    best = best_trial(trials, space.objectives)
    return {
        "schema": SCHEMA,
        "sweep": identity,
        "space": name,
        "about": space.about,
        **settings,
        "stages": space.stages,
        "parameters": [
            {"path": path, **each.model_dump(mode="json", exclude_defaults=True), "before": value_at(document, path)}
            for path, each in space.parameters.items()
        ],
        "objectives": [{"name": objective.name, **objective.model_dump()} for objective in space.objectives],
        "scheduler": {**space.scheduler.model_dump(), "steps": value_at(document, space.scheduler.full)}
        if space.scheduler
        else None,
        "counts": {state: sum(t.state == state for t in trials) for state in (COMPLETE, STOPPED, BROKEN, WAITING)},
        "seconds": sum(trial.seconds for trial in trials),
        "best": best.number if best else None,
        "pareto": [trial.number for trial in pareto_front(trials, space.objectives)],
        "trials": [_trial(trial, space) for trial in sorted(trials, key=lambda trial: trial.number)],
    }


def _trial(trial: Trial, space: Space) -> dict[str, Any]:
    pairs = zip(space.objectives, trial.objectives, strict=False)
    return {
        "number": trial.number,
        "key": trial.key,
        "state": trial.state,
        "values": trial.values,
        "objectives": {objective.name: {"values": values, **mean_with_interval(values)} for objective, values in pairs},
        "reports": sorted(trial.reports.items()),
        "seconds": trial.seconds,
        "stages": trial.stages,
        "run": trial.run,
        "origin": trial.origin,
        "error": trial.error,
    }
