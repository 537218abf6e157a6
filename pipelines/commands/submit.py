"""`python -m pipelines submit`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--repro", action="store_true", help="everything (the default)")
    what.add_argument("--stage", metavar="ADDRESS", help="only this stage and what it needs")


def run(options: argparse.Namespace) -> None:
    from pipelines.jobs.submission import submit

    submit(Workspace.at(options.workspace), options.stage)


COMMAND = Command(
    "submit",
    "run the whole pipeline on a Ray cluster, as a job, and bring its results here",
    run,
    add_options,
    interrupt_on_sigterm=True,
    example="submit --stage gadms_evaluate@gadms",
)
