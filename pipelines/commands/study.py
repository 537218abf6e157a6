"""`python -m pipelines study NAME`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", help="a file in studies/, without .yaml")
    add("--only", metavar="PATTERN", help="only cells whose key matches, such as 'map/*' (and what they need)")
    add("--workers", type=int, default=1, metavar="N", help="processes that measure at once (default 1)")
    add("--list", action="store_true", help="list the cells and which are done; measure nothing")
    add("--summary", action="store_true", help="write the results of what is done; measure nothing")


def run(options: argparse.Namespace) -> None:
    from pipelines.studies import engine

    study = engine.open_study(options.name, Workspace.at(options.workspace))
    if options.list:
        engine.list_cells(study, options.only)
    elif options.summary:
        engine.write_results(study)
    else:
        engine.run_study(study, options.only, options.workers)


COMMAND = Command(
    "study",
    "measure what a study in studies/ has not measured yet, and summarise it",
    run,
    add_options,
    interrupt_on_sigterm=True,
)
