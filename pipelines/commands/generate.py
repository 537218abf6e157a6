"""`python -m pipelines generate PROMPTS --output FOLDER`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.commands.command import Command, typed
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    count, positive = _number(int, 0), _number(int, 1)
    parser.add_argument(
        "prompts", type=Path, help=".txt with one prompt per line; .csv, .jsonl or .parquet with `prompt`"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="an empty folder, or one that this command began; on a cluster, shared by all nodes",
    )
    picture = parser.add_argument_group("the picture", "values that are not given are taken from params.yaml")
    picture.add_argument("--model", type=Path, help="a model reference (default: models/base.json)")
    picture.add_argument("--adapter", type=Path, help="a LoRA, as taca_train writes it (default: none)")
    picture.add_argument("--gamma", type=_number(float, 0), help="switches TACA on at this temperature")
    picture.add_argument(
        "--threshold", type=_number(float, 0, 1), help="TACA and the LoRA are on where sigma is at least this"
    )
    picture.add_argument("--height", type=positive)
    picture.add_argument("--width", type=positive)
    picture.add_argument("--steps", type=positive)
    picture.add_argument("--guidance", type=_number(float, 1), default=1.0, help="true guidance; 1 is off (default)")
    picture.add_argument(
        "--embedded-guidance", type=_number(float, 0), help="the guidance input of a guidance-distilled model"
    )
    picture.add_argument("--dtype", choices=("fp32", "bf16"), help="of the model; noise is drawn in fp32")
    picture.add_argument("--seed", type=count)
    picture.add_argument("--images-per-prompt", type=positive, default=1, metavar="N")
    work = parser.add_argument_group("the work", "changes no picture; batch and threads may change the last bit")
    work.add_argument("--shard-size", type=positive, default=64, metavar="N", help="pictures per file (default 64)")
    work.add_argument("--batch", type=positive, default=16, metavar="N", help="pictures drawn at once (default 16)")
    work.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="Ray actors (at RAY_ADDRESS, if set), each with the model; 0 draws in this process",
    )
    work.add_argument("--threads", type=positive, metavar="N", help="of each worker")
    work.add_argument("--device", choices=("auto", "cpu", "cuda"))
    work.add_argument("--max-failures", type=count, metavar="N", help="workers that may die and be replaced")
    work.add_argument("--max-characters", type=positive, metavar="N", help="a longer prompt is skipped (default: any)")
    work.add_argument("--naming", choices=("compbench",), help="also write samples/<prompt>_<number>.png")


def _number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high or value == float("inf"):
            raise argparse.ArgumentTypeError(
                f"{text} is not " + (f"in [{low}, {high}]" if high < float("inf") else f"at least {low}")
            )
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # argparse says "invalid number value: 'x'"
    return parse


def run(options: argparse.Namespace) -> None:
    from pipelines.generating.generation import generate
    from pipelines.generating.options import GenerateOptions

    generate(typed(GenerateOptions, options), Workspace.at(options.workspace))


COMMAND = Command("generate", "draw pictures for the prompts of a file, in shards", run, add_options)
