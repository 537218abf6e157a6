"""Percentile bootstrap intervals of means, resampled by independent units.

Pictures of one prompt, or queries of one person, are not independent observations. Resampling whole prompts or identities keeps
that dependence inside the units (cluster bootstrap; Davison & Hinkley 1997, section 3.8).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.errors import ParameterError
from components.training.randomness import numpy_generator

_CHUNK = 4_000_000  # resampled values in memory at once


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return {"mean", "low", "high"}, for JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def bootstrap_mean(
    values: ArrayLike,
    *,
    units: Sequence[Any] | NDArray[Any] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean of `values` (N,) with a percentile interval at `level`; NaN values are left out.

    `units` (N,): the independent unit of each value, by default its own. The interval is taken from the ratio of sums over
    resampled units, so that units of unequal size have the weight they have in the mean. Raises `ParameterError` for no values, or
    settings out of range.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ParameterError(f"bootstrap: level {level} must lie in (0, 1) and resamples {resamples} be at least 1")
    sums, counts = _unit_sums(np.asarray(values, dtype=np.float64), units)
    means = _resampled_means(sums, counts, resamples, numpy_generator(seed, "bootstrap"))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def bootstrap_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    units: Sequence[Any] | NDArray[Any] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the mean of `first - second` with its interval, for paired measurements (N,).

    A pair with a NaN on either side is left out. Raises `ParameterError` when the lengths differ.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ParameterError(f"bootstrap: {a.shape} and {b.shape} values cannot be paired")
    return bootstrap_mean(a - b, units=units, level=level, resamples=resamples, seed=seed)


def bootstrap_crossed(values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of `values` (S, P), S repetitions (training seeds) of the same P items (prompts); NaN is left out.

    Repetitions and items are resampled independently and crossed, so that the interval covers other seeds as well as other prompts
    (the pigeonhole bootstrap; Owen 2007, Annals of Applied Statistics 1(2)). It is too wide by the noise of single values, and too
    narrow where a few repetitions differ by more than items do: five cover 84 % in place of 95 % where nothing else varies. With
    one repetition it is the bootstrap over items. For paired arms pass their differences.

    Raises `ParameterError` for no values, another shape, or settings out of range.
    """
    if not 0 < level < 1 or resamples < 1:
        raise ParameterError(f"bootstrap: level {level} must lie in (0, 1) and resamples {resamples} be at least 1")
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2:
        raise ParameterError(f"bootstrap: values of shape {table.shape}; give repetitions x items, (S, P)")
    kept = ~np.isnan(table)
    if not kept.any():
        raise ParameterError("bootstrap: no values (all of them are NaN or there are none)")
    filled = np.where(kept, table, 0.0)
    random = numpy_generator(seed, "crossed bootstrap")
    repetitions, items = (random.multinomial(n, [1 / n] * n, size=resamples) for n in table.shape)  # (R, S), (R, P)
    sums = ((repetitions @ filled) * items).sum(1)
    counts = ((repetitions @ kept.astype(np.float64)) * items).sum(1)
    means = sums[counts > 0] / counts[counts > 0]  # a draw may hit nothing but NaN
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(filled.sum() / kept.sum()), float(low), float(high))


def _unit_sums(
    values: NDArray[np.float64], units: Sequence[Any] | NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each unit, each (U,)."""
    if values.ndim != 1:
        raise ParameterError(f"bootstrap: values of shape {values.shape}; give one number per item, (N,)")
    if units is not None and len(units) != len(values):
        raise ParameterError(f"bootstrap: {len(values)} values but {len(units)} units; give one unit per value")
    kept = ~np.isnan(values)
    if not kept.any():
        raise ParameterError("bootstrap: no values (all of them are NaN or there are none)")
    values = values[kept]
    if units is None:
        return values, np.ones_like(values)
    _, unit_of = np.unique(np.asarray(units)[kept], return_inverse=True)
    counts: NDArray[np.float64] = np.bincount(unit_of).astype(np.float64)
    sums: NDArray[np.float64] = np.bincount(unit_of, weights=values).astype(np.float64)
    return sums, counts


def _resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Means (R,) of `resamples` draws of U units with replacement."""
    number = len(sums)
    rows = max(1, _CHUNK // number)
    means = []
    for start in range(0, resamples, rows):
        chosen = random.integers(number, size=(min(rows, resamples - start), number))
        means.append(sums[chosen].sum(1) / counts[chosen].sum(1))
    return np.concatenate(means)
