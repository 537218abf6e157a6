"""Identities that are reserved for evaluation, whatever the seed.

A model that was trained on drawn people elsewhere (pre-training) must not have seen the people of a test split, but a split is
drawn from a seed that nobody knew then. So a fixed share of all combinations of attributes is reserved by a hash of the combination
itself: pre-training never draws one, and a split whose val and test people are all reserved was seen by no pre-trained model.
"""

import hashlib
from collections.abc import Mapping

import numpy as np

from components.persons.drawn.attributes import Attributes, identity_key, sample_identity

RESERVED_SHARE = 0.125
"""The expected share of combinations that is reserved. Another value would be another reservation: checkpoints depend on it."""


def is_reserved(identity: Mapping[str, str]) -> bool:
    """Return whether a combination of attributes is reserved for evaluation; the view of a picture plays no part."""
    digest = hashlib.sha256("\x1f".join(("reserved identity", *identity_key(identity))).encode()).digest()
    return int.from_bytes(digest[:8], "big") < RESERVED_SHARE * 2**64


def sample_unreserved(rng: np.random.Generator) -> Attributes:
    """Sample one combination of attributes that is not reserved."""
    while is_reserved(identity := sample_identity(rng)):
        pass
    return identity


def sample_reserved(rng: np.random.Generator) -> Attributes:
    """Sample one combination of attributes that is reserved for evaluation."""
    while not is_reserved(identity := sample_identity(rng)):
        pass
    return identity
