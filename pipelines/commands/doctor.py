"""`python -m pipelines doctor`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", action="store_true", help="check datasets only")
    add("--weights", action="store_true", help="check weights only")
    add("--cluster", action="store_true", help="check the Ray cluster of jobs, from here and from each node")
    add("--preset", metavar="NAME", help="a file in presets/, laid over params.yaml")


def run(options: argparse.Namespace) -> None:
    from pipelines.health.doctor import CHECKS, doctor

    chosen = [name for name in CHECKS if getattr(options, name)]
    doctor(Workspace.at(options.workspace), chosen, options.preset)


COMMAND = Command(
    "doctor",
    "check that what a run needs is in place, and how to get what is missing",
    run,
    add_options,
    example="doctor --preset cuhk-pedes --data",
)
