"""Pictures of people put together: rows of equal pictures, framed where they are right, as PNG with fixed bytes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from components.errors import DataError
from components.persons.pixels import encode_png

GREEN, RED, PAPER = (46, 139, 87), (190, 70, 60), (255, 255, 255)


def framed(picture: Tensor, colour: tuple[int, int, int], width: int = 2) -> Tensor:
    """A uint8 picture (3, H, W) inside a frame: (3, H + 2 width, W + 2 width)."""
    height, across = picture.shape[1:]
    canvas = torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, height + 2 * width, across + 2 * width)
    canvas[:, width : width + height, width : width + across] = picture
    return canvas


def plate(rows: Sequence[Sequence[Tensor]], gap: int = 4, paper: tuple[int, int, int] = PAPER) -> Tensor:
    """Equal uint8 pictures (3, H, W) in rows on a sheet: (3, R (H + gap) + gap, C (W + gap) + gap). A short row ends in paper.

    Raises DataError when there is no picture, or two differ in size.
    """
    sizes = {tuple(picture.shape) for row in rows for picture in row}
    if len(sizes) != 1:
        raise DataError(f"a plate needs pictures of one size, found {sorted(sizes) or 'none'}")
    _, height, width = sizes.pop()
    columns = max(len(row) for row in rows)
    sheet = torch.tensor(paper, dtype=torch.uint8)[:, None, None].repeat(
        1, len(rows) * (height + gap) + gap, columns * (width + gap) + gap
    )
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            top, left = gap + r * (height + gap), gap + c * (width + gap)
            sheet[:, top : top + height, left : left + width] = picture
    return sheet


def save_png(picture: Tensor, path: Path) -> None:
    """Write a uint8 picture (3, H, W); the same picture gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture))
