"""`python -m pipelines generate PROMPTS --output FOLDER`."""

import argparse
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any, get_args

from components.taca.memory_options import Offload, Quantization
from pipelines.commands.command import Command, typed
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    count, positive, add = _number(int, 0), _number(int, 1), parser.add_argument
    add("prompts", type=Path, help=".txt with one prompt per line; .csv, .jsonl or .parquet with `prompt`")
    add(
        "--output",
        type=Path,
        required=True,
        help="an empty folder, or one that this command began; on a cluster, shared by all nodes",
    )
    add = parser.add_argument_group("the picture", "values that are not given are taken from params.yaml").add_argument
    add("--model", type=Path, help="a model reference (default: models/base.json)")
    add(
        "--adapter",
        type=_adapter,
        action="append",
        default=[],
        metavar="PATH[:WEIGHT]",
        help="a LoRA, of taca_train or from elsewhere; can be given again, and all are on together",
    )
    add(
        "--each-adapter",
        type=_adapter,
        action="append",
        default=[],
        metavar="PATH[:WEIGHT]",
        help="a LoRA that has its turn: all prompts are drawn with each of these, from the same noise; the model is read once",
    )
    add(
        "--adapter-threshold",
        type=_number(float, 0, 1),
        action="append",
        default=[],
        metavar="SIGMA",
        help="LoRAs are on where sigma is at least this: once for all, or once for each (default: what each was trained from, "
        "if its file says, else every step)",
    )
    add("--gamma", type=_number(float, 0), help="switches TACA on at this temperature")
    add("--threshold", type=_number(float, 0, 1), help="TACA is on where sigma is at least this")
    add("--height", type=positive)
    add("--width", type=positive)
    add("--steps", type=positive)
    add("--guidance", type=_number(float, 1), default=1.0, help="true guidance; 1 is off (default)")
    add("--embedded-guidance", type=_number(float, 0), help="the guidance input of a guidance-distilled model")
    add(
        "--negative-prompt",
        metavar="TEXT",
        help="what guidance leads away from; a manifest may have one for each prompt",
    )
    add(
        "--strength",
        type=_number(float, 0, 1),
        help="how far from the manifest's `image` a picture is drawn, above 0 (default: the pipeline's own)",
    )
    add("--dtype", choices=("fp32", "bf16", "fp16"), help="of the model; noise is drawn in fp32")
    add("--quantize", choices=get_args(Quantization), help="of the transformer and large text encoders; with bf16")
    add(
        "--gguf",
        type=Path,
        metavar="FILE",
        help="reads the transformer from a GGUF file in place of the model's folder",
    )
    add("--seed", type=count)
    add("--images-per-prompt", type=positive, default=1, metavar="N")
    add = parser.add_argument_group(
        "the work", "changes no picture; batch and threads may change the last bit"
    ).add_argument
    add("--shard-size", type=positive, default=64, metavar="N", help="pictures per file (default 64)")
    add("--batch", type=positive, default=16, metavar="N", help="pictures drawn at once (default 16)")
    add(
        "--workers",
        type=count,
        metavar="N",
        help="Ray actors (at RAY_ADDRESS, if set), each with the model; 0 draws in this process",
    )
    add("--threads", type=positive, metavar="N", help="of each worker")
    add("--device", choices=("auto", "cpu", "cuda"))
    add(
        "--offload",
        choices=get_args(Offload),
        help="weights that are not in use: none stay on the GPU; model, group: wait in the host's memory but for a part, a layer",
    )
    add("--max-failures", type=count, metavar="N", help="workers that may die and be replaced")
    add("--max-characters", type=positive, metavar="N", help="a longer prompt is skipped (default: any)")
    add("--naming", choices=("compbench",), help="also write samples/<prompt>_<number>.png")


def _adapter(text: str) -> tuple[Path, float]:
    """Parse PATH[:WEIGHT]; a colon may also belong to the path."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        value = float(weight)
    except ValueError:
        return Path(text), 1.0
    if not path or not isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not PATH[:WEIGHT] with a finite weight")
    return Path(path), value


def _number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high or value == float("inf"):
            allowed = f"in [{low}, {high}]" if high < float("inf") else f"at least {low}"
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # argparse says "invalid number value: 'x'"
    return parse


def run(options: argparse.Namespace) -> None:
    from pipelines.generating.generation import generate
    from pipelines.generating.options import GenerateOptions

    generate(typed(GenerateOptions, options), Workspace.at(options.workspace))


COMMAND = Command(
    "generate",
    "draw pictures for the prompts of a file, in shards",
    run,
    add_options,
    example="generate prompts.txt --output drawn --adapter models/adapters/taca:0.8",
)
