"""Near duplicates: a 64-bit difference hash of each picture, and an exact search for hashes a few bits apart.

The hash (dHash): the picture in grey, shrunk to 9 x 8, and for each of the 64 horizontal pairs of neighbours whether the right one
is brighter. Scaling, recompression and brightness hardly change it; mirroring does.

The search cuts a hash into `distance + 1` bands. Two hashes that differ in at most `distance` bits are equal in at least one band
(there are more bands than differing bits), so comparing hashes that share a band misses nothing.
"""

import itertools
from array import array
from collections.abc import Iterable

import numpy as np
from PIL import Image

from components.errors import ParameterError

BITS = 64


def difference_hash(picture: Image.Image) -> int:
    """Hash a picture to 64 bits, the top left pair in the highest bit. A picture of one colour has the hash 0."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BILINEAR))
    bits = grey[:, 1:] > grey[:, :-1]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


class NearDuplicates:
    """Kept hashes, and the search for a near duplicate among them. The first of a group is kept; dropped ones are not compared."""

    def __init__(self, distance: int) -> None:
        if not 0 <= distance <= 15:
            raise ParameterError(f"near_duplicates = {distance}: must lie between 0 and 15 bits of {BITS}")
        self.distance = distance
        edges = [BITS * band // (distance + 1) for band in range(distance + 2)]
        self._bands = [(low, (1 << (high - low)) - 1) for low, high in itertools.pairwise(edges)]
        self._kept: list[dict[int, array[int]]] = [{} for _ in self._bands]  # value of a band -> kept places
        self._hashes = array("Q")
        self._names = array("q")

    def add(self, name: int, hash_value: int) -> int | None:
        """Return the name of the earliest kept picture within `distance` bits; otherwise keep this one and return None."""
        near = self._nearest(hash_value)
        if near is not None:
            return near
        for (shift, mask), places in zip(self._bands, self._kept, strict=True):
            places.setdefault((hash_value >> shift) & mask, array("q")).append(len(self._hashes))
        self._hashes.append(hash_value)
        self._names.append(name)
        return None

    def _nearest(self, hash_value: int) -> int | None:
        earliest: int | None = None
        for (shift, mask), places in zip(self._bands, self._kept, strict=True):
            candidates = places.get((hash_value >> shift) & mask)
            if candidates is None:
                continue
            rows = np.array(candidates)
            apart = np.bitwise_count(np.frombuffer(self._hashes, dtype=np.uint64)[rows] ^ np.uint64(hash_value))
            close = rows[apart <= self.distance]
            if len(close) and (earliest is None or int(close[0]) < earliest):
                earliest = int(close[0])
        return None if earliest is None else int(self._names[earliest])


def near_duplicates(hashes: Iterable[int], distance: int) -> list[int | None]:
    """Return for each hash the place of the kept one that it duplicates, or None where it is kept."""
    kept = NearDuplicates(distance)
    return [kept.add(place, value) for place, value in enumerate(hashes)]
