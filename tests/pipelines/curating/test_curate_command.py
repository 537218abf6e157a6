"""`curate` as a person types it, on a folder of pictures."""

import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.errors import DataError
from components.persons.published.readers import find_dataset, read_dataset
from components.persons.published.validation import ValidatedRecords
from components.persons.published.validation_report import SplitCounts, recorded_splits
from components.persons.shards import PersonDataset
from pipelines.__main__ import main


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    from components.evaluation.probe.model import AttributeProbe
    from components.persons.drawn.attributes import ATTRIBUTES

    folder = tmp_path_factory.mktemp("probe")
    AttributeProbe(ATTRIBUTES, height=64, width=32, channels=8).save(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Twelve scenes of blocks, of which two are nearly the same, one too small, and a file that is no picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(12):
        small = Image.fromarray(random.integers(0, 256, (6, 4, 3), dtype=np.uint8))
        small.resize((40, 100), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    Image.open(folder / "03.png").resize((60, 150)).save(folder / "03-again.jpg", quality=80)
    Image.new("RGB", (20, 50)).save(folder / "tiny.png")
    (folder / "torn.png").write_bytes(b"torn")
    return folder


def curate(*arguments):
    return main(["curate", *map(str, arguments)])


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_folder_of_pictures_becomes_a_dataset_that_prepare_reads_with_a_reason_for_every_drop(
    pictures, probe, tmp_path, capsys
):
    out = tmp_path / "out"
    assert (
        curate(pictures, "--output", out, "--short-side", 32, "--probe", probe, "--near-duplicates", 4, "--batch", 5)
        == 0
    )
    assert "12 of 15 candidates kept" in capsys.readouterr().out
    decisions = {row["address"]: row for row in pq.read_table(out / "decisions.parquet").to_pylist()}
    dropped = {address: row["reason"] for address, row in decisions.items() if row["reason"] != "kept"}
    assert dropped.pop("torn.png") == "cannot be decoded"
    assert dropped.pop("tiny.png") == "too small"
    assert list(dropped.values()) == ["near duplicate"]
    assert set(dropped) <= {"03.png", "03-again.jpg"}
    dataset = PersonDataset(out)
    for address, row in decisions.items():
        if row["reason"] == "kept":
            assert dataset.image_bytes(row["image_id"]) == (pictures / address).read_bytes()
    records = read_dataset(out)
    assert [len(record.captions) for record in records] == [2] * 12
    assert sorted(record.identity for record in records) == list(range(12))
    assert not (out / "working").exists()


def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_bytes(pictures, probe, tmp_path, monkeypatch, capsys):
    from components.persons.curation.captioners import GrammarCaptioner

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--short-side", 32, "--probe", probe, "--batch", 4)
    assert curate(pictures, "--output", whole, *options) == 0
    asked = []
    real = GrammarCaptioner.caption

    def die(self, seen, numbers):
        asked.extend(numbers)
        if len(asked) > 8:
            raise KeyboardInterrupt
        return real(self, seen, numbers)

    monkeypatch.setattr(GrammarCaptioner, "caption", die)
    assert curate(pictures, "--output", killed, *options) == 130
    lines = killed / "working/candidates.jsonl"
    assert len(lines.read_text().splitlines()) == 8
    lines.write_text(lines.read_text() + '{"address": "04.p')  # cut off by a kill
    assert curate(pictures, "--output", killed, *options, "--seed", 1) == 2
    assert "other seed" in capsys.readouterr().err

    def count(self, seen, numbers):
        asked.extend(numbers)
        return real(self, seen, numbers)

    asked.clear()
    monkeypatch.setattr(GrammarCaptioner, "caption", count)
    assert curate(pictures, "--output", killed, *options) == 0
    assert len(asked) == 13 - 8
    assert contents(killed) == contents(whole)


def test_pictures_that_changed_since_are_noticed(pictures, probe, tmp_path, capsys):
    out = tmp_path / "out"
    options = (pictures, "--output", out, "--short-side", 32, "--probe", probe)
    assert curate(*options) == 0
    finished = contents(out)
    assert curate(*options) == 2
    assert "is not empty" in capsys.readouterr().err
    assert contents(out) == finished
    shutil.rmtree(out)
    (out / "working").mkdir(parents=True)
    (out / "working/candidates.jsonl").write_text(json.dumps({"address": "gone.png", "candidates": []}) + "\n")
    assert curate(*options) == 3
    assert "pictures changed" in capsys.readouterr().err


def test_a_manifest_keeps_its_captions_identities_and_splits(pictures, tmp_path):
    manifest = pictures / "m.csv"
    manifest.write_text(
        "image_path,caption,identity,split\n00.png,a man,5,test\n01.png,a woman,6,train\n00.png,he,5,test\ntiny.png,x,7,train\n"
    )
    assert curate(manifest, "--output", tmp_path / "out", "--short-side", 32) == 0
    rows = [(row["identity"], row["caption"], row["split"]) for row in PersonDataset(tmp_path / "out").rows()]
    assert rows == [(5, "a man", "test"), (5, "he", "test"), (6, "a woman", "train")]


def test_what_curate_keeps_prepare_reads(pictures, tmp_path):
    """Also where files are equal, within a split and across splits, and where a person is in two splits."""
    for copy, name in (("copy.png", "00.png"), ("copy of test.png", "01.png"), ("copy of val.png", "02.png")):
        shutil.copy(pictures / name, pictures / copy)
    Image.new("RGB", (1, 4)).save(pictures / "line.png")
    rows = {
        "00.png": "a man,0,train", "copy.png": "he,7,train", "01.png": "a woman,1,test", "copy of test.png": "she,11,train",
        "02.png": "a boy,2,val", "copy of val.png": "b,12,train", "03.png": "c,3,train", "04.png": "d,3,train",
        "05.png": "e,3,test", "06.png": "f,6,training", "line.png": "g,9,train", "07.png": "h,8,val",
    }  # fmt: skip
    manifest = pictures / "m.csv"
    manifest.write_text("\n".join(("image_path,caption,identity,split", *(",".join(row) for row in rows.items()), "")))
    assert curate(manifest, "--output", tmp_path / "mine", "--short-side", 0, "--aspect", "any") == 0
    decisions = pq.read_table(tmp_path / "mine/decisions.parquet").to_pylist()
    assert {row["address"]: row["reason"] for row in decisions if row["reason"] != "kept"} == {
        "copy.png": "equal to another picture",
        "copy of test.png": "equal to another picture",
        "copy of val.png": "equal to another picture",
        "05.png": "person of another split",
        "06.png": "unknown split",
        "line.png": "too small",
    }
    records = read_dataset(tmp_path / "mine", max_bad_fraction=0)
    assert [(record.identity, record.split, record.captions) for record in records] == [
        (0, "train", ("a man", "he")), (1, "test", ("a woman",)), (2, "val", ("a boy",)), (3, "train", ("c",)),
        (3, "train", ("d",)), (8, "val", ("h",)),
    ]  # fmt: skip


def test_a_test_picture_that_is_listed_once_per_caption_is_one_of_the_gallery(pictures, tmp_path):
    manifest = [
        {"split": split, "file_path": name, "id": identity, "captions": [caption]}
        for name, identity, split, caption in (
            ("00.png", 0, "train", "a man"), ("01.png", 1, "test", "a woman"), ("./01.png", 1, "test", "she walks"),
            ("00.png", 0, "train", "he"), ("01.png", 1, "test", "she walks"),
        )
    ]  # fmt: skip
    (pictures / "imgs").symlink_to(".")
    (pictures / "reid_raw.json").write_text(json.dumps(manifest))
    assert curate(pictures / "reid_raw.json", "--output", tmp_path / "mine", "--short-side", 32) == 0
    expected = [("train", ("a man", "he")), ("test", ("a woman", "she walks", "she walks"))]
    for folder in (pictures, tmp_path / "mine"):  # as prepare reads the source, and what is curated
        assert [(record.split, record.captions) for record in read_dataset(folder)] == expected
    assert {name: counts.left_out for name, counts in recorded_splits(tmp_path / "mine").items()} == {
        "test": {"pictures": 0, "captions": 0},
        "train": {"pictures": 0, "captions": 0},
    }


def test_what_the_test_split_lost_is_marked_in_all_that_is_made_of_it(pictures, probe, tmp_path, capsys):
    rows = [
        "00.png,a man,0,train",
        "01.png,a woman,1,test",
        "01.png,,1,test",
        "tiny.png,she,2,test",
        "02.png,he,3,test",
    ]
    (pictures / "m.csv").write_text("\n".join(("image_path,caption,identity,split", *rows, "")))
    assert curate(pictures / "m.csv", "--output", tmp_path / "one", "--short-side", 32) == 0
    said = "the test split lacks 1 pictures, 2 captions: metrics on it do not compare with published ones"
    assert said in capsys.readouterr().out
    counts = recorded_splits(tmp_path / "one")
    assert counts["test"] == SplitCounts({"pictures": 3, "captions": 4}, {"pictures": 2, "captions": 2})
    assert counts["train"] == SplitCounts({"pictures": 1, "captions": 1}, {"pictures": 1, "captions": 1})
    # Curated again, with captions written anew: none of those listed is left.
    assert curate(tmp_path / "one", "--output", tmp_path / "two", "--short-side", 32, "--probe", probe) == 0
    prepared = ValidatedRecords(find_dataset(tmp_path / "two"))
    assert [len(record.captions) for record in prepared] == [2] * 3
    assert prepared.report.left_out == {"test": {"pictures": 1, "captions": 4}, "train": {"pictures": 0, "captions": 1}}


def test_plain_pictures_without_captions_are_kept_until_they_have_some(pictures, probe, tmp_path, capsys):
    (pictures / "photo.heic").write_bytes(b"HEIC")
    assert curate(pictures, "--output", tmp_path / "plain", "--short-side", 32) == 0
    printed = capsys.readouterr().out
    assert "13 of 15 candidates kept" in printed
    assert "files of other kinds, not read: 1 .heic" in printed
    assert "no kept picture has a caption, which prepare needs" in printed
    assert PersonDataset(tmp_path / "plain").rows().column("caption") == [""] * 13
    with pytest.raises(DataError, match="empty caption"):
        read_dataset(tmp_path / "plain")
    assert curate(tmp_path / "plain", "--output", tmp_path / "mine", "--short-side", 32, "--probe", probe) == 0
    assert "no kept picture has a caption" not in capsys.readouterr().out
    assert [len(record.captions) for record in read_dataset(tmp_path / "mine")] == [2] * 13
    assert recorded_splits(tmp_path / "mine")["train"].left_out == {"pictures": 2, "captions": 0}


def test_captions_in_text_files_beside_the_pictures_are_read(pictures, tmp_path):
    (pictures / "00.txt").write_text("a man in red\n\nhe walks\n", encoding="utf-8-sig")
    assert curate(pictures, "--output", tmp_path / "mine", "--short-side", 32) == 0
    assert [record.captions for record in read_dataset(tmp_path / "mine")] == [("a man in red", "he walks")]
    (pictures / "00.txt").write_bytes(b"caf\xe9")
    assert curate(pictures, "--output", tmp_path / "other", "--short-side", 32) == 3


def test_names_in_other_encodings_are_kept_and_shown_with_question_marks(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (4, 8)).save(os.fsencode(folder) + b"/caf\xe9.png", "PNG")
    assert curate(folder, "--output", tmp_path / "mine", "--short-side", 4, "--aspect", "any") == 0
    assert pq.read_table(tmp_path / "mine/decisions.parquet")["address"].to_pylist() == ["caf?.png"]


@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        (("--matcher", "nowhere"), 2, "has no captions for --matcher: give --captioner or --probe"),
        (("--crop",), 2, "need --detector"),
        (("--keep-fraction", "0.5"), 2, "need a --matcher"),
        (("--near-duplicates", "16"), 2, "between 0 and 15"),
        (("--detector", "nowhere.pth"), 3, "does not exist"),
        (("--captioner", "a", "--probe", "b"), 2, "give one of them"),
    ],
)
def test_mistakes_cost_one_line(pictures, tmp_path, capsys, extra, code, says):
    assert curate(pictures, "--output", tmp_path / "out", *extra) == code
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1


def test_a_set_of_which_nothing_is_left_says_what_became_of_it(pictures, probe, tmp_path, capsys):
    assert curate(pictures, "--output", tmp_path / "out", "--probe", probe) == 3
    assert "none of 15 candidates is kept (14 too small, 1 cannot be decoded)" in capsys.readouterr().err
