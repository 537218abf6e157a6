import numpy as np
import pytest
from PIL import Image

from components.errors import DataError
from components.evaluation.figures import save_png
from components.evaluation.grids import GAP, LABEL, LINE, side_by_side

CELL = 60
RED, GREEN, BLUE, GREY, WHITE = (200, 0, 0), (0, 200, 0), (0, 0, 200), (235, 235, 235), (255, 255, 255)


def filled(colour: tuple[int, int, int], size: tuple[int, int] = (30, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def cell(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = LINE + 2 * GAP + row * (CELL + GAP), LABEL + GAP + column * (CELL + GAP)
    return sheet[top : top + CELL, left : left + CELL]


def sheet_of(prompts: list[str], arms: list[str], rows: list[list[Image.Image | None]]) -> np.ndarray:
    return np.array(side_by_side(prompts, arms, rows, CELL))


def test_every_picture_stands_in_the_row_of_its_prompt_and_the_column_of_its_arm():
    sheet = sheet_of(["one", "two"], ["base", "taca"], [[filled(RED), filled(GREEN)], [filled(BLUE), None]])
    assert sheet.shape == (LINE + 2 * GAP + 2 * (CELL + GAP), LABEL + GAP + 2 * (CELL + GAP), 3)
    for row, column, colour in ((0, 0, RED), (0, 1, GREEN), (1, 0, BLUE), (1, 1, GREY)):
        assert (cell(sheet, row, column) == colour).all()


def test_a_picture_of_another_shape_is_fitted_and_centred():
    wide = cell(sheet_of(["one"], ["base"], [[filled(RED, (20, 10))]]), 0, 0)
    assert (wide[CELL // 4 : -CELL // 4] == RED).all()
    assert (wide[: CELL // 4] == WHITE).all()
    assert (wide[-CELL // 4 :] == WHITE).all()


def test_prompts_and_arms_are_written_beside_their_pictures_and_never_over_them():
    rows = [[filled(RED), filled(RED)], [filled(RED), filled(RED)]]
    sheet = sheet_of(["", "a very long prompt " * 40], ["base", "an arm with a very long name"], rows)
    top, second = LINE + 2 * GAP, LINE + 2 * GAP + CELL + GAP
    assert (sheet[top : top + CELL, :LABEL] == WHITE).all()
    label = sheet[second : second + CELL, : LABEL - GAP]
    assert (label.min(-1) < 128).sum() > 100  # ink
    assert (sheet[second + CELL :, :LABEL] == WHITE).all()
    head = sheet[:LINE, LABEL:]
    for column in (0, 1):
        left = GAP + column * (CELL + GAP)
        assert (head[:, left : left + CELL].min(-1) < 128).any()
        assert (head[:, left + CELL : left + CELL + GAP] == WHITE).all()
    assert all((cell(sheet, row, column) == RED).all() for row in (0, 1) for column in (0, 1))


def test_the_same_grid_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        save_png(np.array(side_by_side(["a red bench"], ["base"], [[filled(RED)]], CELL)), tmp_path / "new" / name)
    assert (tmp_path / "new/a.png").read_bytes() == (tmp_path / "new/b.png").read_bytes()


@pytest.mark.parametrize(
    ("prompts", "arms", "rows"), [([], ["a"], []), (["one"], [], [[]]), (["one"], ["a"], [[None] * 2])]
)
def test_a_grid_whose_labels_do_not_fit_is_refused(prompts, arms, rows):
    with pytest.raises(DataError, match="a grid needs"):
        side_by_side(prompts, arms, rows)
