"""`python -m pipelines pretrain [PART ...]`."""

import argparse

from pipelines.commands.command import Command
from pipelines.errors import StageFailedError
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("parts", nargs="*", help="autoencoder, generator, decoder, encoder, probe, publish (default: all)")
    add("--jobs", type=int, metavar="N", help="at most N parts at once (default: as many as there are cores for)")


def run(options: argparse.Namespace) -> None:
    from pipelines.scheduling.pretraining import pretrain

    if code := pretrain(Workspace.at(options.workspace), options.parts, options.jobs):
        raise StageFailedError("not everything is pre-trained", code)  # which has been said


COMMAND = Command(
    "pretrain",
    "train the checkpoints that the repository publishes, by pretraining/recipe.yaml; resumes what a kill left unfinished",
    run,
    add_options,
    example="pretrain probe",
)
