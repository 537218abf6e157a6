"""`python -m pipelines dag`."""

import argparse

from pipelines.commands.command import Command


def run(options: argparse.Namespace) -> None:
    from pipelines.dvc_files import dvc_yaml, pretraining_yaml

    for written in (dvc_yaml, pretraining_yaml):
        print(f"wrote {written.write(options.workspace)}")


COMMAND = Command("dag", "write dvc.yaml and pretraining/dvc.yaml from the graph", run)
