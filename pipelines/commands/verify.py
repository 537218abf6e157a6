"""`python -m pipelines verify [PATH ...]`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", nargs="*", metavar="PATH", help="paths that stages write, or stages (default: all)")


def run(options: argparse.Namespace) -> None:
    from pipelines.provenance.verification import verify

    verify(options.targets, Workspace.at(options.workspace))


COMMAND = Command(
    "verify",
    "check that files, dvc.lock, manifests and MLflow runs agree, back to the raw input",
    run,
    add_options,
    example="verify results/retrieval/gadms.parquet",
)
