"""`python -m pipelines promote RUN_ID`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", help="MLflow run of a trial, or of a sweep: its best trial")
    add("--whole", action="store_true", help="also the values that the sweep's space had laid over params.yaml")
    add("--commit", action="store_true", help="commit params.yaml")
    add("--branch", metavar="NAME", help="run the pipeline up to the trial's stages, as a DVC experiment")
    add("--anyway", action="store_true", help="also of a trial that failed, was stopped, or has not ended")


def run(options: argparse.Namespace) -> None:
    from pipelines.sweeps.promotion import promote

    chosen = {name: getattr(options, name) for name in ("whole", "commit", "branch", "anyway")}
    promote(options.run, Workspace.at(options.workspace), **chosen)


COMMAND = Command(
    "promote", "write a trial's parameters into params.yaml", run, add_options, example="promote 3f2a9c1b --commit"
)
