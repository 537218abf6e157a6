from datetime import date

import pyarrow as pa
import pytest

from components.errors import ParameterError
from components.search.filters import Filter, filterable

ROWS = [
    {"id": "a", "camera": 3, "width": 64.5, "night": True, "caption": "A red Coat", "identity": "17", "day": date(2024, 1, 2)},
    {"id": "b", "camera": 4, "width": 32.0, "night": False, "caption": "blue coat = warm", "identity": None, "day": None},
    {"id": "c", "camera": None, "width": None, "night": None, "caption": None, "identity": "", "day": date(2025, 1, 2)},
    {"id": "d", "camera": 30, "width": 64.0, "night": True, "caption": "grün|gelb", "identity": "18", "day": date(2023, 1, 2)},
]  # fmt: skip
TABLE = pa.Table.from_pylist(ROWS).append_column("files", pa.array([["x"], [], ["y"], ["z"]]))


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        (["camera=3"], "a"),
        (["camera!=3"], "bcd"),
        (["camera=3|30"], "ad"),
        (["camera!=3|30"], "bc"),
        (["camera>3"], "bd"),
        (["camera>=3", "camera<30"], "ab"),
        (["camera>3.5"], "bd"),
        (["width<=64"], "bd"),
        (["width=64.5"], "a"),
        (["night=true"], "ad"),
        (["caption~COAT"], "ab"),
        (["caption!~coat"], "cd"),
        (["caption~GRÜN"], "d"),
        (["caption=blue coat = warm"], "b"),
        (["camera~3"], "ad"),
        (["identity="], "bc"),
        (["identity!="], "ad"),
        (["identity!=17"], "bcd"),
        (["day>=2024-01-01"], "ac"),
        ([" camera = 3 "], "a"),
        (["camera=99"], ""),
        ([], "abcd"),
    ],
)
def test_a_filter_keeps_the_rows_that_meet_it(conditions, found):
    mask = Filter.parse(*conditions).mask(TABLE)
    assert "".join(row["id"] for row, kept in zip(ROWS, mask, strict=True) if kept) == found


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("camera", "not a column, an operator and a value"),
        ("=3", "not a column, an operator and a value"),
        ("camera>", "a value after > is needed"),
        ("camra=3", "no column 'camra', but id, camera, width, night, caption, identity, day; did you mean camera"),
        ("files=x", "no column 'files'"),
        ("camera=three", "'three' cannot be compared with a column of type int64"),
        ("night=maybe", "'maybe' cannot be compared with a column of type bool"),
    ],
)
def test_a_filter_that_does_not_fit_is_one_line(condition, said):
    with pytest.raises(ParameterError, match=said):
        Filter.parse(condition).mask(TABLE)


def test_nan_is_nothing_known_also_in_a_gallery_that_holds_it():
    table = pa.table({"width": [3.5, float("nan"), None]})
    found = [Filter.parse(text).mask(table).tolist() for text in ("width=", "width!=", "width!=3.5", "width<9")]
    assert found == [[False, True, True], [True, False, False], [False, True, True], [True, False, False]]


def test_lists_are_no_columns_to_filter_by():
    assert filterable(TABLE) == ["id", "camera", "width", "night", "caption", "identity", "day"]
