"""The verb `search`: finds the best matches in a gallery, prints them, and draws them side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from components.errors import DataError, ParameterError
from pipelines.errors import REPRO_COMMAND
from pipelines.search.search_options import SearchOptions
from pipelines.terminal.console import TableConsole
from pipelines.workspace import Workspace

INDEX, MODEL, PEOPLE = "data/index", "models/retrieval/gadms", "data/people"
COLUMNS = 10
"""Pictures per row of the grid."""
MAX_SIDE = 384
"""Pixels of the longer side of a picture in the grid, at most."""


def search(options: SearchOptions, workspace: Workspace) -> None:
    """Print the best matches as a table or as JSON; with `picture`, also draw them, best first, into that PNG.

    Raises ParameterError for a query, filter or number that cannot be, DataError where the gallery, the model or the picture to
    search by cannot be read.
    """
    gallery = options.gallery or workspace.path(INDEX)
    if options.top < 1:
        raise ParameterError(f"search: --top {options.top}: must be at least 1")
    if options.gallery is None:
        for path in (INDEX, MODEL, PEOPLE):
            if not workspace.path(path).is_dir():
                raise DataError(f"search: {path} does not exist: run `{REPRO_COMMAND} index`, or give --gallery FOLDER")

    from components.search.filters import Filter
    from components.search.searcher import Searcher

    where = Filter.parse(*options.where) if options.where else None
    searcher = Searcher.open(gallery, workspace.path(""), options.model)
    query = _query(options, searcher)
    (matches,) = searcher.search([query], options.top, where=where, rerank=options.rerank, exact=options.exact)
    unread = {sentence: end for sentence in query.sentences if (end := searcher.encoder.unread(sentence))}
    if options.json:
        print(json.dumps(_document(options, searcher, matches, unread), indent=1, ensure_ascii=False, default=str))
    else:
        _print(options, searcher, where, matches, list(unread.values()))
    if options.picture and matches:
        missing = draw(searcher.gallery, [match.row for match in matches], options.picture)
        if not options.json:
            for line in [*missing, f"wrote {options.picture}"]:
                TableConsole().print(escape(line))


def _query(options: SearchOptions, searcher: Any) -> Any:
    """The query; `like` is the id of a picture of the gallery, or a file."""
    from components.persons.pixels import decode_rgb
    from components.search.searcher import Query

    if options.like is None:
        return Query(options.sentences)
    if searcher.gallery.row_of(options.like) is not None:
        return Query(options.sentences, like=options.like, weight=options.weight)
    try:
        content = Path(options.like).read_bytes()
    except OSError as error:
        raise DataError(
            f"search: --like {options.like}: neither the id of a picture of the gallery nor a file ({error.strerror})"
        ) from error
    try:
        picture = decode_rgb(content)
    except DataError as error:
        raise DataError(f"search: --like {options.like}: {error}") from error
    return Query(options.sentences, picture=picture, weight=options.weight)


def _print(options: SearchOptions, searcher: Any, where: Any, matches: Sequence[Any], unread: Sequence[str]) -> None:
    sought = [f"“{sentence}”" for sentence in options.sentences] + ([f"like {options.like}"] if options.like else [])
    size = searcher.gallery.size
    table = Table(
        title=escape(" + ".join(sought)),
        title_justify="left",
        caption=f"{size} pictures, of which those that meet the filter were searched"
        if options.where
        else f"{size} pictures searched",
        caption_justify="left",
    )
    for heading in ("rank", "cosine", "identity", "picture"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = [name for name in _further(where, searcher) if any(match.metadata.get(name) for match in matches)]
    for name in names:
        table.add_column(name, overflow="fold")
    for rank, match in enumerate(matches, 1):
        further = [_text(match.metadata.get(name)) for name in names]
        table.add_row(str(rank), f"{match.score:.3f}", _text(match.metadata.get("identity")), match.id, *further)
    console = TableConsole()
    console.print(table)
    for end in unread:
        console.print(escape(f"The sentence is longer than the model reads; its end was not used: “{end}”"))
    if not matches and options.where:
        console.print(escape(f"No picture meets {' and '.join(options.where)}"))


def _further(where: Any, searcher: Any) -> list[str]:
    """Columns to show beside rank, cosine, identity and id: those filtered by, the file where it is not the id, the caption."""
    filtered = [condition.column for condition in where.conditions] if where else []
    file = [] if searcher.gallery.source.get("kind") == "pipeline" else ["file"]
    return list(dict.fromkeys([*(name for name in filtered if name not in ("identity", "id")), *file, "caption"]))


def _text(value: Any) -> str:
    return "" if value is None else escape(str(value))


def _document(options: SearchOptions, searcher: Any, matches: Sequence[Any], unread: dict[str, str]) -> dict[str, Any]:
    gallery = searcher.gallery
    return {
        "gallery": str(gallery.path),
        "version": gallery.version,
        "model": dict(gallery.model),
        "sentences": list(options.sentences),
        "like": options.like,
        "where": list(options.where),
        "reranked": options.rerank,
        "unread": unread,
        "matches": [
            {**match.metadata, "id": match.id, "rank": rank, "score": match.score}
            for rank, match in enumerate(matches, 1)
        ],
    }


def draw(gallery: Any, rows: Sequence[int], path: Path) -> list[str]:
    """Write the pictures of some rows into a PNG, COLUMNS side by side, each fitted into the size of the first.

    Returns a line for each that cannot be read, which is left grey. Raises DataError where none can.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from components.evaluation.figures import PAPER, contact_sheet, save_png
    from components.evaluation.grids import EMPTY
    from components.persons.pixels import decode_rgb

    pictures: list[Image.Image | None] = []
    missing: list[str] = []
    for row in rows:
        try:
            pictures.append(decode_rgb(gallery.picture(row)))
        except DataError as error:
            pictures.append(None)
            missing.append(str(error))
    first = next((picture for picture in pictures if picture), None)
    if first is None:
        raise DataError(f"search: no picture of the matches can be read: {missing[0]}")
    scale = min(1.0, MAX_SIDE / max(first.size))
    size = (max(1, round(first.width * scale)), max(1, round(first.height * scale)))
    tiles = [
        Image.new("RGB", size, EMPTY) if picture is None
        else picture if picture.size == size else ImageOps.pad(picture, size, color=PAPER)
        for picture in pictures
    ]  # fmt: skip
    cells = [torch.from_numpy(np.array(tile)).permute(2, 0, 1) for tile in tiles]
    save_png(contact_sheet([cells[begin : begin + COLUMNS] for begin in range(0, len(cells), COLUMNS)]), path)
    return missing
