"""`python -m pipelines forget GALLERY --picture ID ... | --identity ID ...`."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command, typed
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("gallery", type=Path, help="the gallery's folder")
    add(
        "--picture",
        nargs="+",
        action="extend",
        default=[],
        metavar="ID",
        help="ids of pictures, as `search` prints them",
    )
    add("--identity", nargs="+", action="extend", default=[], metavar="ID", help="people: all pictures of each")
    add("--skip-mlflow", action="store_true", help="do not look for copies in MLflow")
    add("--dry-run", action="store_true", help="only print what would be removed")


def run(options: argparse.Namespace) -> None:
    from pipelines.search.forgetting import ForgetOptions, forget

    forget(typed(ForgetOptions, options), Workspace.at(options.workspace))


COMMAND = Command(
    "forget",
    "remove pictures or people from a gallery, with every copy, for good",
    run,
    add_options,
    example="forget people --picture a1b2c3 --dry-run",
    anywhere=True,
)
