"""`python -m pipelines runs`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace

LEVELS = ("pipeline", "sweep", "pretraining", "trial", "stage")
LISTED = LEVELS[:3]
"""What is listed without --level and --below."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--level", action="append", choices=LEVELS, help="of the runs (default: pipeline, sweep and pretraining)")
    add("--below", metavar="RUN_ID", help="only those under this run: the stages of a pipeline, the trials of a sweep")
    add("--limit", type=int, default=20, metavar="N", help="the newest N (default 20)")


def run(options: argparse.Namespace) -> None:
    from pipelines.comparing.listing import list_runs

    levels = options.level or (LEVELS if options.below else LISTED)
    list_runs(Workspace.at(options.workspace), levels, max(1, options.limit), options.below)


COMMAND = Command(
    "runs",
    "list executions, sweeps and pre-trainings, newest first, with their headline numbers",
    run,
    add_options,
    example="runs --level stage --limit 50",
    anywhere=True,
)
