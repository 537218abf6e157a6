"""`python -m pipelines distractors`."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="pipeline", help="as the verb `gallery` takes it (default: the pipeline's own)")
    add("--people", type=Path, metavar="DATASET", help="a prepared data set (default: data/people)")
    add("--split", default="test", choices=("train", "val", "test"), help="whose people are sought (default test)")
    add(
        "--strangers",
        type=Path,
        metavar="DATASET",
        help="another prepared data set (default: the people of the other splits)",
    )
    add(
        "--counts",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of strangers' pictures (default: none, and a quarter, a half and all of them)",
    )
    add("--output", type=Path, default=Path("results/distractors.json"), help="the numbers as JSON")


def run(options: argparse.Namespace) -> None:
    from pipelines.evaluating.distractors import show_distractors

    workspace = Workspace.at(options.workspace)
    show_distractors(
        workspace,
        options.model,
        options.people or workspace.path("data/people"),
        options.split,
        options.strangers,
        options.counts,
        options.output,
    )


COMMAND = Command(
    "distractors",
    "evaluate retrieval in both directions as strangers join the gallery",
    run,
    add_options,
    example="distractors --counts 0 1000 10000",
)
