"""`python -m pipelines repro [STAGE ...]`."""

import argparse

from pipelines.commands.command import Command

DVC_FLAGS = ("force", "single-item", "dry")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--wait", action="store_true", help="wait for another one that runs here")
    for flag in DVC_FLAGS:
        add(f"--{flag}", action="store_true", help="as of dvc repro")
    add("stages", nargs="*", help="as of dvc repro (default: all)")


def run(options: argparse.Namespace) -> None:
    from pipelines.scheduling.dvc_repro import repro

    flags = [f"--{flag}" for flag in DVC_FLAGS if getattr(options, flag.replace("-", "_"))]
    repro(options.workspace.resolve(), [*flags, *options.stages], wait=options.wait)


COMMAND = Command("repro", "`dvc repro`, one at a time in a checkout; clears locks of a killed one", run, add_options)
