"""`python -m pipelines gc`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="list what would be freed, and free nothing")
    parser.add_argument("--sweeps", action="store_true", help="also free results that only ended sweeps need")


def run(options: argparse.Namespace) -> None:
    from pipelines.provenance.garbage_collection import collect

    collect(Workspace.at(options.workspace), dry=options.dry_run, sweeps=options.sweeps)


COMMAND = Command("gc", "free scratch space that no present result or open sweep needs", run, add_options)
