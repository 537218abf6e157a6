"""Captions with false words, as a captioning model writes them: a wrong colour, a wrong garment, an invented bag.

Attributes are falsified first, and the caption is written from the falsified ones, so its grammar is that of true captions. Word
frequency must not reveal the false words, or a score that knows only which words are rare would seem to look at the picture. So
replacements are drawn with *balanced swaps*: with p(v) the frequency
of the true values of an attribute (per gender, as kinds of clothes depend on it), a value is replaced with the same
probability whatever it is, and the replacement matrix F(t, w) is symmetric with zero diagonal and row sums p,

    F(t, w) = d(t) d(w) for t != w,   sum_w F(t, w) = p(t)   =>   replacements are distributed as p too,

found by Sinkhorn scaling. It exists where no value is more frequent than all others together; `none` counts as a value
of `hat` and `bag`, so inventions and omissions balance as well.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from components.errors import ParameterError
from components.persons.drawn.captions import Caption, compose

NOISY_ATTRIBUTES = (
    *("hair_length", "hair_colour", "hat", "hat_colour", "upper_kind", "upper_colour", "upper_pattern"),
    *("lower_kind", "lower_colour", "lower_pattern", "shoe_kind", "shoe_colour", "bag", "bag_colour", "bag_side"),
)
"""Attributes that noise may falsify; gender, build, skin and view stay true."""


@dataclass(frozen=True)
class NoisyCaption:
    """A caption, and the positions in `text.split()` of its false words."""

    text: str
    wrong_words: tuple[int, ...]


class CaptionNoise:
    """Falsifies captions with the frequencies of `corpus` (for each picture, attribute -> value).

    `rate` is the probability that a stated attribute is false. An attribute with a single value within a gender stays true.
    """

    def __init__(self, corpus: Iterable[Mapping[str, str]], rate: float) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ParameterError(f"caption noise rate is {rate}; it is a probability, from 0 to 1")
        self.rate = rate
        counts: dict[tuple[str, str], Counter[str]] = {}
        for shown in corpus:
            for name in NOISY_ATTRIBUTES:
                if name in shown:
                    counts.setdefault((shown.get("gender", ""), name), Counter())[shown[name]] += 1
        self._marginals = {key: _frequencies(counter) for key, counter in counts.items()}
        self._weights = {
            key: dict(zip(p, _balance(np.array([*p.values()])), strict=True)) for key, p in self._marginals.items()
        }

    def falsify(self, shown: Mapping[str, str], rng: np.random.Generator) -> tuple[dict[str, str], frozenset[str]]:
        """Return `shown` with some values replaced, and the names of the attributes that are now false."""
        stated, false = dict(shown), set()
        for name in NOISY_ATTRIBUTES:
            if name in shown and rng.random() < self.rate:
                value = self._replacement(name, shown, rng)
                if value is not None:
                    stated[name] = value
                    false.add(name)
        for thing in ("hat", "bag"):
            if thing in false and shown[thing] == "none":
                false |= self._invent(thing, stated, rng)
            elif thing in false and stated[thing] == "none":
                for name in (f"{thing}_colour", f"{thing}_side"):
                    stated.pop(name, None)
            elif thing in false and thing == "bag":
                false |= self._update_side(stated, rng)
        return stated, frozenset(false)

    def corrupt(self, shown: Mapping[str, str], rng: np.random.Generator) -> NoisyCaption:
        """Write a long caption of `shown` in which each stated attribute is false with probability `rate`."""
        stated, false = self.falsify(shown, rng)
        return mark_false(compose(stated, int(rng.integers(2**62))), false)

    def _replacement(self, name: str, shown: Mapping[str, str], rng: np.random.Generator) -> str | None:
        weights = self._weights.get((shown.get("gender", ""), name), {})
        others = {value: weight for value, weight in weights.items() if value != shown[name] and weight > 0}
        return _draw(others, rng) if others else None

    def _invent(self, thing: str, stated: dict[str, str], rng: np.random.Generator) -> set[str]:
        """Add a colour to an invented hat or bag, as frequent as real ones; and a side to a carried bag."""
        marginal = self._marginals.get((stated.get("gender", ""), f"{thing}_colour"))
        if marginal is None:  # nobody of this gender has one
            stated[thing] = "none"
            return set()
        stated[f"{thing}_colour"] = _draw(marginal, rng)
        return {f"{thing}_colour"} | (self._update_side(stated, rng) if thing == "bag" else set())

    def _update_side(self, stated: dict[str, str], rng: np.random.Generator) -> set[str]:
        """Remove the side of a backpack; add one to a carried bag seen from the front or back."""
        if stated["bag"] == "backpack":
            stated.pop("bag_side", None)
        elif "bag_side" not in stated and stated.get("view") in ("front", "back"):
            stated["bag_side"] = ("left", "right")[int(rng.integers(2))]
            return {"bag_side"}
        return set()


def mark_false(caption: Caption, false: frozenset[str]) -> NoisyCaption:
    """Return the caption with the positions of all words that state an attribute in `false`."""
    wrong = tuple(i for i, word in enumerate(caption.words) if word.attribute in false)
    return NoisyCaption(caption.text, wrong)


def _frequencies(counter: Counter[str]) -> dict[str, float]:
    total = sum(counter.values())
    return {value: counter[value] / total for value in sorted(counter)}


def _balance(p: np.ndarray) -> np.ndarray:
    """d with d_i * sum_{j != i} d_j = p_i for all i; the nearest there is where some p_i > 1/2."""
    d = np.sqrt(p)
    for _ in range(500):
        rest = d.sum() - d
        d = np.sqrt(d * p / np.maximum(rest, 1e-9))  # damped: the plain iteration alternates
    return d


def _draw(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    values = list(weights)
    p = np.array([weights[value] for value in values])
    return values[int(rng.choice(len(values), p=p / p.sum()))]
