"""The attributes of the drawn people, and sampling of identities.

An identity is one combination of attributes. `ATTRIBUTES` lists every attribute with all values a *picture* can show;
an attribute probe classifies exactly these. `view` belongs to a picture, not to an identity. Attributes that do not apply
(the colour of an absent hat) are not in the dictionary, so two identities never differ in something that no picture can show.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from components.errors import ParameterError

Attributes = dict[str, str]

COLOURS = ("black", "white", "gray", "blue", "red", "green", "yellow", "brown", "pink", "purple")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "gender": ("man", "woman"),
    "build": ("slim", "medium", "heavy"),
    "skin": ("pale", "tan", "dark"),
    "hair_length": ("short", "medium", "long"),
    "hair_colour": ("black", "brown", "blond", "ginger", "silver"),
    "hat": ("none", "cap", "beanie", "sunhat"),
    "hat_colour": COLOURS,
    "upper_kind": ("shirt", "sweater", "hoodie", "jacket", "coat"),
    "upper_colour": COLOURS,
    "upper_pattern": ("plain", "striped", "checked", "dotted"),
    "lower_kind": ("trousers", "shorts", "skirt"),
    "lower_colour": COLOURS,
    "lower_pattern": ("plain", "striped", "checked"),
    "shoe_kind": ("sneakers", "boots", "sandals"),
    "shoe_colour": ("black", "white", "red", "blue", "brown", "yellow"),
    "bag": ("none", "backpack", "handbag", "satchel"),
    "bag_colour": COLOURS,
    "bag_side": ("left", "right"),
    "view": ("front", "back", "left", "right"),
}
"""Attribute -> values. In a picture, `bag_side` and the views `left` and `right` are the viewer's left and right; in an identity,
`bag_side` is the wearer's."""

_SIDES = {"left": "right", "right": "left"}
MIRRORED: dict[str, dict[str, str]] = {"view": _SIDES, "bag_side": _SIDES}
"""The values that change when a picture is flipped left to right."""

IDENTITY_ATTRIBUTES: tuple[str, ...] = tuple(name for name in ATTRIBUTES if name != "view")

_COLOUR_WEIGHTS = (0.16, 0.14, 0.11, 0.13, 0.12, 0.08, 0.07, 0.07, 0.06, 0.06)

# No value of a swappable attribute is more frequent than 1/2 within a gender: only then can caption noise swap values
# so that wrong and right words are equally frequent (see caption_noise.py).
_WEIGHTS: dict[str, tuple[float, ...]] = {
    "gender": (0.5, 0.5),
    "build": (0.35, 0.4, 0.25),
    "skin": (0.4, 0.3, 0.3),
    "hair_colour": (0.32, 0.28, 0.18, 0.12, 0.1),
    "hat": (0.45, 0.25, 0.18, 0.12),
    "hat_colour": _COLOUR_WEIGHTS,
    "upper_kind": (0.26, 0.2, 0.18, 0.2, 0.16),
    "upper_colour": _COLOUR_WEIGHTS,
    "upper_pattern": (0.43, 0.21, 0.19, 0.17),
    "lower_colour": _COLOUR_WEIGHTS,
    "lower_pattern": (0.48, 0.27, 0.25),
    "shoe_kind": (0.45, 0.32, 0.23),
    "shoe_colour": (0.24, 0.22, 0.14, 0.14, 0.14, 0.12),
    "bag": (0.3, 0.28, 0.22, 0.2),
    "bag_colour": _COLOUR_WEIGHTS,
    "bag_side": (0.5, 0.5),
}
_WEIGHTS_BY_GENDER: dict[str, dict[str, tuple[float, ...]]] = {
    "man": {"hair_length": (0.48, 0.27, 0.25), "lower_kind": (0.5, 0.5, 0.0)},
    "woman": {"hair_length": (0.22, 0.35, 0.43), "lower_kind": (0.36, 0.26, 0.38)},
}


def applies(name: str, attributes: Mapping[str, str]) -> bool:
    """Whether attribute `name` applies to a person with `attributes` (a hat colour needs a hat)."""
    if name == "hat_colour":
        return attributes["hat"] != "none"
    if name == "bag_colour":
        return attributes["bag"] != "none"
    if name == "bag_side":
        return attributes["bag"] in ("handbag", "satchel")
    return name != "view"


