"""`python -m pipelines preset NAME`."""

import argparse

from pipelines.commands.command import Command


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a file in presets/, without .yaml")
    parser.add_argument("--flags", action="store_true", help="print `dvc exp run -S` flags and change nothing")


def run(options: argparse.Namespace) -> None:
    from pipelines import presets

    if options.flags:
        print(" ".join(presets.flags(options.name, options.workspace)))
    else:
        for line in presets.apply(options.name, options.workspace):
            print(line)


COMMAND = Command("preset", "write a preset's values into params.yaml", run, add_options)
