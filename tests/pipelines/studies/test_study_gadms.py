"""The GA-DMS study on a few people and a very small encoder."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from small_studies import ARCHITECTURE

from components.errors import ParameterError
from components.evaluation.intervals import bootstrap_crossed
from components.gadms.config import ScoringConfig
from components.gadms.methods import RetrievalConfig
from components.gadms.model import DualEncoder
from components.gadms.noise_detection import word_scores
from components.persons.drawn.recaptioning import recaptioned
from components.persons.shards import PersonDataset
from pipelines.identity.closure import ROOT
from pipelines.params import load
from pipelines.schema.reading import read
from pipelines.studies import gadms
from pipelines.studies.engine import Opened, open_study, run_study
from pipelines.workspace import Workspace

pytestmark = pytest.mark.slow

KINDS = [f"{split}{part}" for split in ("seen", "unseen") for part in ("", "_fact", "_colour")]
PARAMS = {
    "retrieval": {"architecture": ARCHITECTURE},
    "gadms_finetune": {"training": {"batch": 8, "report_every": 1, "checkpoint_every": 10, "validate_every": None}},
    "gadms_evaluate": {"resamples": 200},
}
ARMS = {
    "contrastive": {"name": "contrastive"},
    "random": {"name": "random"},
    "gadms": {"name": "gadms", "score_timing": "same-step", "scoring": {"name": "path"}},
    "truth": {"name": "gadms", "score_timing": "same-step", "scoring": {"name": "truth"}},
}
BOTH = [arm for arm in ARMS if arm != "truth"]  # arms at every noise level
PLAN = {
    "noise": [0.0, 0.5],
    "seeds": [0, 1],
    "people": 6,
    "start": {"noise": 0.0, "people": 4, "steps": 1, "warmup_steps": 0, "learning_rate": 0.001},
    "training": {"steps": 2, "warmup_steps": 1, "learning_rate": 0.001},
    "arms": ARMS,
    "baselines": ["random", "contrastive"],
    "scores": {
        "encoders": ["random"],
        "captions": 5,
        "unseen_noise": 0.4,
        "scores": {"gradient": {"name": "gradient"}, "attention": {"name": "attention"}},
    },
}


@pytest.fixture(scope="module")
def prepared(place_at: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory, drawn_people: Any) -> Any:
    place = place_at(tmp_path_factory.mktemp("gadms study") / "workspace")
    place.edit(PARAMS)
    (place.root / "data/people").symlink_to(drawn_people.root / "data/people")
    (place.root / "studies").mkdir()
    (place.root / "studies/gadms.yaml").write_text(yaml.safe_dump(PLAN))
    return place


@pytest.fixture(scope="module")
def finished(prepared: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Opened, dict[str, Any]]:
    opened = open_study("gadms", Workspace(prepared.root, tmp_path_factory.mktemp("home")))
    return opened, json.loads(run_study(opened).read_text())


def encoder_of(opened: Opened, key: str) -> dict[str, torch.Tensor]:
    return DualEncoder.load(opened.store.files(opened.identities[key]) / "encoder").state_dict()


def test_every_arm_goes_on_from_the_start_of_its_seed_which_learned_from_other_people(prepared, finished):
    opened, document = finished
    assert (document["done"], document["of"]) == (
        20,
        20,
    )  # 2 starts, 14 arms (truth only where something is wrong), 4 of scores
    needs = {cell.key: cell.needs for cell in opened.cells}
    assert {needs[f"arms/{arm}/noise-{noise}/seed-1"] for arm in BOTH for noise in ("0", "0.5")} == {("start/seed-1",)}
    starts = [encoder_of(opened, f"start/seed-{seed}") for seed in (0, 1)]
    assert not torch.equal(*(state["clip.visual.conv1.weight"] for state in starts))
    for arm in ARMS:
        before, after = starts[1], encoder_of(opened, f"arms/{arm}/noise-0.5/seed-1")
        assert before.keys() == after.keys()
        change = max((before[name].float() - after[name].float()).abs().max().item() for name in before)
        assert 0 < change < 0.02  # two steps at 0.001
    people = {cell.function: (cell.settings["skip"], cell.settings["people"]) for cell in opened.cells}
    assert people == {"start": (0, 4), "train": (4, 6), "score": (4, 6)}


def test_differences_are_paired_by_person_and_seed(finished):
    opened, document = finished
    done = opened.done()
    for noise, arms in (("0", BOTH), ("0.5", ARMS)):
        rows = document["summary"]["arms"][f"noise {noise}"]
        assert set(rows) == set(arms)
        hits = {}
        for arm in arms:
            cells = [done[f"arms/{arm}/noise-{noise}/seed-{seed}"] for seed in (0, 1)]
            people = sorted(set(cells[0]["identity"]))
            hits[arm] = np.array(
                [
                    [
                        np.mean([hit for hit, i in zip(c["hits"], c["identity"], strict=True) if i == person])
                        for person in people
                    ]
                    for c in cells
                ]
            )
            assert rows[arm]["by_seed"] == pytest.approx(hits[arm].mean(1).tolist(), rel=1e-5)
            assert rows[arm]["by_seed"] == pytest.approx(
                [cell["R@1"] for cell in cells], rel=1e-5
            )  # as many sentences each
            expected = bootstrap_crossed(hits[arm], resamples=200, seed=0).as_dict()
            assert rows[arm]["interval"] == pytest.approx(expected, rel=1e-5)
        for arm, baseline in (("gadms", "random"), ("gadms", "contrastive"), ("random", "contrastive")):
            expected = bootstrap_crossed(hits[arm] - hits[baseline], resamples=200, seed=0).as_dict()
            found = rows[arm]["minus"][baseline]
            assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        assert list(rows["random"]["minus"]) == ["contrastive"]


def test_scores_are_held_against_the_words_that_this_noise_made_wrong(prepared, finished):
    opened, document = finished
    people = PersonDataset(prepared.root / "data/people")
    noisy = recaptioned(people, 0.5, 1, people=6, skip=4)
    encoder = DualEncoder.load(opened.store.files(opened.identities["arms/random/noise-0.5/seed-1"]) / "encoder")
    rows = [row for row in noisy.rows(split="train", form="long") if row["wrong_words"]][:5]
    _, auc = word_scores(encoder, rows, people, ScoringConfig(name="attention"))
    found = document["summary"]["scores"]["noise 0.5"]["random"]
    assert found["seen"]["attention"]["by_seed"][1] == pytest.approx(auc, rel=1e-5)
    assert set(found) == {"seeds", *KINDS}
    assert set(document["summary"]["scores"]["noise 0"]["random"]) == {
        "seeds",
        *(kind for kind in KINDS if kind.startswith("unseen")),
    }
    values = [row for kind in found if kind != "seeds" for row in found[kind].values()]
    assert all(0 <= value <= 1 for row in values for value in row["by_seed"])


def test_masks_are_watched_where_a_score_makes_them(finished):
    _, document = finished
    rows = document["summary"]["arms"]["noise 0.5"]
    assert 0 < rows["gadms"]["noise_auc"] < rows["truth"]["noise_auc"] == 1
    assert 0.05 < rows["gadms"]["wrong_share"] < 0.5
    assert 0 < rows["gadms"]["noise_auc_facts"] < rows["truth"]["noise_auc_facts"] == 1
    assert rows["gadms"]["noise_auc_facts"] != rows["gadms"]["noise_auc"]
    assert rows["gadms"]["masked_by_score"] == rows["truth"]["masked_by_score"] == 1
    assert not {"noise_auc", "noise_auc_facts", "masked_by_score"} & set(rows["random"])
    assert "wrong_share" not in document["summary"]["arms"]["noise 0"]["gadms"]


def test_what_is_not_done_is_left_out_of_the_summary(prepared, finished, tmp_path):
    opened, _ = finished
    done = opened.done()
    kept = {key: done[key] for key in ("arms/gadms/noise-0.5/seed-1", "arms/random/noise-0.5/seed-0")}
    summary = gadms.summarise(opened.plan, opened.params, kept)
    assert summary["arms"]["noise 0"] == {}
    assert summary["arms"]["noise 0.5"]["gadms"]["seeds"] == [1]
    assert summary["arms"]["noise 0.5"]["gadms"]["minus"] == {}  # no seed that both have
    assert summary["scores"] == {"noise 0": {}, "noise 0.5": {}}


def test_the_studys_own_plan_is_valid_and_what_it_promises():
    plan, params = read(ROOT / "studies/gadms.yaml", gadms.GadmsPlan, "studies/gadms.yaml"), load(ROOT / "params.yaml")
    every = gadms.cells(plan, params)
    assert len({cell.key for cell in every}) == len(every)
    assert plan.noise == [0.0, 0.2, 0.4]
    assert len(plan.seeds) >= 3
    assert {"gadms", "random", "nam", "contrastive", "irra"} <= {changes["name"] for changes in plan.arms.values()}
    for changes in plan.arms.values():
        method = RetrievalConfig(**{**asdict(params.gadms_finetune.method), **plan.method, **changes})
        assert method.for_arm("gadms").name == changes["name"]
    losses = {}
    for arm, changes in plan.arms.items():
        method = RetrievalConfig(**{**asdict(params.gadms_finetune.method), **plan.method, **changes})
        recipe = method.recipe
        losses[arm] = (
            recipe.matching,
            method.matching_temperature,
            method.sdm_weight,
            recipe.mtp_weight,
            recipe.id_weight,
        )
    own = {"contrastive", "sdm", "irra"}  # arms about the losses; all temperatures are one
    assert {losses[arm] for arm in losses if arm not in own} == {losses["gadms"]}
    assert {loss[1] for loss in losses.values()} == {0.02}
    assert {"gradient", "leave-one-out", "path", "max-patch"} <= {score.name for score in plan.scores.scores.values()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"random": {"name": "random"}}}, "baselines: contrastive is not an arm: random"),
        ({"arms": {**ARMS, "other": {"mtp_weight": 1}}}, "arms.other: has no method name"),
        ({"scores": {**PLAN["scores"], "encoders": ["best"]}}, "scores.encoders: best is not an arm: contrastive, "),
        ({"arms": {**ARMS, "odd": {"name": "gadmz"}}}, "studies/gadms.yaml: arms.odd: name = 'gadmz'"),
        ({"arms": {**ARMS, "odd": {"name": "gadms", "mtp": 1}}}, "studies/gadms.yaml: arms.odd: mtp: unknown key"),
        ({"noise": [0.2, 0.2]}, "noise: a value is listed twice"),
        ({"scores": {**PLAN["scores"], "scores": {"new": {"name": "newest"}}}}, "scores.scores.new.name = 'newest'"),
    ],
)
def test_a_mistake_in_the_plan_is_named(prepared, tmp_path, change, message):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/gadms.yaml").write_text(yaml.safe_dump({**PLAN, **change}))
    (tmp_path / "params.yaml").write_text((prepared.root / "params.yaml").read_text())
    (tmp_path / "data").symlink_to(prepared.root / "data")
    with pytest.raises(ParameterError) as caught:
        open_study("gadms", Workspace(tmp_path, tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
