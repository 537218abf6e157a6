"""Lines and rows of files that people write."""

import csv
import io
import random

import pytest

from components.text_files import cells_fault, csv_rows, read_lines, split_lines


def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path):
    text = "one\u2028line\r\n\r\nanother\u0085\x0b\x0c\x1c\u2029\rline\n last "
    lines = ["one\u2028line", "", "another\u0085\x0b\x0c\x1c\u2029\rline", " last "]
    assert split_lines(text) == split_lines(text + "\n") == lines
    assert split_lines("") == []
    (tmp_path / "x.txt").write_text(text, encoding="utf-8-sig", newline="")
    assert read_lines(tmp_path / "x.txt") == lines
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UnicodeDecodeError):
        read_lines(tmp_path / "x.txt")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_rows_are_read_back_as_any_program_writes_them(delimiter):
    source = random.Random(0)
    rows = [
        ["".join(source.choices('ab"\n\r,;\t ', k=source.randrange(6))).strip(" ") for _ in range(3)]
        for _ in range(300)
    ]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    assert [cells for _, cells in csv_rows(io.StringIO(text.getvalue(), newline=""), delimiter)] == rows


def test_a_row_has_the_number_of_its_first_line():
    assert list(csv_rows(['a,"b\n', 'c"\n', "\n", 'd, "e, f"\n'])) == [(1, ["a", "b\nc"]), (4, ["d", "e, f"])]


@pytest.mark.parametrize("text", ['x\n"a\nb\nc\n', 'x\n"a\nb"c\nd\n', 'x\n"a\nb,"c"\n'])
def test_a_quote_too_many_is_an_error_at_the_line_where_its_row_begins(text):
    with pytest.raises(
        csv.Error, match=r"^line 2 is not CSV \(.*\): a cell that begins with a quote must end with one"
    ):
        list(csv_rows(io.StringIO(text, newline="")))


def test_empty_cells_may_stand_behind_the_last_column():
    assert [cells_fault(cells, 2, ";") for cells in (["a", "b"], ["a", "b", "", ""], ["", ""])] == [None] * 3
    assert (
        cells_fault(["a", "b", "", "c"], 2, ";") == "has 4 cells, the first line 2; a cell that holds ';' needs quotes"
    )
    assert cells_fault(["a"], 2, ";") == "has 1 cells, the first line 2; a cell that holds ';' needs quotes"
