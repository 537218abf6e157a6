"""Breakdown of retrieval: the same metrics over groups of queries, with intervals.

On the drawn set everything about a query is known, so results can be grouped by what the picture shows (`by_attribute`), or the
people described again with more false words (`recaption`) and searched (`by_noise_level`). `mistaken_attributes` compares
misses with the pictures found instead. Intervals resample whole identities (`components.evaluation.intervals`), because the
captions of one person are not independent.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from components.errors import DataError
from components.evaluation.intervals import Interval, bootstrap_mean
from components.evaluation.retrieval import retrieval_results
from components.evaluation.retrieval_result import RetrievalResult
from components.persons.drawn.caption_noise import CaptionNoise, NoisyCaption
from components.training.randomness import numpy_generator


@dataclass(frozen=True)
class GroupMetrics:
    """Metrics of a group of queries in percent, without queries that have no match.

    Attributes:
        queries, identities: their numbers.
        metrics: R@1, R@5, R@10, mAP, mINP, tied_share.
        interval: of R@1; None for one identity, as nothing is known of others.
    """

    queries: int
    identities: int
    metrics: dict[str, float]
    interval: Interval | None

    def interval_as_dict(self) -> dict[str, float]:
        """Return {"mean"} of R@1, with "low" and "high" from two identities on, for JSON."""
        return self.interval.as_dict() if self.interval else {"mean": self.metrics["R@1"]}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = {"queries": self.queries, "identities": self.identities}
        return {**counts, **self.metrics, "R@1_interval": self.interval_as_dict()}


def by_group(
    results: RetrievalResult,
    groups: Sequence[Hashable],
    identities: Sequence[int],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[Any, GroupMetrics]:
    """Return group -> metrics of its queries, in order of appearance, without the group None and groups without any match.

    groups and identities: (Q,), in the order of `results`.

    Raises:
        DataError: the lengths differ.
    """
    if not len(groups) == len(identities) == len(results.valid):
        raise DataError(
            f"breakdown: {len(results.valid)} queries, {len(groups)} groups and {len(identities)} identities; give one "
            "of each per query"
        )
    members: dict[Hashable, list[int]] = {}
    for query, (group, valid) in enumerate(zip(groups, results.valid.tolist(), strict=True)):
        if group is not None and valid:
            members.setdefault(group, []).append(query)
    return {
        group: _group_metrics(results, rows, [identities[row] for row in rows], resamples, seed)
        for group, rows in members.items()
    }


def by_attribute(
    results: RetrievalResult,
    attributes: Sequence[Mapping[str, str]],
    identities: Sequence[int],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, GroupMetrics]]:
    """Return attribute -> value -> metrics of the queries whose picture shows it, sorted by name.

    attributes (Q,): what each query's picture shows. A query counts once for every attribute that applies to it.
    """
    found = {}
    for name in sorted({name for shown in attributes for name in shown}):
        groups = [shown.get(name) for shown in attributes]
        parts = by_group(results, groups, identities, resamples=resamples, seed=seed)
        found[name] = dict(sorted(parts.items()))
    return found


def recaption(
    shown: Sequence[Mapping[str, str]], corpus: Sequence[Mapping[str, str]], rate: float, seed: int
) -> list[NoisyCaption]:
    """Write a new long caption for each of `shown`, in which each stated attribute is false with probability `rate`.

    corpus: what the pictures of the training split show; false values have its frequencies. With the same seed, caption i takes the
    same random numbers at every rate.

    Raises:
        ParameterError: `rate` outside [0, 1].
    """
    noise = CaptionNoise(corpus, rate)
    return [noise.corrupt(picture, numpy_generator(seed, "noisy query", i)) for i, picture in enumerate(shown)]


def by_noise_level(
    rates: Sequence[float],
    shown: Sequence[Mapping[str, str]],
    corpus: Sequence[Mapping[str, str]],
    embed: Callable[[Sequence[str]], Tensor],
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[float, GroupMetrics]:
    """Return rate -> metrics, with captions of the same pictures that are false at that rate (`recaption`).

    shown (Q,): what the queries' pictures show; embed: captions -> (Q, D); gallery (G, D); query_ids (Q,), gallery_ids (G,).
    """
    parts = {}
    for rate in rates:
        captions = [caption.text for caption in recaption(shown, corpus, rate, seed)]
        results = retrieval_results(embed(captions), gallery, query_ids, gallery_ids)
        everybody = by_group(results, ["all"] * len(shown), query_ids.tolist(), resamples=resamples, seed=seed)
        if "all" not in everybody:
            raise DataError("breakdown: no query has a picture of its identity in the gallery")
        parts[rate] = everybody["all"]
    return parts


@dataclass(frozen=True)
class Mistaken:
    """How often the picture ranked first in a miss shows another value of an attribute than the query.

    Attributes:
        misses: number of misses whose query shows the attribute.
        share: percent of them with another value.
        chance: the same for a random picture of the gallery.
    """

    misses: int
    share: float
    chance: float

    def as_dict(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return {"misses": self.misses, "share": self.share, "chance": self.chance}


def mistaken_attributes(
    shown: Sequence[Mapping[str, str]], found: Sequence[Mapping[str, str]], gallery: Sequence[Mapping[str, str]]
) -> dict[str, Mistaken]:
    """Return attribute -> how often it differs between the query and the picture ranked first, sorted by name.

    shown and found (M,): what the query's picture and the picture ranked first show, for each miss; gallery (G,): what every
    picture shows. A picture without the attribute counts as another value. The model reads an attribute whose share is far below
    chance.

    Raises:
        DataError: the lengths differ, or no gallery.
    """
    if len(shown) != len(found) or not gallery:
        raise DataError(
            f"breakdown: {len(shown)} misses, {len(found)} found pictures, {len(gallery)} in the gallery; give one picture "
            "found for each miss, and the gallery"
        )
    mistaken = {}
    for name in sorted({name for picture in shown for name in picture}):
        asked = [i for i, picture in enumerate(shown) if name in picture]
        counts = Counter(picture.get(name) for picture in gallery)
        wrong = sum(found[i].get(name) != shown[i][name] for i in asked)
        random = sum(1 - counts[shown[i][name]] / len(gallery) for i in asked)
        mistaken[name] = Mistaken(len(asked), 100 * wrong / len(asked), 100 * random / len(asked))
    return mistaken


def _group_metrics(
    results: RetrievalResult, rows: list[int], identities: list[int], resamples: int, seed: int
) -> GroupMetrics:
    chosen = results.rows(rows)
    metrics = chosen.metrics()
    counts = ("queries", "queries_without_match")
    several = len(set(identities)) > 1
    hits = 100 * chosen.hits(1).numpy()
    return GroupMetrics(
        queries=len(rows),
        identities=len(set(identities)),
        metrics={name: value for name, value in metrics.items() if name not in counts},
        interval=bootstrap_mean(hits, units=identities, resamples=resamples, seed=seed) if several else None,
    )
