import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.errors import ParameterError
from components.persons.curation.near_duplicates import difference_hash, near_duplicates


def brute_force(hashes, distance):
    """Each hash against every one that was kept before it, bit by bit."""
    kept, found = [], []
    for place, value in enumerate(hashes):
        near = next((other for other in kept if bin(hashes[other] ^ value).count("1") <= distance), None)
        found.append(near)
        if near is None:
            kept.append(place)
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 63), max_size=9)), max_size=40), st.integers(0, 15)
)
def test_the_search_by_bands_finds_what_comparing_all_finds(changed, distance):
    """Around four random hashes, with up to nine bits flipped."""
    centres = [int(value) for value in np.random.default_rng(0).integers(0, 2**63, 4)]
    hashes = []
    for centre, bits in changed:
        value = centres[centre]
        for bit in bits:
            value ^= 1 << bit
        hashes.append(value)
    assert near_duplicates(hashes, distance) == brute_force(hashes, distance)


def test_the_first_of_a_group_is_kept_and_others_are_compared_with_what_was_kept():
    hashes = [0b0, 0b1, 0b111, 0b110]
    assert near_duplicates(hashes, 1) == [None, 0, None, 2]


def test_the_hash_is_that_of_its_definition():
    pixels = np.random.default_rng(1).integers(0, 256, (8, 9), dtype=np.uint8)
    expected = sum(int(pixels[y, x + 1] > pixels[y, x]) << (63 - 8 * y - x) for y in range(8) for x in range(8))
    assert difference_hash(Image.fromarray(pixels)) == expected
    assert difference_hash(Image.new("RGB", (30, 60), (9, 9, 9))) == 0


def test_scaling_and_recompression_change_few_bits_and_another_picture_many():
    rng = np.random.default_rng(2)

    def scene():
        small = Image.fromarray(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8))
        return small.resize((120, 240), Image.Resampling.BICUBIC)

    first, second = scene(), scene()
    buffer = io.BytesIO()
    first.resize((90, 180)).save(buffer, "JPEG", quality=60)
    again = Image.open(buffer)
    assert bin(difference_hash(first) ^ difference_hash(again)).count("1") <= 3
    assert bin(difference_hash(first) ^ difference_hash(second)).count("1") > 15


@pytest.mark.parametrize("distance", [-1, 16])
def test_an_impossible_distance_is_refused(distance):
    with pytest.raises(ParameterError, match="near_duplicates"):
        near_duplicates([], distance)
