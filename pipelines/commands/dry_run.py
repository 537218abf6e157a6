"""`python -m pipelines dry-run`."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", metavar="NAME", help="a file in presets/, laid over params.yaml")
    parser.add_argument("--architecture", type=Path, metavar="FILE", help="config.json of the transformer")


def run(options: argparse.Namespace) -> None:
    from pipelines.health.dry_run import dry_run

    dry_run(Workspace.at(options.workspace), options.preset, options.architecture)


COMMAND = Command(
    "dry-run",
    "what a run would do and need (memory, weights, data); writes and downloads nothing",
    run,
    add_options,
    example="dry-run --preset flux-dev",
)
