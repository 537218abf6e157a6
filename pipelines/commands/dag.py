"""`python -m pipelines dag`."""

import argparse

from pipelines.commands.command import Command


def run(options: argparse.Namespace) -> None:
    from pipelines.dvc_files import dvc_yaml

    print(f"wrote {dvc_yaml.write(options.workspace)}")


COMMAND = Command("dag", "write dvc.yaml from the graph", run)
