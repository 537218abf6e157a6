"""Text search in a gallery, with the text tower of the model that made the index."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.files import file_digest
from components.gadms.embedding import embed_captions
from components.gadms.model import WEIGHTS_FILE, DualEncoder
from components.search.index import GalleryIndex


@dataclass(frozen=True)
class Match:
    """One found picture: cosine in [-1, 1] and its row of the index's metadata."""

    image_id: int
    score: float
    metadata: dict[str, Any]


class TextSearch:
    """Searches a gallery by text. Raises DataError where model and index do not belong together."""

    def __init__(self, encoder: DualEncoder, index: GalleryIndex) -> None:
        dimension = index.embeddings.shape[1]
        if encoder.embed_dim != dimension:
            raise DataError(f"the index holds vectors of {dimension} numbers, the model makes {encoder.embed_dim}")
        self.encoder = encoder
        self.index = index

    @classmethod
    def open(cls, model_folder: str | Path, index_folder: str | Path) -> "TextSearch":
        """Read both folders. Raises DataError unless the index names the weights that made it, and they are the model's."""
        encoder, index = DualEncoder.load(model_folder).eval(), GalleryIndex.open(index_folder)
        weights = index.model.get("weights")
        if weights is None:
            raise DataError(
                f"{index_folder} does not name the weights that made its vectors, so nothing tells whether {model_folder} may "
                "search them: make the index again (`dvc repro index`)"
            )
        if weights != file_digest(Path(model_folder) / WEIGHTS_FILE):
            raise DataError(
                f"{index_folder} was made by another model than {model_folder}, so their vectors cannot be compared: make the "
                "index again (`dvc repro index`)"
            )
        return cls(encoder, index)

    def unread(self, query: str) -> str:
        """Return the end of `query` that the model does not read, because it is longer than its context; mostly ""."""
        return self.encoder.tokenizer.unread(query)

    def __call__(self, query: str, k: int = 10) -> list[Match]:
        """Return the k best pictures for a query, best first."""
        return self.many([query], k)[0]

    def many(self, queries: Sequence[str], k: int = 10) -> list[list[Match]]:
        """Return the k best pictures for each of several queries, which are encoded together."""
        hits = self.index.search(embed_captions(self.encoder, queries), k)
        columns = self.index.metadata
        return [
            [
                Match(image_id, score, {name: values[row] for name, values in columns.items()})
                for row, image_id, score in zip(rows, ids, scores, strict=True)
            ]
            for rows, ids, scores in zip(hits.rows.tolist(), hits.image_ids.tolist(), hits.scores.tolist(), strict=True)
        ]
