"""Studies of retrieval arms, on a few people and a very small published encoder; and the plans of the repository."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_studies import ARCHITECTURE, publish_encoder

from components.errors import DataError, ParameterError
from components.evaluation.intervals import bootstrap_crossed
from components.gadms.published import weights_digest
from components.persons.shards import PersonDataset
from pipelines.identity.closure import ROOT
from pipelines.params import load
from pipelines.schema.reading import read
from pipelines.studies import chain, retrieval
from pipelines.studies.engine import list_cells, open_study, run_study
from pipelines.workspace import Workspace

PARAMS = {
    "prepare": {"reserve": True},
    "retrieval": {"architecture": ARCHITECTURE},
    "gadms_finetune": {"training": {"batch": 8, "report_every": 1, "checkpoint_every": 10, "validate_every": None}},
    "gadms_evaluate": {"resamples": 200},
}
PLAN = {
    "kind": "retrieval",
    "seeds": {"screen": [0], "confirm": [5, 6]},
    "start": {"pretrained": "data/encoder", "sha256": None},
    "people": 5,
    "training": {"steps": 2, "warmup_steps": 1, "learning_rate": 0.01},
    "conditions": {
        "clean": {},
        "confused": {"confusion": {"colours": {"blue": "black"}, "share": 1.0}, "joined": True},
    },
    "factors": {
        "loss": {"infonce": {"matching": "contrastive"}},
        "masks": {
            "none": {"name": "sdm"},
            "random": {"name": "random", "mtp_weight": 0.0},
            "truth": {"name": "gadms", "mtp_weight": 0.0, "score_timing": "same-step", "scoring": {"name": "truth"}},
        },
    },
    "contrasts": [
        {"title": "random over start", "arm": "infonce/random", "minus": "start", "at": ["confused"], "expect": "more"}
    ],
    "curve": {"arms": ["infonce/random"], "conditions": ["confused"], "budgets": [1, 2]},
    "cost": {"evaluate": 30, "train": 60},
}
ARM = "arms/infonce/random/confused/seed-{}"


@pytest.fixture(scope="module")
def prepared(place_at: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory, drawn_people: Any) -> Any:
    place = place_at(tmp_path_factory.mktemp("retrieval study") / "workspace")
    place.edit(PARAMS)
    (place.root / "data/people").symlink_to(drawn_people.root / "data/people")
    folder = place.root / "data/encoder"
    publish_encoder(folder, PersonDataset(place.root / "data/people"), seed=3)
    (place.root / "studies").mkdir()
    write(place.root, {"start": {"pretrained": "data/encoder", "sha256": weights_digest(folder)}})
    return place


def write(root: Path, change: dict[str, Any]) -> None:
    (root / "studies/weather.yaml").write_text(yaml.safe_dump({**PLAN, **change}))


@pytest.fixture
def copied(prepared: Any, tmp_path: Path) -> Path:
    """The same workspace with a plan and parameters of its own."""
    shutil.copytree(prepared.root / "studies", tmp_path / "studies")
    shutil.copy(prepared.root / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "data").symlink_to(prepared.root / "data")
    return tmp_path


@pytest.mark.slow
def test_arms_begin_from_the_published_encoder_and_contrasts_are_decided_on_fresh_seeds(prepared, tmp_path, capsys):
    opened = open_study("weather", Workspace(prepared.root, tmp_path))
    list_cells(opened, phases=["confirm"])
    assert "0 of 2 done; about 2 minutes of processor time to do" in capsys.readouterr().out
    screened = json.loads(run_study(opened, phases=["screen"]).read_text())
    # The start, five arms (none masks wrong words where there are none), and of the curve what an arm has measured already.
    assert screened["phases"] == {
        "screen": {"done": 6, "of": 6},
        "confirm": {"done": 0, "of": 2},
        "curve": {"done": 1, "of": 2},
    }
    assert screened["planned"] == sorted(
        [ARM.format(5), ARM.format(6), "curve/budget-2/infonce/random/confused/seed-0"]
    )
    (row,) = screened["summary"]["contrasts"]
    assert (row["status"], row["confirm"], screened["summary"]["claim"]) == ("screened", None, "screened")

    found = json.loads(run_study(opened, phases=["confirm", "curve"]).read_text())
    assert found["planned"] == []
    done = opened.done()

    def by_person(key: str) -> np.ndarray:
        hits, people = done[key]["hits"], done[key]["identity"]
        return np.array(
            [np.mean([h for h, p in zip(hits, people, strict=True) if p == q]) for q in sorted(set(people))]
        )

    table = np.stack([by_person(ARM.format(seed)) - by_person("start") for seed in (5, 6)])
    (row,) = found["summary"]["contrasts"]
    assert {key: row["confirm"][key] for key in ("mean", "low", "high")} == pytest.approx(
        bootstrap_crossed(table, resamples=200, seed=0).as_dict(), rel=1e-5, abs=1e-9
    )
    assert row["status"] in ("holds", "open", "contradicted")
    assert len({str(done[ARM.format(seed)]["hits"]) for seed in (0, 5, 6)}) > 1
    curve = found["summary"]["curve"]["confused"]["infonce/random"]
    assert [(point["budget"], point["steps"]) for point in curve] == [(1, 2), (2, 4)]
    assert curve[0]["mean"] == found["summary"]["arms"]["confused"]["infonce/random"]["screen"]["mean"]
    assert found["cost"]["processor_seconds"] > 0
    assert found["cost"]["by_function"]["train"]["cells"] == 8  # of nine keys, two share a result
    assert found["summary"]["arms"]["confused"]["infonce/truth"]["screen"]["noise_recall"] > 0
    assert not list(opened.store.root.glob("*/files/encoder"))  # nothing trains on from these


@pytest.mark.heavy
def test_one_fine_tuning_follows_the_pre_training_of_every_arm(copied, tmp_path):
    finetune = {"people": 3, "steps": 1, "warmup_steps": 0, "learning_rate": 0.01, "method": {"name": "contrastive"}}
    plan = yaml.safe_load((copied / "studies/weather.yaml").read_text())
    write(copied, {"start": plan["start"], "finetune": finetune, "curve": None, "cost": {}})
    opened = open_study("weather", Workspace(copied, tmp_path / "home"))
    run_study(opened, only=ARM.format(0))
    done = opened.done()
    assert set(done) == {ARM.format(0), "pretrain/" + ARM.format(0)}
    (last,) = (cell for cell in opened.cells if cell.key == ARM.format(0))
    assert (last.settings["skip"], last.settings["people"], last.settings["noise"]) == (5, 3, 0.0)
    assert done[ARM.format(0)]["hits"] != done["pretrain/" + ARM.format(0)]["hits"]


def test_a_start_without_its_digest_or_people_that_it_may_know_are_refused_but_can_be_listed(copied, prepared, capsys):
    workspace = Workspace(copied, copied / "home")
    digest = weights_digest(prepared.root / "data/encoder")
    write(copied, {})
    with pytest.raises(ParameterError, match=rf"study weather: start\.sha256 is null: set it to {digest}"):
        open_study("weather", workspace)
    list_cells(open_study("weather", workspace, without_inputs=True))
    told = capsys.readouterr().out
    assert f"to do  {ARM.format(0)}" in told
    assert "cannot be measured yet: study weather: start.sha256 is null" in told
    write(copied, {"start": {"pretrained": "data/encoder", "sha256": "0" * 64}})
    with pytest.raises(DataError, match=f"its digest is {digest}; expected is start.sha256 = 0000"):
        open_study("weather", workspace)
    write(copied, {"start": {"pretrained": "data/nowhere", "sha256": "0" * 64}})
    with pytest.raises(
        DataError, match="no such folder; those of the repository are made by `python -m pipelines pretrain`"
    ):
        open_study("weather", workspace)
    write(copied, {"start": {"pretrained": "data/encoder", "sha256": digest}})
    text = (copied / "params.yaml").read_text()
    (copied / "params.yaml").write_text(text.replace("reserve: true", "reserve: false"))
    with pytest.raises(ParameterError, match=r"prepare\.reserve is false: set it to true"):
        open_study("weather", workspace)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "poetry"}, "studies/weather.yaml: kind = 'poetry': one of chain, gadms, retrieval, taca"),
        ({"contrasts": [{**PLAN["contrasts"][0], "arm": "sdm/random"}]}, "contrasts.0.arm: sdm/random is not one of"),
        ({"contrasts": [{**PLAN["contrasts"][0], "at": ["dry"]}]}, "contrasts.0.at: dry is not one of clean, confused"),
        ({"curve": {**PLAN["curve"], "arms": ["none"]}}, "curve.arms: none is not one of infonce/none"),
        (
            {"factors": {"a": {"x": {"name": "sdm"}}, "b": {"y": {"name": "random"}}}},
            "factors.b.y: name is set by another factor too",
        ),
        ({"seeds": {"screen": [0], "confirm": [0]}}, "seeds: confirm: seed 0 has screened already"),
        ({"start": {"steps": 3}}, "start.trained.warmup_steps: missing"),
    ],
)
def test_each_mistake_in_the_plan_costs_one_line(copied, change, message):
    write(copied, change)
    with pytest.raises(ParameterError) as caught:
        open_study("weather", Workspace(copied, copied / "home"))
    assert message in str(caught.value)
    lines = str(caught.value).splitlines()
    assert all(line.startswith("studies/weather.yaml: ") for line in lines)
    assert len(lines) == 1 or "missing" in message


@pytest.mark.parametrize("name", ["factorial", "confusion", "protocol", "chain"])
def test_the_repositorys_plans_confirm_what_they_name_and_nothing_else_and_that_first(name):
    module = chain if name == "chain" else retrieval
    plan = read(ROOT / f"studies/{name}.yaml", module.STUDY.plan, name)
    cells = module.cells(plan, load(ROOT / "params.yaml"))
    assert len({cell.key for cell in cells}) == len(cells)
    assert len(plan.seeds.screen) == 2
    assert len(plan.seeds.confirm) == 5
    named = {(arm, at) for c in plan.contrasts for at in c.at for arm in (c.arm, c.minus) if arm != "start"}
    for phase, seeds in plan.seeds.by_phase().items():
        keys = [cell.key for cell in cells if cell.phase == phase and cell.key.startswith("arms/")]
        wanted = [f"arms/{arm}/{at}/seed-{seed}" for arm, at in named for seed in seeds]
        assert set(wanted) <= set(keys)
        if phase == "confirm":
            assert len(keys) == len(wanted)
        elif name != "chain":
            assert set(keys[: len(wanted)]) == set(wanted)
    assert {cell.function for cell in cells} <= set(plan.cost)
    losses = {
        json.dumps(cell.settings.get("method", {}).get("mtp_weight", 0.0)) for cell in cells if "train" in cell.function
    }
    assert len(losses) == 1  # no arm predicts masked tokens that another does not
