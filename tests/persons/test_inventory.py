import pytest
from small_datasets import SETS, lay_out, picture, write_json

from components.persons.published.inventory import count_differences, take_inventory
from components.persons.published.layouts import LAYOUTS, Counts
from components.persons.published.readers import find_dataset


def entry(path, identity, split, captions=("A man.", "In red.")):
    return {"split": split, "captions": list(captions), "file_path": path, "processed_tokens": [], "id": identity}


@pytest.mark.parametrize("name", SETS)
def test_what_is_laid_out_whole_has_nothing_missing(tmp_path, name):
    lay_out(tmp_path, name)
    found = take_inventory(find_dataset(name, tmp_path))
    assert found.images == 4
    assert (found.missing, found.shared) == ({}, 0)
    assert (found.without_caption, found.bad_captions) == (0, 0)


def test_missing_pictures_are_counted_by_folder_and_faults_of_the_annotations_found(tmp_path):
    lay_out(tmp_path, "cuhk-pedes", 2)  # imgs/CUHK01/0.png and 1.png
    picture(tmp_path / "outside.png", 9)  # is there, but not in the dataset's folder
    entries = [
        entry("CUHK01/0.png", 1, "train"),
        entry("CUHK01/1.png", 1, "test"),
        entry("Market/a.png", 2, "train"),
        entry("Market/b.png", 2, "train", ["A man.", None]),
        entry("cam_a/x/c.png", 3, "val", []),
        entry("../../outside.png", 4, "val"),
    ]
    write_json(tmp_path / "CUHK-PEDES/reid_raw.json", entries)
    found = take_inventory(find_dataset("cuhk-pedes", tmp_path))
    assert found.splits == {"train": Counts(3, 6, 2), "val": Counts(2, 2, 2), "test": Counts(1, 2, 1)}
    assert found.missing == {"imgs/..": 1, "imgs/Market": 2, "imgs/cam_a": 1}
    assert found.example.startswith("imgs/Market/a.png (no such file")
    assert (found.shared, found.without_caption, found.bad_captions) == (1, 1, 1)
    lines = count_differences(found, LAYOUTS["cuhk-pedes"])
    assert "train: 3 images, published 34,054" in lines
    assert "test: 1 identities, published 1,000" in lines
    assert len(lines) == 9


def test_a_count_that_nobody_published_is_not_compared(tmp_path):
    lay_out(tmp_path, "luperson-mllm")
    found = take_inventory(find_dataset("luperson-mllm", tmp_path))
    assert count_differences(found, LAYOUTS["luperson-mllm"]) == ["train: 4 images, published 1,020,022"]
