"""Every published layout beyond reid_raw.json's, on files of exactly that form."""

from pathlib import Path

import pytest
from small_datasets import SETS, lay_out, picture, synth, write_json

from components.errors import DataError
from components.persons import read_dataset, read_listing, validate_records
from components.persons.published.layouts import LAYOUTS


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read_by_name_and_by_folder_with_pictures_that_open(tmp_path, name):
    listed = lay_out(tmp_path, name)
    records = read_dataset(name, tmp_path)
    folder = tmp_path / SETS[name][1]
    assert sorted(record.image_path for record in records) == sorted(str(folder / path) for path in listed)
    assert {record.source for record in records} == {name}
    by_folder = read_dataset(SETS[name][1], tmp_path)
    assert [(r.image_path, r.captions, r.identity, r.split) for r in by_folder] == [
        (r.image_path, r.captions, r.identity, r.split) for r in records
    ]


@pytest.mark.parametrize("name", [name for name in SETS if name != "luperson-mllm"])
@pytest.mark.parametrize("path", ["../../secret.png", "{outside}", "a/../../../secret.png"])
def test_no_set_reads_a_picture_outside_its_folder(tmp_path, name, path):
    picture(tmp_path / "secret.png", 99)
    root = tmp_path / "raw"
    inside = lay_out(root, name, 2)[1]
    write, _, prefix, _ = SETS[name]
    write(root, [path.format(outside=tmp_path / "secret.png"), inside.removeprefix(prefix)])
    good, report = validate_records(read_listing(name, root), max_bad_fraction=0.5)
    assert [bad["reason"] for bad in report.bad] == ["path leaves the folder"]
    assert [record.image_path for record in good] == [str(root / SETS[name][1] / inside)]


@pytest.mark.parametrize("key", ["../../secret.png", "/secret.png", "..\\..\\secret.png"])
def test_of_a_path_in_luperson_only_the_last_part_counts(tmp_path, key):
    lay_out(tmp_path, "luperson-mllm")
    for name in ("Ts-qwen", "Td-qwen", "Ts-shikra", "Td-shikra"):
        write_json(tmp_path / f"LUPerson-MLLM/captions/{name}.json", {key: "A man."})
    (record,) = read_listing("luperson-mllm", tmp_path).records
    assert record.image_path == "images/secret.png"


@pytest.mark.parametrize("name", [*SETS, "webperson-5m"])
def test_a_set_that_is_not_there_says_what_goes_where_and_how_to_get_it(tmp_path, name):
    with pytest.raises(DataError) as error:
        read_dataset(name, tmp_path)
    message, layout = str(error.value), LAYOUTS[name]
    assert str(tmp_path / layout.folders[0] / layout.formats[0].files) in message
    assert layout.contents in message
    assert "http" in message or "hf download" in message
    assert "{" not in message
    assert "\n" not in message


def test_the_splits_of_caption_all_follow_from_the_published_identities(tmp_path):
    lay_out(tmp_path, "cuhk-pedes", 6)
    records = read_dataset("cuhk-pedes", tmp_path)
    assert [(r.identity, r.split) for r in records] == [
        (1, "train"), (11003, "train"), (11004, "val"), (12003, "val"), (12004, "test"), (13003, "test"),
    ]  # fmt: skip


@pytest.mark.parametrize("identity", [0, 13004, "x", None])
def test_an_identity_that_cuhk_pedes_has_not_is_refused(tmp_path, identity):
    entry = {"id": identity, "file_path": "CUHK01/a.png", "captions": ["A man."]}
    write_json(tmp_path / "CUHK-PEDES/caption_all.json", [entry])
    with pytest.raises(DataError, match=r"record 0.*: identity .* (in no split of CUHK-PEDES|is not a whole number)"):
        read_listing("cuhk-pedes", tmp_path)


def test_reid_raw_is_preferred_to_caption_all(tmp_path):
    lay_out(tmp_path, "cuhk-pedes", 1)
    raw = [{"split": "val", "captions": ["Raw."], "file_path": "CUHK01/0.png", "processed_tokens": [], "id": 1}]
    write_json(tmp_path / "CUHK-PEDES/reid_raw.json", raw)
    assert [(r.split, r.captions) for r in read_dataset("cuhk-pedes", tmp_path)] == [("val", ("Raw.",))]


def test_the_split_of_icfg_is_the_key_and_not_the_folder(tmp_path):
    lay_out(tmp_path, "icfg-pedes")
    records = read_dataset("icfg-pedes", tmp_path)
    assert {Path(r.image_path).parts[-3] for r in records} == {"test"}
    assert [r.split for r in records] == ["train", "test", "train", "test"]


@pytest.mark.parametrize("file", ["synthpedes-dataset.json", "synthpedes_dataset.json"])
def test_synth_pedes_has_two_or_three_captions_and_its_own_identities(tmp_path, file):
    lay_out(tmp_path, "synth-pedes")
    (tmp_path / "SYNTH-PEDES/synthpedes-dataset.json").unlink()
    synth(tmp_path, [f"Part1/7/{i}.png" for i in range(4)], file)
    records = read_dataset("synth-pedes", tmp_path)
    assert [(r.identity, len(r.captions), r.split, r.attributes) for r in records] == [
        (7, 2, "train", {}), (8, 3, "train", {}), (9, 2, "train", {}), (10, 3, "train", {}),
    ]  # fmt: skip


