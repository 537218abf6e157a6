"""`python -m pipelines cross-domain MODEL ... --data DATASET ...`."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="MODEL", help="model folders, such as models/retrieval/gadms")
    add("--data", nargs="+", type=Path, required=True, metavar="DATASET", help="prepared data sets")
    add("--split", default="test", choices=("train", "val", "test"), help="default test")
    add("--output", type=Path, default=Path("results/cross_domain.json"), help="the matrix as JSON")


def run(options: argparse.Namespace) -> None:
    from pipelines.evaluating.cross_domain import show_cross_domain

    show_cross_domain(options.models, options.data, Workspace.at(options.workspace), options.split, options.output)


COMMAND = Command(
    "cross-domain",
    "evaluate every model on every data set, beside published results",
    run,
    add_options,
    example="cross-domain models/retrieval/gadms --data data/people",
)
