"""The stage `gadms_evaluate`, on a few drawn people and an untrained encoder."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from components.evaluation.comparison import retrieval_hits
from components.gadms.model import DualEncoder
from components.gadms.tokenizer import CaptionTokenizer
from components.persons.drawn.lexicon import SYNONYMS
from components.persons.drawn.recaptioning import recaptioned
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from pipelines.engine.context import StageContext
from pipelines.identity.closure import ROOT
from pipelines.params import Parameters, load
from pipelines.scratch.folder import Scratch
from pipelines.stages import gadms_evaluate

CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": [64, 32], "layers": 1, "width": 24, "head_width": 12, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def evaluated(drawn_people: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of its outputs, and its metrics; of the test split two pictures with five captions were left out."""
    root = tmp_path_factory.mktemp("evaluated")
    (root / "people").mkdir()
    for name in ("manifest.parquet", "shards"):
        (root / "people" / name).symlink_to(drawn_people.root / "data/people" / name)
    report = json.loads((drawn_people.root / "data/people/validation.json").read_text())
    listed = report["splits"]["test"]["listed"]
    report["splits"]["test"]["listed"] = {"pictures": listed["pictures"] + 2, "captions": listed["captions"] + 5}
    (root / "people/validation.json").write_text(json.dumps(report))
    people = PersonDataset(drawn_people.root / "data/people")
    tokenizer = CaptionTokenizer.from_corpus(people.rows(form="long").column("caption"))
    DualEncoder.create(CONFIG, tokenizer=tokenizer, seed=1).save(root / "model")
    return root, evaluate(root / "people", root / "model", root)


def evaluate(people: Path, model: Path, root: Path) -> dict[str, Any]:
    """Run the stage with params.yaml; its outputs are in `root`."""
    params = Parameters.partial(load(ROOT / "params.yaml").only(("seed", "pictures", "gadms_evaluate")))
    context = StageContext(Scratch(root / "scratch"), seed=0, arm="gadms", device=torch.device("cpu"))
    outputs = {"ranks": root / "ranks.parquet", "scores": root / "scores.parquet"}
    return gadms_evaluate.run(params, {"people": people, "model": model}, outputs, context)


def test_what_is_found_first_is_right_exactly_where_the_first_rank_says_so(evaluated, drawn_people):
    root, metrics = evaluated
    table = pq.read_table(root / "ranks.parquet").to_pydict()
    rows = PersonDataset(drawn_people.root / "data/people").rows(split="test", form="long")
    who = dict(zip(rows.column("image_id"), rows.column("identity"), strict=True))
    right = [who[found] == who[own] for found, own in zip(table["found_image_id"], table["image_id"], strict=True)]
    assert right == [hit == 100 for hit in retrieval_hits(table, 1)]
    assert metrics["R@1"] == pytest.approx(100 * sum(right) / len(right))
    assert metrics["mINP"] == pytest.approx(100 * sum(table["inverse_negative_penalty"]) / len(right))


def test_captions_that_are_too_long_are_counted_where_they_are_prepared_and_where_they_are_read(
    evaluated, drawn_people
):
    prepared = json.loads((drawn_people.root / "metrics/prepare/all.json").read_text())
    assert (prepared["test"]["captions_cut"], evaluated[1]["captions_cut"]) == (0, 0)


def test_the_data_set_is_named_from_its_records_with_what_validation_left_out(evaluated):
    _, metrics = evaluated
    assert metrics["dataset"] == "drawn"
    assert metrics["left_out"] == {"pictures": 2, "captions": 5}


def test_true_sentences_of_the_same_pictures_stand_beside_false_ones(evaluated):
    _, metrics = evaluated
    assert list(metrics["query_noise"]) == ["0", "0.2", "0.4"]
    for part in metrics["query_noise"].values():
        assert part["queries"] == metrics["queries"]
        assert part["R@1_interval"]["low"] <= part["R@1"] <= part["R@1_interval"]["high"]


def test_without_wrong_words_there_is_nothing_to_score(evaluated):
    root, metrics = evaluated
    assert pq.read_table(root / "scores.parquet").num_rows == 0
    assert not {"noise_auc", "noise_auc_facts", "score_auc", "score_auc_facts"} & set(metrics)


def test_chance_is_the_fraction_of_the_gallery_that_is_right():
    queries, gallery = torch.tensor([4, 4, 9, 7, 12]), torch.tensor([9, 4, 4, 2, 4])
    expected = (queries[:, None] == gallery[None, :]).double().mean()
    assert gadms_evaluate.chance(queries, gallery)["R@1"] == pytest.approx(100 * expected.item())


def test_a_set_without_attributes_has_no_ceiling_by_attributes(evaluated, drawn_people, tmp_path):
    root, metrics = evaluated
    drawn = PersonDataset(drawn_people.root / "data/people")
    with DatasetWriter(tmp_path / "people") as writer:
        for row in list(drawn.rows(split="test", form="long"))[:6]:
            caption = CaptionRow(row["caption"])
            picture = drawn.image_bytes(row["image_id"])
            writer.add(picture, [caption], identity=row["identity"], split="test", source="cuhk-pedes")
    real = evaluate(tmp_path / "people", root / "model", tmp_path)
    assert 0 < metrics["attribute_ceiling"]["R@1"] <= 100
    assert "attribute_ceiling" not in real
    assert real["dataset"] == "cuhk-pedes"


def test_every_score_has_a_column_beside_the_words_it_scores(evaluated, drawn_people):
    root, _ = evaluated
    noisy = recaptioned(PersonDataset(drawn_people.root / "data/people"), 0.4, 0)
    rows = [row for row in noisy.rows(split="train", form="long") if row["wrong_words"]][:3]
    columns, aucs, fact_aucs = gadms_evaluate.scored_words(DualEncoder.load(root / "model"), rows, noisy)
    assert list(columns) == ["caption_id", "position", "word", "wrong", *gadms_evaluate.SCORES]
    assert list(aucs) == list(fact_aucs) == list(gadms_evaluate.SCORES)
    words = list(zip(columns["word"], columns["wrong"], columns["path"], strict=True))
    stated = {word for values in SYNONYMS.values() for synonyms in values.values() for word in synonyms}
    facts = [(score, wrong) for word, wrong, score in words if word.lower().rstrip(".,") in stated]
    assert len(facts) < len(words)
    pairs = [(right > false) + (right == false) / 2 for right, w in facts if not w for false, v in facts if v]
    assert fact_aucs["path"] == pytest.approx(sum(pairs) / len(pairs))
    assert fact_aucs["path"] != aucs["path"]
    plain = [{**row, "attributes": "{}"} for row in rows]  # nobody knows what states a fact
    assert gadms_evaluate.scored_words(DualEncoder.load(root / "model"), plain, noisy)[1:] == (aucs, {})
    assert columns["word"] == [word for row in rows for word in row["caption"].split()]
    assert sum(columns["wrong"]) == sum(len(row["wrong_words"]) for row in rows)
    assert all(columns[name] != columns["gradient"] for name in list(gadms_evaluate.SCORES)[1:])
