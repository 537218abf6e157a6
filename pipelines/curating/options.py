"""What `curate` can be asked for. The limits are WebPerson's unless others are given."""

import argparse
from pathlib import Path

from components.errors import ParameterError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, help="a folder of pictures, a manifest (.csv, .parquet), or a published dataset's folder"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder of the training set; a prepared dataset")
    parser.add_argument("--short-side", type=int, default=90, metavar="PIXELS", help="least (default 90; 0 for any)")
    parser.add_argument(
        "--aspect",
        type=_aspect,
        default=(0.25, 0.5),
        metavar="LOW,HIGH",
        help='width / height (default 0.25,0.5; "any")',
    )
    parser.add_argument(
        "--detector",
        type=Path,
        metavar="FILE",
        help="weights of torchvision's keypoint R-CNN; none: no rules on persons",
    )
    parser.add_argument("--detector-sha256", metavar="HEX", help="what the file of --detector must be")
    parser.add_argument("--confidence", type=float, default=0.85, help="of the detector, above (default 0.85)")
    parser.add_argument("--crop", action="store_true", help="cut each detected person out")
    parser.add_argument("--captioner", type=Path, metavar="FOLDER", help="a vision-language model of transformers")
    parser.add_argument(
        "--probe", type=Path, metavar="FOLDER", help="an attribute probe: captions by the grammar of the drawn people"
    )
    parser.add_argument(
        "--templates",
        type=Path,
        metavar="FILE",
        help="templates for --captioner, one a line (default: eight of our own)",
    )
    parser.add_argument("--captions", type=int, default=2, metavar="N", help="of each picture (default 2)")
    parser.add_argument(
        "--words", type=int, default=60, metavar="N", help="of a caption, at most, for --captioner (default 60)"
    )
    parser.add_argument(
        "--matcher", type=Path, metavar="FOLDER", help="a dual encoder, such as models/retrieval/contrastive"
    )
    parser.add_argument("--least-match", type=float, metavar="COSINE", help="of picture and captions, by --matcher")
    parser.add_argument(
        "--keep-fraction", type=float, default=1.0, help="of the best matches, by --matcher (default 1)"
    )
    parser.add_argument(
        "--near-duplicates", type=int, metavar="BITS", help="drop pictures whose 64-bit hashes differ in no more"
    )
    parser.add_argument("--batch", type=int, default=16, help="pictures at once (default 16)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
    parser.add_argument("--seed", type=int, default=0, help="which templates or words a picture gets (default 0)")


def _aspect(text: str) -> tuple[float, float] | None:
    if text == "any":
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r}: write two numbers, such as 0.25,0.5, or "any"') from None
    return low, high


def check(options: argparse.Namespace) -> None:
    """Raise ParameterError, one line, for what does not go together."""
    if options.captioner and options.probe:
        raise ParameterError("--captioner and --probe both write captions: give one of them")
    if options.templates and not options.captioner:
        raise ParameterError("--templates are for a vision-language model: give --captioner")
    if (options.least_match is not None or options.keep_fraction != 1) and not options.matcher:
        raise ParameterError("--least-match and --keep-fraction need a --matcher, which scores the match")
    if (options.crop or options.detector_sha256) and not options.detector:
        raise ParameterError("--crop and --detector-sha256 need --detector, which finds people")
    for name in ("batch", "captions", "words"):
        if getattr(options, name) < 1:
            raise ParameterError(f"--{name} {getattr(options, name)}: must be at least 1")
    if not 0 < options.keep_fraction <= 1:
        raise ParameterError(f"--keep-fraction {options.keep_fraction}: must lie in (0, 1]")
    if options.near_duplicates is not None and not 0 <= options.near_duplicates <= 15:
        raise ParameterError(f"--near-duplicates {options.near_duplicates}: must lie between 0 and 15 bits of 64")
