"""Batches of people drawn afresh for the probe."""

from collections.abc import Callable

from torch import Tensor

from components.evaluation.probe.model import MISSING, AttributeProbe
from components.persons.drawn.fresh import FreshPeople, stacked
from components.training.numbered import OncePerSample
from components.training.randomness import rank_part


def fresh_labelled(
    probe: AttributeProbe, people: FreshPeople, training: OncePerSample, *, rank: int = 0, world_size: int = 1
) -> Callable[[int], dict[str, Tensor]]:
    """Return batches for `ProbeTask` by step, each picture of which is drawn for this step.

    Every rank draws the whole batch, as the loss needs the number of labels of all ranks.
    """

    def batch(step: int) -> dict[str, Tensor]:
        drawn = people.people(training.numbers(step))
        labels = probe.labels([person.shown for person in drawn])
        return {
            "pixels": rank_part(stacked(drawn), rank, world_size),
            "labels": rank_part(labels, rank, world_size),
            "stated": (labels != MISSING).sum(0),
        }

    return batch
