"""`python -m pipelines gallery GALLERY SOURCE`: makes a gallery of any pictures, or brings it up to date."""

import argparse
from pathlib import Path

from pipelines.commands.command import Command, typed
from pipelines.workspace import Workspace


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("gallery", type=Path, help="the gallery's folder: a new one, or one to bring up to date")
    add(
        "source",
        nargs="?",
        help="a folder of pictures; a manifest (.csv, .tsv, .jsonl, .parquet) with a column `file`; a data set of people; or a "
        "folder or manifest in a bucket, such as s3://bucket/people (default: that of the last update)",
    )
    add(
        "--model",
        help="pipeline (default at first), a folder of weights, a published checkpoint, ARCHITECTURE:TAG or ARCHITECTURE:FILE of "
        "open_clip, hf-hub:OWNER/REPOSITORY",
    )
    add("--format", choices=("folder", "manifest", "dataset"), help="of SOURCE (default: as it looks)")
    add(
        "--columns",
        type=_names,
        metavar="A,B",
        help="columns of a manifest to keep beside file, identity, caption (default all)",
    )
    add("--half", action=argparse.BooleanOptionalAction, help="vectors of half precision: half the size (at first: no)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument(
        "--approximate", action="store_true", default=None, help="also build an approximate index, faster for millions"
    )
    kinds.add_argument("--exact", dest="approximate", action="store_false", default=None, help="exact search (default)")
    add(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes of Ray Data that embed (at RAY_ADDRESS, if set); 0: here",
    )
    add("--threads", type=int, metavar="N", help="of each process (default: all cores, divided among the workers)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
    add("--batch", type=int, default=32, metavar="N", help="pictures embedded at once (default 32)")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def run(options: argparse.Namespace) -> None:
    from pipelines.search.gallery_update import update_gallery
    from pipelines.search.options import GalleryOptions

    update_gallery(typed(GalleryOptions, options), Workspace.at(options.workspace))


COMMAND = Command(
    "gallery",
    "make your own pictures searchable, or bring them up to date",
    run,
    add_options,
    interrupt_on_sigterm=True,
    example="gallery people photos",
    anywhere=True,
)
