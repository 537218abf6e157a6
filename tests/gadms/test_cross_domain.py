"""Models on data sets that they were not trained on, and the published matrix."""

import io
import json

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from components.errors import DataError
from components.gadms.cross_domain import PUBLISHED, cross_domain, published_transfers
from components.gadms.model import DualEncoder
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from pipelines.__main__ import main
from pipelines.evaluating.cross_domain import published_table
from pipelines.identity.closure import ROOT

CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [32, 16], "layers": 1, "width": 24, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}
COLOURS = ("red", "green", "blue", "white", "gray", "black")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models and two data sets; each person has two pictures and three sentences."""
    root = tmp_path_factory.mktemp("domains")
    tokenizer = CaptionTokenizer.from_corpus(COLOURS)
    for seed in (1, 2):
        DualEncoder.create(CONFIG, tokenizer=tokenizer, seed=seed).save(root / f"model-{seed}")
    for name, shift in (("here", 0), ("there", 90)):
        with DatasetWriter(root / name) as writer:
            for image in range(12):
                picture = io.BytesIO()
                Image.new("RGB", (16, 32), (20 * image + shift % 255, shift, 255 - 20 * image)).save(picture, "PNG")
                sentences = [CaptionRow(f"A {COLOURS[image // 2]} {word} {image}.") for word in ("coat", "hat")]
                sentences += [CaptionRow("short", "short")]
                writer.add(picture.getvalue(), sentences[: 2 + image % 2], identity=image // 2, split="test", source="")
    return root


def dense(folder, data):
    """R@1 and mAP in percent by sorting the whole matrix in float64."""
    encoder, people = DualEncoder.load(folder), PersonDataset(data)
    rows = list(people.rows(split="test", form="long"))
    images = list(dict.fromkeys(row["image_id"] for row in rows))
    who = {row["image_id"]: row["identity"] for row in rows}
    with torch.no_grad():
        texts, _ = encoder.encode_text(encoder.tokenizer([row["caption"] for row in rows]))
        pictures, _ = encoder.encode_image(encoder.normalize_pixels(people.pixels(images, 32, 16)))
    cosines = torch.nn.functional.normalize(texts.double()) @ torch.nn.functional.normalize(pictures.double()).T
    first, precisions = [], []
    for row, cosine in zip(rows, cosines, strict=True):
        right = [who[images[place]] == row["identity"] for place in cosine.argsort(descending=True).tolist()]
        ranks = [rank for rank, hit in enumerate(right, 1) if hit]
        first.append(right[0])
        precisions.append(sum(n / rank for n, rank in enumerate(ranks, 1)) / len(ranks))
    return 100 * sum(first) / len(first), 100 * sum(precisions) / len(precisions)


def test_the_matrix_has_every_model_on_every_data_set_as_a_dense_ranking_finds(folders):
    models = {f"m{seed}": folders / f"model-{seed}" for seed in (1, 2)}
    data = {name: folders / name for name in ("here", "there")}
    found = cross_domain(models, data)
    assert {name: list(row) for name, row in found.items()} == {"m1": ["here", "there"], "m2": ["here", "there"]}
    for name, model in models.items():
        for place, folder in data.items():
            row = found[name][place]
            assert (row["R@1"], row["mAP"]) == pytest.approx(dense(model, folder), abs=1e-6)
            assert row["queries"] == 24  # long sentences only
    assert found["m1"]["here"] != found["m2"]["here"]


def test_the_verb_writes_the_matrix_and_shows_the_published_one(folders, tmp_path, capsys):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    models, data = [str(folders / f"model-{seed}") for seed in (1, 2)], [str(folders / "here"), str(folders / "there")]
    output = tmp_path / "out/matrix.json"
    arguments = ["--workspace", str(tmp_path), "cross-domain", *models, "--data", *data, "--output", str(output)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    written = json.loads(output.read_text())
    expected = cross_domain({"model-1": folders / "model-1"}, {"there": folders / "there"})["model-1"]["there"]
    assert written["results"]["model-1"]["there"] == pytest.approx(expected)
    assert f"{expected['R@1']:.2f} / {expected['mAP']:.2f}" in told
    assert "58.91 / 33.70" in told
    assert main([*arguments[:3], models[0], models[0], *arguments[5:]]) == 2
    assert "a model is listed twice" in capsys.readouterr().err


def test_a_data_set_is_named_by_its_own_records_and_what_it_lacks_is_said(folders, tmp_path, capsys):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    named = tmp_path / "people"
    rows = PersonDataset(folders / "here").rows()
    with DatasetWriter(named) as writer:
        for row in list(rows)[::3]:
            picture = PersonDataset(folders / "here").image_bytes(row["image_id"])
            caption = [CaptionRow(row["caption"])]
            writer.add(picture, caption, identity=row["identity"], split="test", source="rstpreid")
    listed, kept = {"pictures": 12, "captions": 14}, {"pictures": 10, "captions": 10}
    (named / "validation.json").write_text(json.dumps({"splits": {"test": {"listed": listed, "kept": kept}}}))
    arguments = ["cross-domain", str(folders / "model-1"), "--data", str(named), "--output", str(tmp_path / "m.json")]
    assert main(["--workspace", str(tmp_path), *arguments]) == 0
    written = json.loads((tmp_path / "m.json").read_text())
    assert list(written["results"]["model-1"]) == ["rstpreid"]
    assert written["data"] == {"rstpreid": str(named)}
    assert written["left_out"] == {"rstpreid": {"pictures": 2, "captions": 4}}
    assert "rstpreid: its test split lacks 2 pictures and 4 captions" in " ".join(capsys.readouterr().out.split())


def test_a_split_without_captions_and_a_folder_without_a_model_are_named(folders):
    with pytest.raises(DataError, match="no long caption in the split 'val'"):
        cross_domain({"m": folders / "model-1"}, {"here": folders / "here"}, split="val")
    with pytest.raises(DataError):
        cross_domain({"m": folders / "here"}, {"here": folders / "here"})


def test_published_transfers_are_between_two_sets_and_pre_training_helps_in_each():
    found = published_transfers()
    table = {(one.pretraining, one.source, one.target): one for one in found}
    assert len(table) == len(found) == 18
    assert all(one.source != one.target for one in found)
    for one in found:  # the paper's own claim
        if one.pretraining is None:
            assert table["WebPerson 5M", one.source, one.target].rank_1 > one.rank_1
    console = Console(file=io.StringIO(), width=200)
    console.print(published_table(found))
    assert console.file.getvalue().count("pre-trained on WebPerson 5M") == 3


def test_a_published_file_of_another_form_is_named(tmp_path):
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump([{"pretraining": None, "results": {"a": {"b": [1]}}}]))
    with pytest.raises(DataError, match=r"broken\.yaml: not a list of pretraining"):
        published_transfers(tmp_path / "broken.yaml")
    assert PUBLISHED.is_file()