def value_weights(name: str, gender: str) -> np.ndarray:
    """Return the sampling probabilities of the values of `name` for a gender, (values,), with sum 1."""
    weights = np.asarray(_WEIGHTS_BY_GENDER[gender].get(name) or _WEIGHTS[name], dtype=np.float64)
    return weights / weights.sum()


def identity_key(attributes: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values of an identity in the order of `IDENTITY_ATTRIBUTES`, "" where one does not apply."""
    return tuple(attributes.get(name, "") for name in IDENTITY_ATTRIBUTES)


def difference(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Return the attributes in which two identities differ."""
    return [name for name in IDENTITY_ATTRIBUTES if first.get(name) != second.get(name)]


def sample_identity(rng: np.random.Generator) -> Attributes:
    """Sample one combination of attributes."""
    attributes: Attributes = {}
    for name in IDENTITY_ATTRIBUTES:
        if applies(name, attributes):
            weights = value_weights(name, attributes.get("gender", "man"))
            attributes[name] = ATTRIBUTES[name][int(rng.choice(len(weights), p=weights))]
    return attributes


# Attributes in which members of a group of near duplicates differ. Left out: `gender` and `build` (a silhouette is too little),
# `skin` and `hair_*` (often covered), and `hat`, `bag` to or from "none" (changes two attributes).
_NEIGHBOUR_ATTRIBUTES = (
    *("upper_kind", "upper_colour", "upper_pattern", "lower_kind", "lower_colour", "lower_pattern"),
    *("shoe_colour", "hat_colour", "bag_colour", "hat", "bag_side"),
)


def neighbour(attributes: Mapping[str, str], rng: np.random.Generator) -> Attributes:
    """Return a copy of `attributes` with exactly one visible attribute changed."""
    candidates = [name for name in _NEIGHBOUR_ATTRIBUTES if name in attributes and attributes[name] != "none"]
    name = candidates[int(rng.integers(len(candidates)))]
    possible = value_weights(name, attributes["gender"]) > 0
    values = [
        value
        for value, allowed in zip(ATTRIBUTES[name], possible, strict=True)
        if allowed and value not in (attributes[name], "none")
    ]
    return {**attributes, name: values[int(rng.integers(len(values)))]}


def sample_identities(
    count: int,
    rng: np.random.Generator,
    *,
    near_duplicates: float = 0.0,
    taken: Sequence[Mapping[str, str]] = (),
    allowed: Callable[[Mapping[str, str]], bool] = lambda identity: True,
) -> list[Attributes]:
    """Sample `count` different identities, none of them in `taken` and all of them `allowed`.

    The first `near_duplicates` (a fraction) are in consecutive groups of two or three, whose members differ from the first member
    in exactly one attribute.

    Raises:
        ParameterError: `count` is negative, `near_duplicates` outside [0, 1], or the space is exhausted.
    """
    if count < 0:
        raise ParameterError(f"count of identities is {count}; it must be 0 or more")
    if not 0.0 <= near_duplicates <= 1.0:
        raise ParameterError(f"near_duplicates is {near_duplicates}; it is a fraction, from 0 to 1")
    seen = {identity_key(identity) for identity in taken}
    identities: list[Attributes] = []

    def add(draw: Sequence[Attributes]) -> bool:
        fresh = [identity for identity in draw if identity_key(identity) not in seen and allowed(identity)]
        if fresh:
            seen.add(identity_key(fresh[0]))
            identities.append(fresh[0])
        return bool(fresh)

    grouped = round(near_duplicates * count)
    anchor: Attributes = {}
    remaining_in_group = 0
    for _ in range(100 * count + 100):
        if len(identities) == count:
            return identities
        left = grouped - len(identities)
        if remaining_in_group:
            if add([neighbour(anchor, rng)]):
                remaining_in_group -= 1
        elif add([sample_identity(rng)]) and left >= 2:
            anchor = identities[-1]
            # A group of three only where it leaves no single member behind.
            remaining_in_group = 2 if left == 3 or (left >= 5 and rng.random() < 0.5) else 1
    raise ParameterError(f"could not find {count} different identities; ask for fewer")
