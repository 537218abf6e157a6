import json

import pytest
from PIL import Image

from components.errors import ParameterError
from components.persons import DrawnConfig, PersonDataset, read_dataset, write_drawn_dataset, write_records
from components.persons.drawn.attributes import ATTRIBUTES

CONFIG = DrawnConfig(
    train_identities=12, val_identities=3, test_identities=6, images_per_identity=5, height=48, width=24, noise_rate=0.3
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "CUHK-PEDES"
    write_drawn_dataset(folder, CONFIG, 7)
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(drawn, tmp_path):
    write_drawn_dataset(tmp_path / "again", CONFIG, 7)
    assert contents(drawn) == contents(tmp_path / "again")
    write_drawn_dataset(tmp_path / "other", CONFIG, 8)
    other = contents(tmp_path / "other")
    assert other.keys() == contents(drawn).keys()
    assert all(other[name] != content for name, content in contents(drawn).items())


def test_the_annotation_file_has_the_layout_of_cuhk_pedes(drawn):
    entries = json.loads((drawn / "reid_raw.json").read_text())
    assert len(entries) == 21 * 5
    for entry in entries:
        assert entry.keys() >= {"split", "captions", "file_path", "processed_tokens", "id"}
        assert len(entry["captions"]) == len(entry["processed_tokens"]) == len(entry["wrong_words"]) == 2
        with Image.open(drawn / "imgs" / entry["file_path"]) as image:
            assert (image.format, image.size) == ("PNG", (24, 48))


def test_the_reader_of_cuhk_pedes_reads_it(drawn):
    records = read_dataset("cuhk-pedes", drawn.parent)
    people = {split: {r.identity for r in records if r.split == split} for split in ("train", "val", "test")}
    assert {split: len(ids) for split, ids in people.items()} == {"train": 12, "val": 3, "test": 6}
    assert len(set.union(*people.values())) == 21
    assert {record.source for record in records} == {"drawn"}
    assert all(record.short_caption and record.attributes for record in records)
    assert all(value in ATTRIBUTES[name] for record in records for name, value in record.attributes.items())


def test_each_identity_is_seen_from_all_sides(drawn):
    views: dict[int, set[str]] = {}
    for record in read_dataset(drawn):
        views.setdefault(record.identity, set()).add(record.attributes["view"])
    assert all(seen == set(ATTRIBUTES["view"]) for seen in views.values())


def test_only_training_captions_are_noisy(drawn):
    wrong = dict.fromkeys(("train", "val", "test"), 0)
    for record in read_dataset(drawn):
        wrong[record.split] += sum(len(positions) for positions in record.wrong_words)
    assert wrong["train"] > 50
    assert wrong["val"] == wrong["test"] == 0


def test_noise_changes_no_picture_and_no_short_caption(drawn, tmp_path):
    settings = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    write_drawn_dataset(tmp_path / "clean", DrawnConfig(**{**settings, "noise_rate": 0.0}), 7)
    noisy, clean = read_dataset(drawn), read_dataset(tmp_path / "clean")
    assert [r.short_caption for r in noisy] == [r.short_caption for r in clean]
    pictures = [{n: b for n, b in contents(f).items() if n.endswith(".png")} for f in (drawn, tmp_path / "clean")]
    assert pictures[0] == pictures[1]
    assert not any(positions for record in clean for positions in record.wrong_words)


def test_it_goes_through_the_internal_form(drawn, tmp_path):
    records = read_dataset(drawn)
    write_records(records, tmp_path / "people")
    dataset = PersonDataset(tmp_path / "people")
    assert len(dataset.rows(form="short")) == len(records)
    assert len(dataset.rows(form="long")) == 2 * len(records)
    row = dataset.rows(split="train", form="long")[0]
    assert json.loads(row["attributes"]) == records[0].attributes
    assert tuple(row["wrong_words"]) == records[0].wrong_words[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images_per_identity", 3),
        ("preset", "foggy"),
        ("noise_rate", 1.5),
        ("near_duplicates", -0.1),
        ("train_identities", 0),
        ("test_identities", -1),
        ("height", 10),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_value(name, value):
    with pytest.raises(ParameterError, match=str(value)):
        DrawnConfig(**{name: value})


def test_an_existing_set_is_not_overwritten(drawn):
    with pytest.raises(ParameterError, match="exists"):
        write_drawn_dataset(drawn, CONFIG, 7)
