"""What gives generated people away: those of the published generator, and drawn ones from its VAE, are told from drawn ones.

    python benchmarks/detection.py [--json FILE] [--pictures 800] [--steps 600]

Three classifiers, each trained on one half of the pictures and judged on the other: a logistic regression on the differences of
neighbouring pixels (components/evaluation/detection.py), a small CNN whose first layer reads every pixel, and a logistic regression
on the features of the published encoder, which are about what a picture shows (as arXiv 2302.10174 does with CLIP's). 50 % is
chance. People are of reserved combinations, which neither generator nor encoder has seen. Takes some four minutes.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from timing import save
from torch import Tensor, nn
from torch.nn import functional

from components.evaluation.detection import detection_accuracy, linear_accuracy
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


def cnn_accuracy(first: Tensor, second: Tensor, steps: int) -> float:
    """The percent of the second halves of two sets of pictures whose set a CNN tells that was trained on the first halves."""
    torch.manual_seed(0)
    convolutions = (*_convolution(3, 16, 1), *_convolution(16, 32, 2), *_convolution(32, 64, 2))
    cnn = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(cnn.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=steps)
    both = torch.stack([first, second]).float() / 127.5 - 1  # (2, N, 3, H, W)
    known, held_out = (half.flatten(0, 1) for half in both.chunk(2, dim=1))
    origin = torch.arange(len(known)) >= len(known) // 2
    for step in range(steps):
        rows = torch.randint(len(known), (64,))
        batch = known[rows].flip(-1) if step % 2 else known[rows]
        loss = functional.binary_cross_entropy_with_logits(cnn(batch).squeeze(1), origin[rows].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    cnn.eval()
    with torch.no_grad():
        told = torch.cat([cnn(part).squeeze(1) > 0 for part in held_out.split(200)])
    return 100 * float((told == (torch.arange(len(told)) >= len(told) // 2)).double().mean())


def _rows(pictures: Tensor, rows: Sequence[int]) -> Tensor:
    return pictures[list(rows)]


def _convolution(channels: int, wider: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, wider, 3, stride, padding=1), nn.BatchNorm2d(wider), nn.ReLU()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=int, default=800, help="of each kind")
    parser.add_argument("--steps", type=int, default=600, help="of the CNN's training, 64 pictures each")
    parser.add_argument("--sampler-steps", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = pictures(options.pictures, options.sampler_steps)
    encoder = DualEncoder.load(CHECKPOINTS / "encoder")
    seen = {name: embed_images(encoder, range(len(drawn)), partial(_rows, drawn)) for name, drawn in kinds.items()}
    rows = []
    for name, (first, second) in PAIRS.items():
        told = {
            "grain": detection_accuracy(kinds[first], kinds[second]),
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
