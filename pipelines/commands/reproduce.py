"""`python -m pipelines reproduce TARGET`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("target", help="an MLflow run id, a path that a stage wrote, or a stage")
    add("--from", dest="first", metavar="STAGE", help="begin with this stage upstream of it")
    add("--all", action="store_true", help="begin with the raw input")
    add("--jobs", action="store_true", help="run the stages as Ray jobs, with a storage prefix of their own")
    add("--keep", action="store_true", help="keep the worktree, to look at")


def run(options: argparse.Namespace) -> None:
    from pipelines.provenance.reproduction import reproduce

    chosen = {"first": options.first, "whole": options.all, "keep": options.keep, "as_jobs": options.jobs}
    reproduce(options.target, Workspace.at(options.workspace), **chosen)


COMMAND = Command(
    "reproduce",
    "run a run's stage again in a clean worktree and compare every number",
    run,
    add_options,
    example="reproduce gadms_evaluate@gadms",
)
