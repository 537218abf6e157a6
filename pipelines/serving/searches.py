"""The work behind the routes, in threads: plain functions of one opened version."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from components.errors import DataError, ParameterError
from components.persons.pixels import decode_rgb
from components.search.filters import Filter, filterable
from components.search.searcher import Match, Query
from components.search.words import word_weights
from pipelines.serving import schema
from pipelines.serving.answers import Refused
from pipelines.serving.gallery_facts import HIDDEN, shown
from pipelines.serving.served_gallery import Opened

LOG = logging.getLogger("pipelines.serving")


def search(
    opened: Opened, query: Query, k: int, where: Sequence[str], *, rerank: bool = False
) -> tuple[list[schema.Match], str]:
    """Return the best matches, and the end of a sentence that the model did not read.

    Raises Refused: 404 where `query.like` is no picture of this version, 400 for a filter that does not fit the gallery.
    """
    if query.like is not None:
        row_of(opened, query.like)
    try:
        found = opened.searcher.search([query], k, where=_filter(opened, where), rerank=rerank)
    except ParameterError as error:
        raise Refused(400, str(error), "parameters") from None
    unread = " ".join(filter(None, map(opened.encoder.unread, query.sentences)))
    return [_as_answer(match) for match in found[0]], unread


def related(opened: Opened, picture_id: str, k: int) -> schema.Related:
    """Return the other pictures of the person on a picture, by identity where the gallery knows it, else the nearest."""
    row = row_of(opened, picture_id)
    identity = (
        opened.gallery.table["identity"][row].as_py() if "identity" in opened.gallery.table.column_names else None
    )
    where = None if identity is None else _SamePerson((), identity)
    found = opened.searcher.search([Query(like=picture_id)], k + 1, where=where)[0]
    others = [_as_answer(match) for match in found if match.id != picture_id][:k]
    return schema.Related(
        by="nearest" if identity is None else "identity", version=opened.gallery.version, matches=others
    )


def words(opened: Opened, sentence: str, picture_id: str) -> schema.Words:
    """Return what each word of a sentence did for its match with a picture of the gallery."""
    weights = word_weights(opened.encoder, sentence, picture(opened, picture_id))
    return schema.Words(words=list(weights.words), by=weights.by)


def picture(opened: Opened, picture_id: str) -> Image.Image:
    """Return a picture of the gallery, decoded."""
    return decode_rgb(original(opened, picture_id))


def original(opened: Opened, picture_id: str) -> bytes:
    """Return the encoded original. Raises Refused (404)."""
    return _read(opened.gallery.picture, row_of(opened, picture_id))


def thumbnail(opened: Opened, picture_id: str) -> bytes:
    """Return a small picture in WebP. Raises Refused (404)."""
    return _read(opened.gallery.thumbnail, row_of(opened, picture_id))


def row_of(opened: Opened, picture_id: str) -> int:
    """Return the row of a picture. Raises Refused (404) for an id that this version does not hold."""
    row = opened.gallery.row_of(picture_id)
    if row is None:
        raise Refused(404, "no picture of this gallery has that id", "id")
    return row


def _read(read: Callable[[int], bytes], row: int) -> bytes:
    try:
        return read(row)
    except DataError as error:  # its text names a path
        LOG.warning("a picture cannot be read: %s", error)
        raise Refused(
            404, "the file of this picture is gone or has changed; the gallery must be updated", "gone"
        ) from None


def _filter(opened: Opened, where: Sequence[str]) -> Filter | None:
    if not where:
        return None
    parsed = Filter.parse(*where)
    columns = [name for name in filterable(opened.gallery.table) if name not in HIDDEN]
    if wrong := [condition.column for condition in parsed.conditions if condition.column not in columns]:
        raise Refused(400, f"where: {wrong[0]!r} is no column; there are {', '.join(columns)}", "parameters")
    return parsed


@dataclass(frozen=True)
class _SamePerson(Filter):
    """The pictures of one identity, whatever letters are in its name."""

    identity: str = ""

    def mask(self, table: pa.Table) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = pc.fill_null(pc.equal(table["identity"], self.identity), False).to_numpy()
        return same


def _as_answer(match: Match) -> schema.Match:
    return schema.Match(**{**shown(match.metadata), "id": match.id, "score": float(match.score)})
