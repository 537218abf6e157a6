"""`python -m pipelines leaderboard`."""

import argparse

from pipelines.commands.command import Command
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", help="cuhk-pedes, icfg-pedes or rstpreid (default: all three)")
    parser.add_argument("--setting", default="fine-tuned", help='"fine-tuned" (default) or "direct transfer"')


def run(options: argparse.Namespace) -> None:
    from pipelines.evaluating.leaderboard import show_leaderboards

    show_leaderboards(Workspace.at(options.workspace), options.dataset, options.setting)


COMMAND = Command(
    "leaderboard",
    "published person retrieval results, and this workspace's own",
    run,
    add_options,
    example="leaderboard --dataset cuhk-pedes",
    anywhere=True,
)
