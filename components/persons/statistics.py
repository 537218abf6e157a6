"""Counts of a prepared dataset from one pass over its manifest, with eight bytes per identity in memory."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.persons.records import SPLITS

_COLUMNS = ["image_id", "split", "form", "identity", "caption", "wrong_words"]


def manifest_statistics(manifest: Path, is_cut: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """Count pictures, captions and identities, and caption lengths in words, per split that is not empty (for JSON).

    With `is_cut`, which says whether a caption is too long to be read to its end, "captions_cut" counts those.
    """
    splits = {split: _SplitCounts(is_cut) for split in SPLITS}
    for batch in pq.ParquetFile(manifest).iter_batches(columns=_COLUMNS, batch_size=16384):
        for split in pc.unique(batch["split"]).to_pylist():
            splits[split].count(batch.filter(pc.equal(batch["split"], split)))
    return {name: split.summary() for name, split in splits.items() if split.captions}


class _SplitCounts:
    """Sums over the rows of one split."""

    def __init__(self, is_cut: Callable[[str], bool] | None) -> None:
        self.images = self.captions = self.wrong = self.cut = 0
        self._is_cut = is_cut
        self._last_image = -1
        self._identities: list[NDArray[np.int64]] = []
        self._forms: dict[str, Counter[int]] = {}  # form -> words -> captions

    def count(self, rows: pa.RecordBatch) -> None:
        images = rows["image_id"].to_numpy()
        # Rows of a picture are neighbours.
        self.images += int(np.count_nonzero(np.diff(images, prepend=self._last_image)))
        self._last_image = int(images[-1])
        self.captions += rows.num_rows
        self._identities.append(np.unique(rows["identity"].to_numpy()))
        self.wrong += int(pc.sum(pc.list_value_length(rows["wrong_words"])).as_py() or 0)
        for form, caption in zip(rows["form"].to_pylist(), rows["caption"].to_pylist(), strict=True):
            self._forms.setdefault(form, Counter())[len(caption.split())] += 1
            self.cut += bool(self._is_cut and self._is_cut(caption))

    def summary(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "captions": self.captions,
            **({"captions_cut": self.cut} if self._is_cut else {}),
            "identities": len(np.unique(np.concatenate(self._identities))),
            "caption_words": {form: _lengths(words) for form, words in sorted(self._forms.items(), reverse=True)},
            "wrong_words": self.wrong,
        }


def _lengths(words: Counter[int]) -> dict[str, Any]:
    captions = words.total()
    mean = sum(length * number for length, number in words.items()) / captions
    return {"captions": captions, "words_mean": round(mean, 3), "words_min": min(words), "words_max": max(words)}
