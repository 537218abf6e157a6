"""`python -m pipelines compbench --prompts FILE --images FOLDER`."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompts", required=True, type=Path, help="a <category>_val.txt, or a folder of them")
    add(
        "--images",
        required=True,
        type=Path,
        help="folder of <prompt>_000000.png, ...; with several categories, one folder for each inside it",
    )
    add("--baseline", type=Path, help="pictures to compare with, laid out like --images")
    add("--blip", type=Path, help="folder of BLIP's VQA model, for BLIP-VQA")
    add("--blip-size", type=int, metavar="PIXELS", help="BLIP's pictures (default: the model's; paper: 480)")
    add("--clip", type=Path, help="weights of OpenAI's ViT-B/32 for open_clip, for CLIPScore")
    add("--phrases", type=Path, help="JSON, prompt -> its noun phrases (default: spaCy finds them)")
    add("--output", type=Path, default=Path("results/compbench"), help="default results/compbench")
    add("--grid", type=int, default=8, metavar="N", help="prompts in grid.png (default 8)")
    add("--per-prompt", type=int, default=10, metavar="N", help="pictures expected per prompt (default 10)")


def run(options: argparse.Namespace) -> None:
    from pipelines.evaluating.compbench import compbench
    from pipelines.evaluating.compbench_inputs import Weights

    compbench(
        options.prompts,
        options.images,
        baseline=options.baseline,
        weights=Weights(options.blip, options.clip, options.phrases, options.blip_size),
        output=options.output,
        rows=options.grid,
        per_prompt=options.per_prompt,
    )


COMMAND = Command(
    "compbench",
    "score folders of pictures as T2I-CompBench does",
    run,
    add_options,
    example="compbench --prompts color_val.txt --images drawn/samples --clip ViT-B-32.pt",
    anywhere=True,
)
