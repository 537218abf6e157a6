"""Searches a gallery by sentences, by a picture, or by both, with filters and re-ranking.

A query becomes one unit vector. Several sentences: the mean of their unit vectors, so that pictures are sought that fit all of
them. A picture and sentences: `weight` of the picture's vector and the rest of the sentences'. Its score with a picture of the
gallery is their cosine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from components.errors import DataError, ParameterError
from components.search.approximate import ApproximateIndex
from components.search.encoders import Encoder, open_encoder
from components.search.filters import Filter
from components.search.gallery.layout import APPROXIMATE
from components.search.gallery.reading import Gallery
from components.search.reranking import POOL, reranked
from components.search.vectors import Ranked, Vectors


@dataclass(frozen=True)
class Query:
    """What is sought: sentences, a picture (RGB) or one of the gallery (`like`, an id), or sentences and a picture.

    weight: of the picture beside sentences, in [0, 1]. A picture of the gallery does not find itself.
    """

    sentences: tuple[str, ...] = ()
    picture: Image.Image | None = None
    like: str | None = None
    weight: float = 0.5


@dataclass(frozen=True)
class Match:
    """A found picture: its id, its cosine with the query, its row in the gallery, and that row of the table."""

    id: str
    score: float
    row: int
    metadata: dict[str, Any]


class Searcher:
    """Searches one version of a gallery; any thread may. Raises DataError where the model is not the one that made it."""

    def __init__(self, gallery: Gallery, encoder: Encoder) -> None:
        made_by = gallery.model.get("digest")
        if made_by is None:
            raise DataError(
                f"{gallery.path} does not name the weights that made its vectors, so nothing tells whether this model may search "
                "them: make it again"
            )
        if made_by != encoder.digest:
            raise DataError(
                f"{gallery.path} was made by another model than {encoder.name}, so their vectors cannot be compared: search with "
                f"the one that made it ({gallery.model.get('name')}), or make the gallery again"
            )
        if gallery.dimension != encoder.dimension:
            raise DataError(
                f"{gallery.path} holds vectors of {gallery.dimension} numbers, {encoder.name} makes {encoder.dimension}"
            )
        self.gallery, self.encoder = gallery, encoder
        self._vectors = Vectors(gallery.vectors)
        self._approximate: ApproximateIndex | None = None
        file = gallery.folder / APPROXIMATE
        if gallery.approximate is not None and file.exists():
            self._approximate = ApproximateIndex.open(file, self._vectors, gallery.approximate)

    @classmethod
    def open(cls, gallery: str | Path, root: str | Path, model: str | None = None) -> "Searcher":
        """Open a gallery's folder, and the model that made it, or `model`. root: where relative references to a model start."""
        opened = Gallery.open(gallery)
        return cls(opened, open_encoder(model or opened.model, Path(root)))

    def search(
        self,
        queries: Sequence[Query],
        k: int = 10,
        *,
        where: Filter | None = None,
        rerank: bool = False,
        exact: bool = False,
    ) -> list[list[Match]]:
        """Return for each query its k best pictures, best first; fewer where fewer meet the filter.

        rerank: order the best POOL by k-reciprocal neighbours (`components.search.reranking`); scores remain cosines. exact: do not
        use the approximate index.

        Raises ParameterError for an empty query, k < 1, an unknown id, or a filter that does not fit the gallery.
        """
        if k < 1:
            raise ParameterError(f"search: k = {k}: must be at least 1")
        vectors = self.embed(queries)
        among = None if where is None else where.mask(self.gallery.table)
        spare = any(query.like for query in queries)  # room for the picture itself, which is left out
        found = self._nearest(vectors, (max(k, POOL) if rerank else k) + spare, among, exact)
        matches = []
        for query, vector, ranked in zip(queries, vectors, found, strict=True):
            own = self._row(query.like)
            if own is not None:
                ranked = ranked.of(ranked.rows != own)
            if rerank:
                pool = self.gallery.vectors[ranked.rows]
                ranked = ranked.of(reranked(vector, pool, is_picture=not query.sentences))
            matches.append(self._matches(ranked.of(slice(k))))
        return matches

    def embed(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """Return the unit vectors of queries, (Q, D). Sentences of all queries are encoded together, and so are pictures."""
        for query in queries:
            _check(query)
        texts = [sentence for query in queries for sentence in query.sentences]
        images = [query.picture for query in queries if query.picture is not None]
        encoded = iter(self.encoder.sentences(texts) if texts else ())
        embedded = iter(self.encoder.pictures(images) if images else ())
        vectors = np.empty((len(queries), self.gallery.dimension), np.float32)
        for number, query in enumerate(queries):
            parts = []
            if query.sentences:
                text = _unit(np.mean([next(encoded) for _ in query.sentences], axis=0))
                parts.append((1 - query.weight, text))
            if query.picture is not None:
                parts.append((query.weight, next(embedded)))
            if query.like is not None:
                parts.append((query.weight, _unit(self.gallery.vectors[self._row(query.like)])))
            vectors[number] = parts[0][1] if len(parts) == 1 else _unit(sum(part * vector for part, vector in parts))
        return vectors

    def _nearest(
        self, vectors: NDArray[np.float32], k: int, among: NDArray[np.bool_] | None, exact: bool
    ) -> list[Ranked]:
        searched = self._vectors if exact or self._approximate is None else self._approximate
        return searched.nearest(vectors, k, among)

    def _row(self, picture_id: str | None) -> int | None:
        if picture_id is None:
            return None
        row = self.gallery.row_of(picture_id)
        if row is None:
            raise ParameterError(f"search: the gallery holds no picture with the id {picture_id!r}")
        return row

    def _matches(self, ranked: Ranked) -> list[Match]:
        rows = self.gallery.table.take(ranked.rows).to_pylist()
        return [
            Match(metadata["id"], float(score), int(row), metadata)
            for row, score, metadata in zip(ranked.rows, ranked.scores, rows, strict=True)
        ]


def _check(query: Query) -> None:
    pictures = (query.picture is not None) + (query.like is not None)
    if not query.sentences and not pictures:
        raise ParameterError("search: nothing is sought; give a sentence or a picture")
    if pictures == 2:
        raise ParameterError("search: two pictures; give either a picture or the id of one of the gallery")
    if any(not sentence.strip() for sentence in query.sentences):
        raise ParameterError('search: the sentence is empty; write one, as in search "a woman in a red coat"')
    if not 0 <= query.weight <= 1:
        raise ParameterError(f"search: weight {query.weight} of the picture: must be in [0, 1]")


def _unit(vector: Any) -> NDArray[np.float32]:
    """The unit vector of this direction. Sentences that cancel out leave none: zeros."""
    vector = np.asarray(vector, np.float32)
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
