"""`python -m pipelines report`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def run(options: argparse.Namespace) -> None:
    from pipelines.reporting.page import render

    print(f"wrote {render(Workspace.at(options.workspace))}")


COMMAND = Command("report", "render reports/index.html", run)
