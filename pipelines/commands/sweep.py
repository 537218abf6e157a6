"""`python -m pipelines sweep SPACE`."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command, print_listing, typed
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("space", nargs="?", help="a file in pipelines/sweeps/, without .yaml (none: list what there is)")
    add("--samples", type=int, default=16, metavar="N", help="configurations, or members of a population (default 16)")
    add("--seeds", type=int, default=1, metavar="K", help="seeds per configuration (default 1)")
    add("--workers", type=int, default=1, metavar="N", help="trials at once (default 1)")
    add("--budget-minutes", type=float, metavar="M", help="wall time of this call")
    add("--budget-gpu-hours", type=float, metavar="H", help="of all trials")
    add("--no-scheduler", action="store_true", help="stop no trial early")
    add("--warm-start", metavar="RUN_ID", help="learn from the trials of an earlier sweep in MLflow")
    add("--retry-failed", action="store_true", help="try failed trials again")
    add(
        "--folder",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "sweeps",
        help="where spaces are (default pipelines/sweeps)",
    )


def run(options: argparse.Namespace) -> None:
    from pipelines.sweeps.options import SweepOptions
    from pipelines.sweeps.spaces import known
    from pipelines.sweeps.sweep import sweep

    if options.space is None:
        print_listing(known(options.folder))
        return
    sweep(typed(SweepOptions, options), Workspace.at(options.workspace))


COMMAND = Command(
    "sweep",
    "try configurations of a search space, several at once",
    run,
    add_options,
    interrupt_on_sigterm=True,
    example="sweep gadms --samples 8 --workers 2",
)
