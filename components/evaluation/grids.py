"""Grids of pictures with labels: a row per prompt, a column per arm."""

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from components.errors import DataError
from components.evaluation.figures import PAPER, contact_sheet

INK, EMPTY = (30, 30, 30), (235, 235, 235)
GAP, LABEL, FONT = 4, 200, 13  # pixels: between pictures, width of the prompts' column, size of letters
LINE = FONT + 4


def side_by_side(
    prompts: Sequence[str], arms: Sequence[str], pictures: Sequence[Sequence[Image.Image | None]], cell: int = 192
) -> Image.Image:
    """Draw a grid with prompts on the left, arms on top, and pictures[row][column] in squares of `cell` pixels.

    A picture is scaled to fit its square and centred; None leaves a grey square. Raises DataError where rows or columns do not
    match the labels, or there are none.
    """
    if not prompts or not arms or len(pictures) != len(prompts) or any(len(row) != len(arms) for row in pictures):
        raise DataError(
            f"a grid needs a row for each of {len(prompts)} prompts and a column for each of {len(arms)} arms"
        )
    tiles = [[torch.from_numpy(np.array(_tile(picture, cell))).permute(2, 0, 1) for picture in row] for row in pictures]
    field = Image.fromarray(contact_sheet(tiles, GAP).permute(1, 2, 0).numpy())
    head = LINE + GAP
    sheet = Image.new("RGB", (LABEL + field.width, head + field.height), PAPER)
    sheet.paste(field, (LABEL, head))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for column, arm in enumerate(arms):
        draw.text((LABEL + GAP + column * (cell + GAP), GAP), _fitting(arm, cell, font), fill=INK, font=font)
    for row, prompt in enumerate(prompts):
        top = head + GAP + row * (cell + GAP)
        lines = _wrapped(prompt, LABEL - 2 * GAP, cell // LINE, font)
        draw.multiline_text((GAP, top), "\n".join(lines), fill=INK, font=font, spacing=LINE - FONT)
    return sheet


def _tile(picture: Image.Image | None, cell: int) -> Image.Image:
    tile = Image.new("RGB", (cell, cell), EMPTY if picture is None else PAPER)
    if picture is not None:
        factor = cell / max(picture.size)
        width, height = (max(1, round(side * factor)) for side in picture.size)
        scaled = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        tile.paste(scaled, ((cell - width) // 2, (cell - height) // 2))
    return tile


def _wrapped(text: str, width: int, lines: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """Wrap `text` to at most `lines` lines of `width` pixels, with an ellipsis where it does not fit."""
    letters = max(1, int(width / font.getlength("n")))  # "n" is about as wide as letters are on average
    wrapped = textwrap.wrap(text, letters, max_lines=max(1, lines), placeholder=" …") or [""]
    return [_fitting(line, width, font) for line in wrapped]


def _fitting(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Cut `text` to `width` pixels, with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
