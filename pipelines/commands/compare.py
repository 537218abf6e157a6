"""`python -m pipelines compare RUN_ID RUN_ID ...`."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN_ID", help="MLflow run ids; the first is the baseline")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of the page (default: reports/compare.html)")


def run(options: argparse.Namespace) -> None:
    from pipelines.comparing.comparison import compare

    compare(Workspace.at(options.workspace), options.runs, options.output)


COMMAND = Command(
    "compare",
    "what differs between runs, by how much, and on which examples",
    run,
    add_options,
    example="compare 3f2a9c1b 77d0e4aa",
    anywhere=True,
)
