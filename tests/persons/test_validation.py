import json
import shutil
from collections import Counter

import pytest

from components.errors import DataError, ParameterError
from components.persons.published.inventory import take_inventory
from components.persons.published.readers import find_dataset, read_listing
from components.persons.published.validation import REASONS, ValidatedRecords, validate_records
from components.persons.published.validation_report import recorded_splits
from components.persons.shards import write_records


def entry(name, identity=1, split="train", **changes):
    captions = ["A man.", "A man in red."]
    return {"split": split, "captions": captions, "file_path": name, "processed_tokens": [], "id": identity, **changes}


def validate(folder, entries, **settings):
    folder.annotate(entries)
    return validate_records(read_listing(folder.path), **settings)


def bad_records(folder):
    """One record for every kind of fault: (entry, reason)."""
    folder.picture("good.png", 0)
    folder.picture("twin.png", 1)
    shutil.copy(folder.path / "imgs/twin.png", folder.path / "imgs/copy.png")
    (folder.path / "imgs/empty.png").write_bytes(b"")
    (folder.path / "imgs/text.png").write_bytes(b"not a picture")
    whole = (folder.path / "imgs" / folder.picture("cut.png", 2)).read_bytes()
    (folder.path / "imgs/cut.png").write_bytes(whole[: len(whole) // 2])
    (folder.path / "imgs/link.png").symlink_to(folder.path / "gone.png")
    for name in "abcdefghi":
        folder.picture(f"{name}.png", ord(name))
    return [
        (entry("nowhere.png"), "missing file"),
        (entry(""), "missing file"),
        (entry("empty.png"), "corrupt image"),
        (entry("text.png"), "corrupt image"),
        (entry("cut.png"), "corrupt image"),
        (entry("a.png", captions=["...", " \t"]), "empty caption"),
        (entry("c.png", captions=[]), "empty caption"),
        (entry("h.png", captions=[None, {"error": 429}, float("nan"), "NULL"]), "empty caption"),
        (entry("i.png", captions=["A man \ud83d in red."]), "caption not encodable"),
        (entry("b.png", split="dev"), "unknown split"),
        (entry("/secret.png"), "path leaves the folder"),
        (entry("../../outside/secret.png"), "path leaves the folder"),
        (entry("..\\..\\elsewhere\\secret.png"), "path leaves the folder"),
        (entry("C:\\secret.png"), "path leaves the folder"),
        (entry("link.png"), "missing file"),
        (entry("x" * 300), "missing file"),
        (entry("a\ud83d.png"), "missing file"),
        (entry(None, 9), "missing file"),
        (entry("copy.png"), "duplicate"),
        (entry("d.png", 1, "test"), "identity in two splits"),
        (entry("e.png", wrong_words=[[0], [9]]), "false word positions"),
        (entry("f.png", wrong_words=[[0]]), "false word positions"),
    ]


def test_every_kind_of_bad_record_is_found_with_its_reason(folder):
    faults = bad_records(folder)
    good = [entry("good.png"), entry("twin.png", 2, "val"), entry("g.png", 3, "test", wrong_words=[[0, 1], []])]
    records, report = validate(folder, good + [fault for fault, _ in faults], max_bad_fraction=1.0)
    found = [(bad["index"], bad["reason"]) for bad in report.bad]
    assert found == [(i, reason) for i, (_, reason) in enumerate(faults, start=len(good))]
    assert {reason for _, reason in faults} == set(REASONS)
    assert [record.identity for record in records] == [1, 2, 3]
    assert (report.total, report.good) == (len(faults) + 3, 3)
    assert report.counts == Counter(reason for _, reason in faults)
    assert {bad["left_out"] for bad in report.bad} == {"picture"}
    assert json.loads(json.dumps(report.to_json()))["counts"] == report.counts
    assert not any("\n" in line for line in report.summary())


def test_a_clean_set_has_an_empty_report(folder):
    entries = [entry(folder.picture(f"{i}.png", i), i) for i in range(4)]
    records, report = validate(folder, entries)
    assert len(records) == 4
    counts = {"pictures": 4, "captions": 8}
    splits = {"train": {"listed": counts, "kept": counts}}
    assert report.to_json() == {"total": 4, "good": 4, "counts": {}, "bad": [], "joined": {}, "splits": splits}
    assert report.summary() == []


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


def test_pictures_behind_links_are_good_for_the_doctor_and_for_prepare(folder, tmp_path):
    """A link in place of the picture folder, of a folder in it, and of a picture, as on shared disks and with DVC or git-annex."""
    names = [folder.picture(f"cam_{i}/{i}.png", i) for i in range(3)]
    (folder.path / "imgs/cam_0").rename(tmp_path / "cam_0")
    (folder.path / "imgs/cam_0").symlink_to(tmp_path / "cam_0")
    (folder.path / "imgs/cam_1/1.png").rename(tmp_path / "content")
    (folder.path / "imgs/cam_1/1.png").symlink_to(tmp_path / "content")
    (folder.path / "imgs").rename(tmp_path / "shared")
    (folder.path / "imgs").symlink_to(tmp_path / "shared")
    records, report = validate(folder, [entry(name, i) for i, name in enumerate(names)])
    assert (len(records), report.bad) == (3, ())
    assert take_inventory(find_dataset(folder.path)).missing == {}


def test_the_bad_captions_of_a_picture_are_left_out_and_the_picture_stays(folder):
    captions = ["A man.", None, "A man in red.", "\u200b", "Half \udc00 of it.", "一个穿红衣的男人"]
    wrong = [[0], [], [3], [], [], [0]]
    entries = [entry(folder.picture(f"{i}.png", i), i, "test") for i in range(2)]
    entries[0] |= {"captions": captions, "wrong_words": wrong}
    records, report = validate(folder, entries, max_bad_fraction=0.5)
    assert records[0].captions == ("A man.", "A man in red.", "一个穿红衣的男人")
    assert records[0].wrong_words == ((0,), (3,), (0,))
    (bad,) = report.bad
    assert (bad["left_out"], bad["reason"]) == ("caption", "empty caption")
    assert "caption 2 of 6" in bad["detail"]
    assert report.left_out == {"test": {"pictures": 0, "captions": 3}}
    assert "the test split lacks 3 captions" in report.summary()[1]
    assert take_inventory(find_dataset(folder.path)).bad_captions == 3
    with pytest.raises(DataError, match="1 of 2 records are bad"):  # a captioner that failed often is not passed over
        validate(folder, entries, max_bad_fraction=0.4)


def test_the_captions_of_a_picture_that_is_listed_again_are_joined(folder):
    for name in ("a.png", "b.png"):
        folder.picture(name, ord(name[0]))
    listed = [("a.png", "One."), ("b.png", "Two."), ("./a.png", "Three."), ("b.png", "Four."), ("a.png", "Five.")]
    entries = [entry(name, ord(name[-5]), "test", captions=[caption]) for name, caption in listed]
    entries[2]["wrong_words"] = [[0]]
    records, report = validate(folder, entries)
    assert [record.captions for record in records] == [("One.", "Three.", "Five."), ("Two.", "Four.")]
    assert [record.wrong_words for record in records] == [((), (0,), ()), ()]
    assert (report.good, report.joined, report.left_out) == (2, {"listed again": 3}, {})
    assert report.splits["test"].kept == {"pictures": 2, "captions": 5}


@pytest.mark.parametrize("split", ["val", "test"])
def test_equal_files_stay_in_a_gallery_with_their_own_identities(folder, split):
    entries = [entry(folder.picture(f"{i}.png", 0), i // 2, split) for i in range(4)]
    entries.append(entry("0.png", 7, split))  # the same file as another person
    records, report = validate(folder, entries)
    assert [record.identity for record in records] == [0, 0, 1, 1, 7]
    assert (report.bad, report.left_out) == ((), {})


def test_equal_files_of_train_become_one_identity(folder):
    """As of two people they would be each other's negatives."""
    entries = [entry(folder.picture(f"{i}.png", i % 2), i) for i in range(4)]
    records, report = validate(folder, entries)
    assert [record.identity for record in records] == [0, 1, 0, 1]
    assert report.joined == {"same picture of another identity": 2}


def test_a_picture_in_two_splits_leaves_the_one_that_is_trained_on(folder):
    entries = [entry(folder.picture(f"{i}.png", i // 3), i, ("train", "val", "test")[i % 3]) for i in range(6)]
    entries[5]["captions"] = []  # not in the test split after all
    records, report = validate(folder, entries, max_bad_fraction=1.0)
    assert [(record.identity, record.split) for record in records] == [(2, "test"), (4, "val")]
    assert report.counts == {"duplicate": 3, "empty caption": 1}
    assert "'imgs/2.png' (identity 2, test)" in report.bad[1]["detail"]


@pytest.mark.parametrize(
    ("on_disk", "listed"),
    [
        ("cam_0/a.png", "cam_0\\a.png"),
        ("cam_0/cafe\u0301.png", "cam_0/caf\u00e9.png"),
        ("cafe\u0301/caf\u00e9.png", "caf\u00e9/cafe\u0301.png"),
        ("Cam_0/A.PNG", "cam_0\\a.png"),
        ("a b\u00e4 #1.png", "a b\u00e4 #1.png"),
    ],
)
def test_names_are_found_as_windows_and_a_mac_spell_them(folder, on_disk, listed):
    folder.picture(on_disk, 0)
    (record,), _ = validate(folder, [entry(listed)])
    assert record.image_path == str(folder.path / "imgs" / on_disk)
    assert take_inventory(find_dataset(folder.path)).missing == {}


def test_a_name_that_two_files_could_have_is_not_guessed(folder):
    for i, name in enumerate(("A.png", "a.PNG")):
        folder.picture(name, i)
    (folder.path / "imgs" / "a.PNG").rename(folder.path / "imgs" / "a.png")
    with pytest.raises(DataError, match="no such file"):
        validate(folder, [entry("A.PNG")])


def test_names_on_the_disk_in_another_encoding_are_named_as_the_cause(folder):
    path = folder.path / "imgs" / folder.picture("cam_0/a.png", 0)
    path.rename(path.with_name("男.png".encode("gbk").decode("utf-8", "surrogateescape")))
    with pytest.raises(DataError) as error:
        validate(folder, [entry("cam_0/男.png")])
    assert r"names in cam_0 are not UTF-8, such as b'\xc4\xd0.png': convert them" in str(error.value)


def test_what_an_earlier_prepare_left_out_is_still_known(folder, tmp_path):
    entries = [entry(folder.picture(f"{i}.png", i), i, "test") for i in range(3)]
    entries[0]["captions"] = [None]
    folder.annotate(entries)
    first = ValidatedRecords(find_dataset(folder.path), max_bad_fraction=0.5)
    write_records(first, tmp_path / "prepared")
    first.report.write(tmp_path / "prepared")
    again = ValidatedRecords(find_dataset(tmp_path / "prepared"))
    assert len(list(again)) == 2
    assert again.report.left_out == {"test": {"pictures": 1, "captions": 1}}
    assert recorded_splits(tmp_path / "prepared")["test"].left_out == {"pictures": 1, "captions": 1}
    (tmp_path / "prepared/validation.json").write_text("[]")
    with pytest.raises(DataError, match="prepare the dataset again"):
        list(again)


def test_an_impossible_fraction_is_refused(folder):
    with pytest.raises(ParameterError, match="2"):
        validate(folder, [entry(folder.picture("a.png", 0))], max_bad_fraction=2.0)
