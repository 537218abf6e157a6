"""What gives generated people away: those of the published generator, and drawn ones from its VAE, are told from drawn ones.

    python benchmarks/detection.py [--json FILE] [--pictures 800] [--steps 600] [--jpeg 90]

Three classifiers, each trained on one half of the pictures and judged on the other: a logistic regression on the differences of
neighbouring pixels (components/evaluation/detection.py), a small CNN whose first layer reads every pixel, and a logistic regression
on the features of the published encoder, which are about what a picture shows (as arXiv 2302.10174 does with CLIP's). 50 % is
chance. People are of reserved combinations, which neither generator nor encoder has seen. With `--jpeg`, all pictures are first
saved as JPEG of that quality, as those of data sets are; drawn areas are exactly flat before. Takes some four minutes.
"""

import argparse
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from timing import save
from torch import Tensor

from components.evaluation.detection import cnn_accuracy, grain_accuracy, linear_accuracy
from components.gadms.embedding import embed_images
from components.gadms.model import DualEncoder
from components.persons.drawn.fresh import EVALUATED_PEOPLE, FreshPeople, stacked
from components.taca.generation import generate
from components.taca.toy.autoencoder import reconstruct
from components.training.randomness import stream_seed
from pipelines.terminal.console import TableConsole

CHECKPOINTS = Path(__file__).resolve().parent.parent / "pretraining/checkpoints"
HEIGHT, WIDTH = 64, 32
PAIRS = {
    "drawn, other drawn": ("drawn", "other"),
    "drawn, through the VAE": ("drawn", "through the VAE"),
    "through the VAE, generated": ("through the VAE", "generated"),
    "drawn, generated": ("drawn", "generated"),
}


def pictures(number: int, sampler_steps: int) -> dict[str, Tensor]:
    """`number` pictures of each kind, uint8 (N, 3, H, W), of other people each."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(CHECKPOINTS / "generator", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    people = FreshPeople(0, "detection", {"clean": 1.0}, height=HEIGHT, width=WIDTH, domain=EVALUATED_PEOPLE)

    def drawn(part: int) -> Any:
        return people.people(range(part * number, (part + 1) * number))

    prompts = [person.caption for person in drawn(3)]
    seeds = [stream_seed(0, "detection", row) for row in range(number)]
    return {
        "drawn": stacked(drawn(0)),
        "other": stacked(drawn(1)),
        "through the VAE": reconstruct(pipe.vae, stacked(drawn(2))),
        "generated": generate(pipe, prompts, seeds, height=HEIGHT, width=WIDTH, steps=sampler_steps),
    }


def as_jpeg(pictures: Tensor, quality: int) -> Tensor:
    """The pictures as they are read after they were saved."""
    read = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture.movedim(0, -1).numpy()).save(file, "JPEG", quality=quality)
        read.append(torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0))
    return torch.stack(read)


def _rows(pictures: Tensor, rows: Sequence[int]) -> Tensor:
    return pictures[list(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=int, default=800, help="of each kind")
    parser.add_argument("--steps", type=int, default=600, help="of the CNN's training, 64 pictures each")
    parser.add_argument("--sampler-steps", type=int, default=16)
    parser.add_argument("--jpeg", type=int, metavar="QUALITY", help="save all pictures so before they are told apart")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = pictures(options.pictures, options.sampler_steps)
    if options.jpeg:
        kinds = {name: as_jpeg(shown, options.jpeg) for name, shown in kinds.items()}
    encoder = DualEncoder.load(CHECKPOINTS / "encoder")
    seen = {name: embed_images(encoder, range(len(drawn)), partial(_rows, drawn)) for name, drawn in kinds.items()}
    rows = []
    for name, (first, second) in PAIRS.items():
        told = {
            "grain": grain_accuracy(kinds[first], kinds[second]),
            "cnn": cnn_accuracy(kinds[first], kinds[second], options.steps),
            "encoder": linear_accuracy(seen[first], seen[second]),
        }
        rows.append({"pair": name, **told})
    table = Table(
        "told apart", "by the differences of pixels", "by a CNN", "by an encoder", title="percent of held-out pictures"
    )
    for row in rows:
        table.add_row(row["pair"], f"{row['grain']:.1f}", f"{row['cnn']:.1f}", f"{row['encoder']:.1f}")
    TableConsole().print(table)
    if options.json:
        save(options.json, torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
