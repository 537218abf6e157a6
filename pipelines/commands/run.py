"""`python -m pipelines run STAGE`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", help="name, or name@arm")


def run(options: argparse.Namespace) -> None:
    from pipelines.engine.runner import run_stage

    run_stage(options.stage, Workspace.at(options.workspace))


COMMAND = Command(
    "run", "bring one stage up to date (what dvc.yaml calls)", run, add_options, example="run taca_train@taca"
)
