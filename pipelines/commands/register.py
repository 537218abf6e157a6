"""`python -m pipelines register`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="person-search", help="of the registered model (default person-search)")


def run(options: argparse.Namespace) -> None:
    from pipelines.search.registry import register

    print(register(options.name, Workspace.at(options.workspace)))


COMMAND = Command("register", "put the text search (model and index) into MLflow's model registry", run, add_options)
