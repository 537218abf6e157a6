"""How a model is named for search, and what a file of published weights says of its architecture.

    pipeline                            models/retrieval/gadms of the checkout
    FOLDER                              written by the pipeline, or any folder of open_clip (open_clip_config.json and weights)
    FILE                                a checkpoint of IRRA or GA-DMS, or OpenAI's archive of a CLIP with a vision transformer
    ARCHITECTURE:TAG, ARCHITECTURE:FILE weights of an architecture of open_clip, such as ViT-B-16-SigLIP:webli
    hf-hub:OWNER/REPOSITORY             a model of open_clip on the hub

Each may end in @HEIGHTxWIDTH, the size to which pictures are resized. Paths are relative to the root that the caller gives.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from torch import Tensor

from components.errors import DataError, ParameterError

PIPELINE, PIPELINE_FOLDER, HUB = "pipeline", "models/retrieval/gadms", "hf-hub:"
_SIZE = re.compile(r"(.+)@(\d+)x(\d+)")
_BLOCK = re.compile(r"(?:visual\.)?transformer\.resblocks\.(\d+)\.ln_1\.weight")


@dataclass(frozen=True)
class ModelReference:
    """A parsed reference. `name` is its canonical text, with paths below the root relative to it, others absolute.

    Exactly one of `folder`, `file`, `tag` and `hub` is set; `architecture` (a name of open_clip) is given with a tag, and may be
    with a file. image_size is (height, width); None is the model's own.
    """

    name: str
    folder: Path | None = None
    file: Path | None = None
    tag: str | None = None
    hub: str | None = None
    architecture: str | None = None
    image_size: tuple[int, int] | None = None


def parse_reference(text: str, root: Path) -> ModelReference:
    """Parse the name of a model. Raises ParameterError, in one line, where it names nothing that exists."""
    text = text.strip()
    body, size, suffix = text, None, ""
    sized = _SIZE.fullmatch(text)
    if sized and not (root / text).exists():
        body, size = sized[1], (int(sized[2]), int(sized[3]))
        suffix = f"@{size[0]}x{size[1]}"
        if min(size) < 1:
            raise ParameterError(f"model {text}: the height and the width after @ must be at least 1")
    if body.startswith(HUB):
        return ModelReference(text, hub=body, image_size=size)
    place = root / (PIPELINE_FOLDER if body == PIPELINE else body)
    if body and place.is_dir():
        name = body if body == PIPELINE else _canonical(place, root)
        return ModelReference(name + suffix, folder=place, image_size=size)
    if body and place.is_file():
        return ModelReference(_canonical(place, root) + suffix, file=place, image_size=size)
    if body == PIPELINE:
        raise DataError(f"model pipeline: {place} does not exist: run `dvc repro index`, or name another model")
    architecture, colon, weights = body.partition(":")
    if not colon or not weights:
        raise ParameterError(
            f"model {text!r}: no such folder or file; allowed are pipeline, a folder, a file of weights, ARCHITECTURE:TAG or "
            "ARCHITECTURE:FILE of open_clip, hf-hub:OWNER/REPOSITORY"
        )
    _require_architecture(text, architecture)
    if (root / weights).is_file():
        name = f"{architecture}:{_canonical(root / weights, root)}{suffix}"
        return ModelReference(name, file=root / weights, architecture=architecture, image_size=size)
    import open_clip

    if not open_clip.get_pretrained_cfg(architecture, weights):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise ParameterError(
            f"model {text!r}: {weights} is neither a file nor a tag of {architecture} (its tags: {tags})"
        )
    return ModelReference(text, tag=weights, architecture=architecture, image_size=size)


def openai_architecture(towers: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    """The open_clip config of weights in OpenAI's form (quick GELU, heads of 64), with the image size they were trained at.

    Of the grid of patches a file holds only the product: it is taken for a square, or as in person retrieval for 2:1 or 3:1
    (256 x 128, 384 x 128). Raises DataError naming `source` for other weights.
    """
    try:
        patch, width = towers["visual.conv1.weight"].shape[-1], towers["visual.conv1.weight"].shape[0]
        patches = len(towers["visual.positional_embedding"]) - 1
        context, text_width = towers["positional_embedding"].shape
        vocabulary, dimension = len(towers["token_embedding.weight"]), towers["text_projection"].shape[1]
    except (KeyError, IndexError, ValueError):
        raise DataError(
            f"{source}: not a CLIP with a vision transformer in OpenAI's form; write ARCHITECTURE:{source} with its architecture"
        ) from None
    sides = [(ratio * isqrt(patches // ratio), isqrt(patches // ratio)) for ratio in (1, 2, 3)]
    grid = next((rows, columns) for rows, columns in [*sides, (patches, 1)] if rows * columns == patches)
    layers = {"visual.": 0, "": 0}
    for name in towers:
        block = _BLOCK.fullmatch(name)
        if block:
            tower = "visual." if name.startswith("visual.") else ""
            layers[tower] = max(layers[tower], int(block[1]) + 1)
    return {
        "embed_dim": dimension,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": [grid[0] * patch, grid[1] * patch],
            "layers": layers["visual."],
            "width": width,
            "head_width": 64,
            "patch_size": patch,
        },
        "text_cfg": {
            "context_length": context,
            "vocab_size": vocabulary,
            "width": text_width,
            "heads": text_width // 64,
            "layers": layers[""],
        },
    }


def _canonical(place: Path, root: Path) -> str:
    place, root = place.resolve(), root.resolve()
    return str(place.relative_to(root) if place.is_relative_to(root) else place)


def _require_architecture(text: str, architecture: str) -> None:
    import difflib

    import open_clip

    names = open_clip.list_models()
    if architecture not in names:
        close = difflib.get_close_matches(architecture, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ParameterError(f"model {text!r}: {architecture} is neither a path nor an architecture of open_clip{hint}")
