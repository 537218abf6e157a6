"""Finds the best matches for a sentence in the gallery of the pipeline."""

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from components.errors import DataError, ParameterError
from pipelines.terminal.console import TableConsole
from pipelines.workspace import Workspace

INDEX, MODEL, PEOPLE = "data/index", "models/retrieval/gadms", "data/people"


def search(query: str, workspace: Workspace, top: int = 5, picture: Path | None = None) -> None:
    """Print the `top` matches of `query`; with `picture`, also write them side by side, best first, into that PNG.

    Raises ParameterError for an empty query or top < 1, DataError when the index does not exist or was made by another model.
    """
    if not query.strip():
        raise ParameterError('search: the sentence is empty; write one, as in search "a woman in a red coat"')
    if top < 1:
        raise ParameterError(f"search: --top {top}: must be at least 1")
    for path in (INDEX, MODEL, PEOPLE):
        if not workspace.path(path).is_dir():
            raise DataError(f"search: {path} does not exist: run `dvc repro index`")

    from components.search.query import TextSearch

    found = TextSearch.open(workspace.path(MODEL), workspace.path(INDEX))
    matches = found(query, top)

    table = Table(
        title=escape(f"“{query}”"),
        title_justify="left",
        caption=f"{len(found.index)} pictures searched",
        caption_justify="left",
    )
    for heading in ("rank", "cosine", "identity", "picture"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("caption", overflow="fold")
    for rank, match in enumerate(matches, 1):
        identity, caption = str(match.metadata["identity"]), escape(str(match.metadata["caption"]))
        table.add_row(str(rank), f"{match.score:.3f}", identity, str(match.image_id), caption)
    console = TableConsole()
    console.print(table)
    if unread := found.unread(query):
        console.print(escape(f"The sentence is longer than the model reads; its end was not used: “{unread}”"))
    if picture:
        _draw([match.image_id for match in matches], workspace, picture)
        console.print(f"wrote {picture}")


def _draw(image_ids: list[int], workspace: Workspace, path: Path) -> None:
    from components.evaluation.figures import contact_sheet, save_png
    from components.persons.shards import PersonDataset

    people = PersonDataset(workspace.path(PEOPLE))
    width, height = people.picture(image_ids[0]).size
    save_png(contact_sheet([list(people.pixels(image_ids, height, width))]), path)
