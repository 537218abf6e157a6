"""`python -m pipelines preset [NAME ...]`."""

import argparse

from pipelines.commands.command import Command, print_listing

LEFT_OVER = 6
"""Values of others that are named; the rest is counted."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "names",
        nargs="*",
        metavar="NAME",
        help="files in presets/, without .yaml, each laid over those before it; default: the project's own values, those of "
        "params.yaml in the last commit (none: list what there is)",
    )
    add("--flags", action="store_true", help="print `dvc exp run -S` flags and change nothing")


def run(options: argparse.Namespace) -> None:
    from pipelines import presets
    from pipelines.errors import first_of

    names, root = options.names, options.workspace
    if not names:
        print_listing(presets.known(root))
    elif options.flags:
        print(" ".join(presets.flags(names, root)))
    else:
        for line in presets.apply(names, root):
            print(line)
        if others := presets.left_over(names, root):
            begin = " ".join([presets.DEFAULT, *names])
            print(
                f"note: params.yaml keeps what is neither of {', '.join(names)} nor the project's own (in brackets): "
                f"{first_of(others, LEFT_OVER)}; `python -m pipelines preset {begin}` takes it back"
            )


COMMAND = Command(
    "preset", "write the values of presets into params.yaml", run, add_options, example="preset default smoke"
)