def test_mals_numbers_its_image_ids_over_all_files(tmp_path):
    lay_out(tmp_path, "mals")
    records = read_dataset("mals", tmp_path)
    assert [r.identity for r in records] == [0, 1, 2, 3]
    assert records[2].captions == ("a person gene_crop/c_g_a_0/1.png",)  # the first of the second file


def test_luperson_takes_captions_by_file_name_and_only_what_they_list(tmp_path):
    lay_out(tmp_path, "luperson-mllm")
    picture(tmp_path / "LUPerson-MLLM/images/not_captioned.png", 50)
    records = read_dataset("luperson-mllm", tmp_path)
    assert [len(r.captions) for r in records] == [2, 4, 2, 4]
    assert records[1].captions == tuple(
        f"{name} of 1.png." for name in ("Ts-qwen", "Td-qwen", "Ts-shikra", "Td-shikra")
    )
    assert [r.identity for r in records] == [0, 1, 2, 3]


def test_luperson_leaves_out_unfilled_templates_where_there_is_another_caption(tmp_path):
    lay_out(tmp_path, "luperson-mllm")
    captions = tmp_path / "LUPerson-MLLM/captions"
    write_json(captions / "Ts-qwen.json", {"x/0.png": "A man in <color> trousers.", "x/1.png": "A <thing>."})
    write_json(captions / "Td-qwen.json", {"y/0.png": "A man.", "y/1.png": "[hair description] and more"})
    for name in ("Ts-shikra", "Td-shikra"):
        write_json(captions / f"{name}.json", {"y/0.png": f"{name}."})
    assert [r.captions for r in read_dataset("luperson-mllm", tmp_path)] == [
        ("A man.", "Ts-shikra.", "Td-shikra."),
        ("A <thing>.", "[hair description] and more"),
    ]


def test_luperson_without_one_of_its_caption_files_is_refused_by_name(tmp_path):
    lay_out(tmp_path, "luperson-mllm")
    (tmp_path / "LUPerson-MLLM/captions/Td-shikra.json").unlink()
    with pytest.raises(DataError, match=r"lacks Td-shikra\.json"):
        read_dataset("luperson-mllm", tmp_path)


def test_two_captions_of_a_web_picture_share_an_identity_and_lose_written_line_breaks(tmp_path):
    lay_out(tmp_path, "webperson-1m")
    records = read_dataset("webperson-1m", tmp_path)
    assert [r.identity for r in records] == [0, 1, 2, 3]
    assert records[0].captions == ("One of a/0.png.", "In yellow/navy, a/0.png.")


@pytest.mark.parametrize(
    ("name", "file", "content", "says"),
    [
        ("mals", "MALS/gene_attrs/g_4x_attrs.json", [{"image": "a", "caption": "x"}], "lacks image_id"),
        ("mals", "MALS/gene_attrs/g_4x_attrs.json", [{"image": "a", "caption": "b", "image_id": None}], "malformed"),
        ("synth-pedes", "SYNTH-PEDES/synthpedes-dataset.json", {"id": 1}, "non-empty list"),
        ("synth-pedes", "SYNTH-PEDES/synthpedes-dataset.json", [{"id": 1, "captions": []}], "lacks file_path"),
        ("synth-pedes", "SYNTH-PEDES/synthpedes-dataset.json", [{"id": "q", "captions": [], "file_path": "a"}], "q"),
        ("luperson-mllm", "LUPerson-MLLM/captions/Ts-qwen.json", ["a"], "mapping from pictures to captions"),
        ("webperson-1m", "WebPerson-1M/100w.json", [{"a.jpg": "text"}], "expected caption1 and caption2"),
        ("webperson-1m", "WebPerson-1M/100w.json", [{"a.jpg": {"caption1": "x"}}], "lacks caption2"),
        ("webperson-1m", "WebPerson-1M/100w.json", [{}], "lists no pictures"),
    ],
)
def test_what_is_malformed_is_refused_in_one_line_that_names_the_file(tmp_path, name, file, content, says):
    lay_out(tmp_path, name)
    write_json(tmp_path / file, content)
    with pytest.raises(DataError) as error:
        read_listing(name, tmp_path)
    assert says in str(error.value)
    assert Path(file).name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_json_file_given_by_path_is_taken_for_what_its_name_says(tmp_path):
    lay_out(tmp_path, "mals")
    lay_out(tmp_path, "rstpreid")
    assert len(read_listing("MALS/gene_attrs/g_c_g_a_0_attrs.json", tmp_path).records) == 4
    assert read_listing("RSTPReid/data_captions.json", tmp_path).folder == tmp_path / "RSTPReid"


def test_files_that_a_mac_hides_in_its_archives_are_no_annotations(tmp_path):
    lay_out(tmp_path, "mals")
    (tmp_path / "MALS/gene_attrs/._g_c_g_a_0_attrs.json").write_bytes(b"\x00\x05\x16\x07")
    assert len(read_listing("mals", tmp_path).records) == 4


def test_the_published_counts_add_up():
    cuhk_pedes = LAYOUTS["cuhk-pedes"].published.values()
    assert sum(counts.images or 0 for counts in cuhk_pedes) == 40206
    assert sum(counts.captions or 0 for counts in cuhk_pedes) == 80440
    assert sum(counts.identities or 0 for counts in cuhk_pedes) == 13003
    assert sum(counts.images or 0 for counts in LAYOUTS["rstpreid"].published.values()) == 20505
    assert sum(counts.images or 0 for counts in LAYOUTS["icfg-pedes"].published.values()) == 54522
    assert LAYOUTS["webperson-5m"].published["train"].captions == 10_005_446
