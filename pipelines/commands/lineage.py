"""`python -m pipelines lineage TARGET`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="an MLflow run id, a path that a stage wrote, or a stage")


def run(options: argparse.Namespace) -> None:
    from pipelines.provenance.lineage import lineage

    lineage(options.target, Workspace.at(options.workspace))


COMMAND = Command(
    "lineage",
    "where a result comes from, back to the raw input",
    run,
    add_options,
    example="lineage results/retrieval/gadms.parquet",
)
