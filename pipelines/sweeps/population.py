"""Population based training (Jaderberg et al. 2017, arXiv 1711.09846), with reproducible trials.

All members train for `every` steps: a round. Then each of the worst continues from a better one: from its checkpoint, with its
values and slightly changed rates. A member's history is therefore one training with a schedule: its first values, and `changes` at
the steps where its rates changed. Each round of each member is a trial whose values are the schedule so far; a trial of the last
round is a full training, whose values can be written into params.yaml and give the same weights when trained from the start.

Trial `number` is member `number % size` in round `number // size`. What happens between two rounds is a function of the sweep's
seed, the number and the round before: Tune's own scheduler draws from Python's global generator and keeps its state in memory.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from components.training.randomness import stream_seed
from pipelines.sweeps.documents import value_at
from pipelines.sweeps.journal import Trial
from pipelines.sweeps.spaces import Distribution, Population, Space, configuration_key

TRIES = 20
DIGITS = 6
"""Significant digits of a changed rate, as one would write it in params.yaml."""


def rounds(population: Population, document: Mapping[str, Any]) -> int:
    """Return the number of rounds; the last may be shorter."""
    return math.ceil(value_at(document, population.full) / population.every)


def end_of_round(population: Population, size: int, number: int, document: Mapping[str, Any]) -> int | None:
    """Return the step at which trial `number` stops; None in the last round, which is trained to the end."""
    step = (number // size + 1) * population.every
    return step if step < value_at(document, population.full) else None


def next_round(
    space: Space, seed: int, number: int, size: int, known: Sequence[Trial]
) -> tuple[dict[str, Any], int] | None:
    """Return the values of trial `number`, and the number of the trial of the last round whose checkpoint it resumes from.

    `known` are all trials before, by number. Members of the last round without a value (they failed) rank last; None when all
    failed. A member is drawn again when another one of its round has the same values.
    """
    population = space.population
    assert population
    place = number // size * size
    step = number // size * population.every
    sign = 1 if population.mode == "max" else -1
    valued = (trial for trial in known[place - size : place] if step in trial.reports)
    ranked = sorted(valued, key=lambda trial: (-sign * trial.reports[step], trial.number))
    if not ranked:
        return None
    replaced = max(1, int(size * population.share))
    mine = known[number - size]
    if mine in ranked[: size - replaced]:
        return mine.values, mine.number
    taken = {trial.key for trial in known[place:]}
    draw = random.Random(stream_seed(seed, "population", number))
    for _ in range(TRIES):
        parent = draw.choice(ranked[:replaced])
        values = changed(space, population, parent.values, step, draw)
        if configuration_key(values) not in taken:
            break
    return values, parent.number


def changed(
    space: Space, population: Population, values: Mapping[str, Any], step: int, draw: random.Random
) -> dict[str, Any]:
    """Return `values` with each searched rate multiplied by one of `factors`, or resampled, from `step` on."""
    change: dict[str, Any] = {"step": step}
    for name in rates(space, population):
        distribution = space.parameters[f"{population.training}.{name}"]
        if draw.random() < population.resample:
            change[name] = _resampled(distribution, draw)
        else:
            change[name] = _perturbed(distribution, rate_of(population, values, name), draw.choice(population.factors))
    return {**values, population.changes: [*values[population.changes], change]}


def rates(space: Space, population: Population) -> list[str]:
    """Return the names of the searched parameters that may change in mid-training."""
    return [name for name in population.changeable if f"{population.training}.{name}" in space.parameters]


def rate_of(population: Population, values: Mapping[str, Any], name: str) -> float:
    """Return a rate after all changes so far."""
    later = (change[name] for change in reversed(values[population.changes]) if change.get(name) is not None)
    return float(next(later, values[f"{population.training}.{name}"]))


def _resampled(distribution: Distribution, draw: random.Random) -> float:
    if distribution.choice is not None:
        return float(draw.choice(distribution.choice))
    low, high = distribution.bounds or (0.0, 0.0)
    if distribution.loguniform:
        return _rounded(math.exp(draw.uniform(math.log(low), math.log(high))))
    return _rounded(draw.uniform(low, high))


def _perturbed(distribution: Distribution, value: float, factor: float) -> float:
    """Return `value` times `factor` within the bounds; for a choice, the neighbour on that side."""
    if distribution.choice is not None:
        choices = sorted(distribution.choice)
        nearest = min(range(len(choices)), key=lambda place: abs(choices[place] - value))
        return float(choices[min(max(nearest + (1 if factor > 1 else -1), 0), len(choices) - 1)])
    low, high = distribution.bounds or (0.0, 0.0)
    return _rounded(min(max(value * factor, low), high))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
