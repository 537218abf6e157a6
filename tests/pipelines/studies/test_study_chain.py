"""Studies that begin from published generators, on small untrained ones: the chain, and TACA's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_studies import ARCHITECTURE, publish_encoder

from components.errors import ParameterError
from components.evaluation.probe.model import AttributeProbe
from components.evaluation.probe.model import folder_digest as probe_digest
from components.gadms.published import weights_digest
from components.persons.drawn.attributes import ATTRIBUTES
from components.persons.shards import PersonDataset
from components.taca.reference import folder_digest
from components.taca.toy.config import TinyConfig
from components.taca.toy.pipeline import build_tiny_pipeline, word_vocabulary
from pipelines.identity.closure import ROOT
from pipelines.params import load
from pipelines.schema.reading import read
from pipelines.studies import chain
from pipelines.studies.engine import open_study, run_study
from pipelines.workspace import Workspace

PARAMS = {
    "prepare": {"reserve": True},
    "retrieval": {"architecture": ARCHITECTURE},
    "taca_cache": {"captions": 16, "batch": 8},
    "taca_train": {"rank": 2, "training": {"steps": 2, "batch": 4, "warmup_steps": 1, "checkpoint_every": 1}},
    "taca_generate": {"prompts": 4, "steps": 4, "batch": 8},
    "taca_evaluate": {"resamples": 200},
    "gadms_finetune": {"training": {"batch": 4, "report_every": 1, "checkpoint_every": 10, "validate_every": None}},
    "gadms_evaluate": {"resamples": 200},
}
TRAINING = {"steps": 2, "warmup_steps": 1, "learning_rate": 0.01, "method": {"name": "contrastive"}}


@pytest.fixture(scope="module")
def published(place_at: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory, drawn_people: Any) -> Any:
    """A workspace with a generator, an encoder and a probe in folders, and nothing that `dvc repro` makes but people."""
    place = place_at(tmp_path_factory.mktemp("published") / "workspace")
    place.edit(PARAMS)
    (place.root / "data/people").symlink_to(drawn_people.root / "data/people")
    people = PersonDataset(place.root / "data/people")
    small = TinyConfig(width=32, heads=2, double_blocks=1, single_blocks=1, text_width=16, text_layers=1)
    pipe = build_tiny_pipeline(small, word_vocabulary(people.rows(split="train", form="short").column("caption")), 0)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():  # FLUX starts with a silent output layer
        for parameter in pipe.transformer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    pipe.save_pretrained(place.root / "shelf/generator")
    AttributeProbe(ATTRIBUTES, height=64, width=32, seed=0).save(place.root / "shelf/probe")
    publish_encoder(place.root / "shelf/encoder", people)
    (place.root / "studies").mkdir()
    return place


def model(root: Path, name: str, digest: Callable[[Path], str]) -> dict[str, str]:
    return {"pretrained": f"shelf/{name}", "sha256": digest(root / "shelf" / name)}


@pytest.mark.heavy
def test_corpora_have_the_same_captions_and_other_pictures_and_every_arm_the_same_fine_tuning(published, tmp_path):
    root = published.root
    start = {"generator": model(root, "generator", folder_digest), "encoder": model(root, "encoder", weights_digest)}
    plan = {
        "kind": "chain",
        "seeds": {"screen": [0], "confirm": [7]},
        "start": start,
        "corpus": {"people": 3, "noise": 0.0, "guidance": 1.0},
        "sources": ["base", "taca", "taca_lora", "drawn", "none", "longer"],
        "pretraining": TRAINING,
        "finetuning": TRAINING,
        "people": [4],
        "contrasts": [{"title": "x", "arm": "taca_lora", "minus": "none", "at": ["people-4"], "expect": "more"}],
    }
    (root / "studies/small_chain.yaml").write_text(yaml.safe_dump(plan))
    opened = open_study("small_chain", Workspace(root, tmp_path))
    found = json.loads(run_study(opened, phases=["screen"]).read_text())
    assert found["phases"]["screen"]["done"] == found["phases"]["screen"]["of"]
    assert list(found["summary"]["arms"]["people-4"]) == sorted(plan["sources"])
    before = found["summary"]["arms"]["pretrained"]  # what pre-training alone has reached
    assert list(before) == sorted(plan["sources"][:4])
    kept = opened.done()["pretrain/base/seed-0"]
    assert before["base"]["screen"]["R@1"] == pytest.approx(kept["R@1"], rel=1e-5)
    pictures, captions = {}, {}
    for source in plan["sources"][:4]:
        folder = opened.store.files(opened.identities[f"corpus/{source}/seed-0"]) / "corpus"
        corpus = PersonDataset(folder)
        rows = corpus.rows(split="train", form="long")
        captions[source] = rows.column("caption")
        pictures[source] = [corpus.image_bytes(image) for image in sorted(set(rows.column("image_id")))]
    assert len({str(each) for each in captions.values()}) == 1
    assert len({str(each) for each in pictures.values()}) == 4
    people = PersonDataset(root / "data/people")
    real = {people.image_bytes(image) for image in people.rows(split="train").column("image_id")}
    assert set(pictures["drawn"]) <= real
    assert not set(pictures["base"]) & real
    steps = {cell.key: cell.settings.get("steps") for cell in opened.cells}
    assert steps["arms/longer/people-4/seed-0"] == 2 * steps["arms/none/people-4/seed-0"]


@pytest.mark.heavy
def test_taca_is_measured_on_a_published_generator_and_carries_the_threshold_to_another_size(published, tmp_path):
    root = published.root
    plan = {
        "start": {"generator": model(root, "generator", folder_digest), "probe": model(root, "probe", probe_digest)},
        "guidance": [1.0],
        "arms": {"seeds": [0], "prompts": 4},
        "map": {"gammas": [3.0], "thresholds": [0.0], "seeds": [0], "prompts": 2},
        "carried": {"height": 96, "width": 48, "threshold": 0.8, "seeds": [0], "prompts": 2},
        "variants": {"seeds": [0], "prompts": 2, "schedules": {"bias": {"effect": "bias"}}},
        "confirm": [8],
        "contrasts": [
            {"title": "x", "arm": "map/gamma-3/threshold-0", "minus": "base", "at": ["guidance-1"], "expect": "more"},
            {"title": "y", "arm": "taca_lora", "minus": "carried/rule", "at": ["guidance-1"]},
        ],
    }
    (root / "studies/taca.yaml").write_text(yaml.safe_dump(plan))
    opened = open_study("taca", Workspace(root, tmp_path))
    found = json.loads(run_study(opened).read_text())
    assert found["planned"] == []
    carried = found["summary"]["carried"]["guidance 1"]
    tokens = 24 * 12 / (16 * 8)  # image tokens at 96 x 48, to those at 64 x 32
    factor = tokens**0.5
    assert carried["same"]["sigma"] == 0.8
    assert carried["rule"]["sigma"] == pytest.approx(factor * 0.8 / (1 + (factor - 1) * 0.8), rel=1e-5)
    first, second = found["summary"]["contrasts"]
    assert (first["confirm"]["seeds"], second["confirm"]["seeds"]) == ([8], [8])
    assert first["status"] in ("holds", "open", "contradicted")
    (drawn,) = (cell for cell in found["cells"] if cell["key"] == "map/gamma-3/threshold-0/guidance-1/seed-8")
    assert drawn["settings"]["prompts"] == 4  # as many as arms have


def test_only_what_the_contrasts_name_is_drawn_and_trained_from_fresh_seeds():
    plan = read(ROOT / "studies/chain.yaml", chain.ChainPlan, "chain")
    cells = chain.cells(plan, load(ROOT / "params.yaml"))
    fresh = [cell for cell in cells if cell.phase == "confirm"]
    assert {cell.key.split("/")[1] for cell in fresh if cell.key.startswith("arms/")} == {
        *("taca_lora", "base", "longer", "none", "drawn")
    }
    assert not [cell.key for cell in fresh if "/taca/" in cell.key]
    before: set[str] = set()
    for cell in cells:
        assert before.issuperset(cell.needs)
        before.add(cell.key)


def test_a_contrast_of_a_source_that_is_not_drawn_is_named(tmp_path):
    plan = yaml.safe_load((ROOT / "studies/chain.yaml").read_text())
    plan["sources"].remove("base")
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(ParameterError, match=r"contrasts\.0\.minus: base is not one of start, taca_lora"):
        read(tmp_path / "chain.yaml", chain.ChainPlan, "chain.yaml")
