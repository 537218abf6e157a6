"""Captions that say something false, as a captioning model would: a wrong colour, a wrong garment, an invented bag.

What is false is decided on attributes, and the sentence is written from the falsified ones, so the grammar is the same
as that of true captions. Word frequency must not give the false words away: a score that only knows which words are
rare would look as if it had seen the picture. So replacements are drawn with *balanced swaps*: with p(v) the frequency
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
"""The attributes noise may falsify; gender, build, skin and view stay true."""


@dataclass(frozen=True)
class NoisyCaption:
    """`text`, and the positions in `text.split()` of the words that state something false."""

    text: str
    wrong_words: tuple[int, ...]


class CaptionNoise:
    """Falsifies captions of a corpus whose pictures show `corpus` (an iterable of attribute -> value).

    `rate` is the probability that a stated attribute is false. An attribute that a gender shows with one value only
    is left alone.
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
        """`shown` with some values replaced, and the names of the attributes that are now false."""
        told, false = dict(shown), set()
        for name in NOISY_ATTRIBUTES:
            if name in shown and rng.random() < self.rate:
                value = self._replacement(name, shown, rng)
                if value is not None:
                    told[name] = value
                    false.add(name)
        for thing in ("hat", "bag"):
            if thing in false and shown[thing] == "none":
                false |= self._invent(thing, told, rng)
            elif thing in false and told[thing] == "none":
                for name in (f"{thing}_colour", f"{thing}_side"):
                    told.pop(name, None)
            elif thing in false and thing == "bag":
                false |= self._settle_side(told, rng)
        return told, frozenset(false)

    def corrupt(self, shown: Mapping[str, str], rng: np.random.Generator) -> NoisyCaption:
        """A long caption of `shown` in which each stated attribute is false with probability `rate`."""
        told, false = self.falsify(shown, rng)
        return mark(compose(told, int(rng.integers(2**62))), false)

    def _replacement(self, name: str, shown: Mapping[str, str], rng: np.random.Generator) -> str | None:
        weights = self._weights.get((shown.get("gender", ""), name), {})
        others = {value: weight for value, weight in weights.items() if value != shown[name] and weight > 0}
        return _draw(others, rng) if others else None

    def _invent(self, thing: str, told: dict[str, str], rng: np.random.Generator) -> set[str]:
        """Give an invented hat or bag a colour, as frequent as real ones; a carried bag may get a side."""
        marginal = self._marginals.get((told.get("gender", ""), f"{thing}_colour"))
        if marginal is None:  # nobody of this gender has one: nothing to invent it from
            told[thing] = "none"
            return set()
        told[f"{thing}_colour"] = _draw(marginal, rng)
        return {f"{thing}_colour"} | (self._settle_side(told, rng) if thing == "bag" else set())

    def _settle_side(self, told: dict[str, str], rng: np.random.Generator) -> set[str]:
        """A backpack has no side; a carried bag seen from the front or back has one."""
        if told["bag"] == "backpack":
            told.pop("bag_side", None)
        elif "bag_side" not in told and told.get("view") in ("front", "back"):
            told["bag_side"] = ("left", "right")[int(rng.integers(2))]
            return {"bag_side"}
        return set()


def mark(caption: Caption, false: frozenset[str]) -> NoisyCaption:
    """The caption with the positions of all words that state an attribute in `false`."""
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
