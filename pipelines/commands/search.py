"""`python -m pipelines search "a woman in a red coat"`."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("query", help='for example "a woman in a red coat"')
    add("--top", type=int, default=5, metavar="K", help="how many matches (default 5)")
    add("--picture", type=Path, help="also write the matches side by side into this PNG")


def run(options: argparse.Namespace) -> None:
    from pipelines.search.gallery_search import search

    search(options.query, Workspace.at(options.workspace), options.top, options.picture)


COMMAND = Command("search", "find people by a sentence", run, add_options)
