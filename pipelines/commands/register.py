"""`python -m pipelines register`."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "gallery", type=Path, nargs="?", help="a folder made by `gallery` (default: the pipeline's own, data/index)"
    )
    parser.add_argument("--name", default="person-search", help="of the registered model (default person-search)")


def run(options: argparse.Namespace) -> None:
    from pipelines.search.registry import register

    print(register(options.name, Workspace.at(options.workspace), options.gallery))


COMMAND = Command(
    "register",
    "put the text search of a gallery (model and index) into MLflow's model registry",
    run,
    add_options,
    example="register --name person-search",
    anywhere=True,
)
