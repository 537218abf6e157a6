import json
import shutil
from collections import Counter

import pytest

from components.errors import DataError, ParameterError
from components.persons.published.readers import read_listing
from components.persons.published.validation import REASONS, validate_records


def entry(name, identity=1, split="train", **changes):
    captions = ["A man.", "A man in red."]
    return {"split": split, "captions": captions, "file_path": name, "processed_tokens": [], "id": identity, **changes}


def validate(folder, entries, **settings):
    folder.annotate(entries)
    return validate_records(read_listing(folder.path), **settings)


def bad_records(folder, outside):
    """One record for every kind of fault: (entry, reason)."""
    folder.picture("good.png", 0)
    folder.picture("twin.png", 1)
    shutil.copy(folder.path / "imgs/good.png", folder.path / "imgs/copy.png")
    (folder.path / "imgs/empty.png").write_bytes(b"")
    (folder.path / "imgs/text.png").write_bytes(b"not a picture")
    whole = (folder.path / "imgs" / folder.picture("cut.png", 2)).read_bytes()
    (folder.path / "imgs/cut.png").write_bytes(whole[: len(whole) // 2])
    outside.mkdir()
    (outside / "secret.png").write_bytes(whole)
    (folder.path / "imgs/link.png").symlink_to(outside / "secret.png")
    (folder.path / "imgs/linked").symlink_to(outside)
    for name in ("a", "b", "c", "d", "e", "f", "g"):
        folder.picture(f"{name}.png", ord(name))
    return [
        (entry("nowhere.png"), "missing file"),
        (entry(""), "missing file"),
        (entry("empty.png"), "corrupt image"),
        (entry("text.png"), "corrupt image"),
        (entry("cut.png"), "corrupt image"),
        (entry("a.png", captions=["A man.", " \t"]), "empty caption"),
        (entry("a.png", captions=[]), "empty caption"),
        (entry("b.png", split="dev"), "unknown split"),
        (entry(str(outside / "secret.png")), "path leaves the folder"),
        (entry("../../outside/secret.png"), "path leaves the folder"),
        (entry("..\\..\\outside\\secret.png"), "path leaves the folder"),
        (entry("C:\\secret.png"), "path leaves the folder"),
        (entry("link.png"), "path leaves the folder"),
        (entry("linked/secret.png"), "path leaves the folder"),
        (entry("good.png"), "duplicate"),
        (entry("./good.png"), "duplicate"),
        (entry("copy.png"), "duplicate"),
        (entry("d.png", 1, "test"), "identity in two splits"),
        (entry("e.png", wrong_words=[[0], [9]]), "false word positions"),
        (entry("f.png", wrong_words=[[0]]), "false word positions"),
    ]


def test_every_kind_of_bad_record_is_found_with_its_reason(folder, tmp_path):
    faults = bad_records(folder, tmp_path / "outside")
    good = [entry("good.png"), entry("twin.png", 2, "val"), entry("g.png", 3, "test", wrong_words=[[0, 1], []])]
    records, report = validate(folder, good + [fault for fault, _ in faults], max_bad_fraction=1.0)
    found = [(bad["index"], bad["reason"]) for bad in report.bad]
    assert found == [(i, reason) for i, (_, reason) in enumerate(faults, start=len(good))]
    assert {reason for _, reason in faults} == set(REASONS)
    assert [record.identity for record in records] == [1, 2, 3]
    assert (report.total, report.good) == (len(faults) + 3, 3)
    assert report.counts == Counter(reason for _, reason in faults)
    assert json.loads(json.dumps(report.to_json()))["counts"] == report.counts


def test_a_clean_set_has_an_empty_report(folder):
    entries = [entry(folder.picture(f"{i}.png", i), i) for i in range(4)]
    records, report = validate(folder, entries)
    assert len(records) == 4
    assert report.to_json() == {"total": 4, "good": 4, "counts": {}, "bad": []}


def test_an_identity_in_two_splits_stays_where_it_has_most_pictures(folder):
    entries = [entry(folder.picture(f"{i}.png", i), 5, "test" if i else "train") for i in range(3)]
    records, report = validate(folder, entries, max_bad_fraction=0.5)
    assert [record.split for record in records] == ["test", "test"]
    assert report.counts == {"identity in two splits": 1}


def test_the_allowed_fraction_decides_and_the_error_is_one_line(folder):
    entries = [entry(folder.picture(f"{i}.png", i), i) for i in range(3)] + [entry("nowhere.png", 9)]
    assert len(validate(folder, entries, max_bad_fraction=0.25)[0]) == 3
    with pytest.raises(DataError) as error:
        validate(folder, entries, max_bad_fraction=0.24)
    assert "1 of 4 records are bad (1 missing file)" in str(error.value)
    assert "nowhere.png" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_without_any_good_record_is_refused_whatever_is_allowed(folder):
    with pytest.raises(DataError, match="1 of 1"):
        validate(folder, [entry("nowhere.png")], max_bad_fraction=1.0)


def test_a_link_inside_the_folder_is_fine(folder):
    folder.picture("real.png", 0)
    (folder.path / "imgs/link.png").symlink_to("real.png")
    records, _ = validate(folder, [entry("link.png")])
    assert records[0].image_path.endswith("real.png")


def test_an_impossible_fraction_is_refused(folder):
    with pytest.raises(ParameterError, match="2"):
        validate(folder, [entry(folder.picture("a.png", 0))], max_bad_fraction=2.0)
