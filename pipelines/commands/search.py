"""`python -m pipelines search "a woman in a red coat" --gallery GALLERY`."""

import argparse
from dataclasses import replace
from pathlib import Path

from pipelines.commands.command import Command, typed
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "sentences",
        nargs="*",
        metavar="SENTENCE",
        help='for example "a woman in a red coat"; of several, pictures are sought that fit all',
    )
    add("--gallery", type=Path, help="a folder that the verb `gallery` made (default: the pipeline's own, data/index)")
    add("--model", help="the model that made the gallery, where it is no longer found under the recorded name")
    add("--like", metavar="PICTURE", help="a file, or the id of a picture of the gallery: pictures that look like it")
    add("--weight", type=float, default=0.5, help="of that picture beside the sentences, 0 to 1 (default 0.5)")
    add(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="only pictures with, for example, camera=3, camera=3|4, identity!=17, width>=64 or caption~coat; can be given again",
    )
    add("--rerank", action="store_true", help="order the best by k-reciprocal neighbours")
    add("--exact", action="store_true", help="search exactly, also where the gallery has an approximate index")
    add("--top", type=int, default=5, metavar="K", help="how many matches (default 5)")
    add("--picture", type=Path, metavar="PNG", help="also draw the matches side by side into this PNG")
    add("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    from pipelines.search.gallery_search import search
    from pipelines.search.search_options import SearchOptions

    chosen = typed(SearchOptions, options)
    search(
        replace(chosen, sentences=tuple(chosen.sentences), where=tuple(chosen.where)), Workspace.at(options.workspace)
    )


COMMAND = Command(
    "search",
    "find people in a gallery by a sentence or a picture",
    run,
    add_options,
    example='search "a woman in a red coat" --gallery people',
    anywhere=True,
)
