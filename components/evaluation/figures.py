"""Sheets of equal pictures in rows, with coloured frames, as PNG with fixed bytes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from components.errors import DataError
from components.persons.pixels import encode_png

GREEN, RED, PAPER = (46, 139, 87), (190, 70, 60), (255, 255, 255)


def framed(picture: Tensor, colour: tuple[int, int, int], width: int = 2) -> Tensor:
    """Add a frame to a uint8 picture (3, H, W): (3, H + 2 width, W + 2 width)."""
    height, across = picture.shape[1:]
    canvas = torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, height + 2 * width, across + 2 * width)
    canvas[:, width : width + height, width : width + across] = picture
    return canvas


def contact_sheet(rows: Sequence[Sequence[Tensor]], gap: int = 4, paper: tuple[int, int, int] = PAPER) -> Tensor:
    """Arrange equal uint8 pictures (3, H, W) in rows: (3, R (H + gap) + gap, C (W + gap) + gap). A short row ends in paper.

    Raises DataError without a picture, or with two of different size.
    """
    sizes = {tuple(picture.shape) for row in rows for picture in row}
    if len(sizes) != 1:
        raise DataError(f"a sheet needs pictures of one size, found {sorted(sizes) or 'none'}")
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


def save_png(picture: Tensor | np.ndarray, path: Path) -> None:
    """Write a uint8 picture, a tensor (3, H, W) or an array (H, W, 3); the same picture gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture))
