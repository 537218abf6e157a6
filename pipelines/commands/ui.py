"""`python -m pipelines ui`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=int, default=5000, help="of the web interface (default 5000)")


def run(options: argparse.Namespace) -> None:
    from pipelines.tracking.web_interface import show

    show(Workspace.at(options.workspace), options.port)


COMMAND = Command("ui", "open MLflow's web interface on the store that runs go to", run, add_options, anywhere=True)
