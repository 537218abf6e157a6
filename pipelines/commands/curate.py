"""`python -m pipelines curate SOURCE --output FOLDER`. The default limits are WebPerson's."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command, typed


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source",
        type=Path,
        help="a folder of pictures (captions: a.txt beside a.jpg), a manifest (.csv, .parquet), or a dataset's folder",
    )
    add("--output", required=True, type=Path, help="folder of the training set; a prepared dataset")
    add("--short-side", type=int, default=90, metavar="PIXELS", help="minimum (default 90; 0 for any size)")
    add("--aspect", type=_aspect, default=(0.25, 0.5), metavar="LOW,HIGH", help="width/height (default 0.25,0.5; any)")
    add("--detector", type=Path, metavar="FILE", help="torchvision's keypoint R-CNN (default: no rules on persons)")
    add("--detector-sha256", metavar="HEX", help="expected digest of the file of --detector")
    add("--confidence", type=float, default=0.85, help="must be exceeded, by --detector (default 0.85)")
    add("--crop", action="store_true", help="cut each detected person out")
    add("--captioner", type=Path, metavar="FOLDER", help="a vision-language model of transformers")
    add("--probe", type=Path, metavar="FOLDER", help="an attribute probe: captions by the grammar of the drawn people")
    add("--templates", type=Path, metavar="FILE", help="templates for --captioner, one per line (default: eight)")
    add("--captions", type=int, default=2, metavar="N", help="per picture (default 2)")
    add("--words", type=int, default=60, metavar="N", help="maximum per caption, for --captioner (default 60)")
    add("--matcher", type=Path, metavar="FOLDER", help="a dual encoder, such as models/retrieval/gadms")
    add("--least-match", type=float, metavar="COSINE", help="minimum between picture and captions, by --matcher")
    add("--keep-fraction", type=float, default=1.0, help="of the best matches, by --matcher (default 1)")
    add("--near-duplicates", type=int, metavar="BITS", help="drop pictures whose 64-bit hashes differ by at most BITS")
    add("--batch", type=int, default=16, help="pictures at once (default 16)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
    add("--seed", type=int, default=0, help="which templates or words a picture gets (default 0)")


def _aspect(text: str) -> tuple[float, float] | None:
    if text == "any":
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: write two numbers, such as 0.25,0.5, or "any"') from None
    return low, high


def run(options: argparse.Namespace) -> None:
    from pipelines.curating.curation import curate
    from pipelines.curating.options import CurateOptions

    curate(typed(CurateOptions, options))


COMMAND = Command(
    "curate",
    "make a training set of people from any pictures: judge, caption, match",
    run,
    add_options,
    example="curate photos --output people --captioner models/blip",
    anywhere=True,
)
