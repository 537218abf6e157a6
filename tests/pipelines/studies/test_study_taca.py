"""The TACA study, whole, on a small untrained pipeline and an untrained probe."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from components.errors import ParameterError
from components.evaluation.intervals import bootstrap_crossed
from components.evaluation.probe.model import AttributeProbe
from components.persons.drawn.attributes import ATTRIBUTES
from components.persons.drawn.rewording import noun_first
from components.persons.shards import PersonDataset
from components.taca.generation import generate
from components.taca.reference import write_reference
from components.taca.toy.config import TinyConfig
from components.taca.toy.pipeline import build_tiny_pipeline, word_vocabulary
from pipelines.engine.context import StageContext
from pipelines.graph import TACA_ARMS, find
from pipelines.identity.closure import ROOT
from pipelines.params import Parameters, load
from pipelines.schema.reading import read
from pipelines.scratch.folder import Scratch
from pipelines.stages import taca_cache, taca_evaluate, taca_generate, taca_train
from pipelines.studies import taca, taca_cells
from pipelines.studies.engine import Opened, open_study, run_study
from pipelines.workspace import Workspace

pytestmark = pytest.mark.slow

SMALL = TinyConfig(width=32, heads=2, double_blocks=1, single_blocks=1, text_width=16, text_layers=1)
PARAMS = {
    "taca_cache": {"captions": 16, "batch": 8},
    "taca_train": {
        "rank": 2,
        "training": {"steps": 3, "batch": 4, "learning_rate": 0.02, "warmup_steps": 1, "checkpoint_every": 1},
    },
    "taca_generate": {"prompts": 4, "steps": 4, "batch": 2},
    "taca_evaluate": {"resamples": 200},
}
PLAN = {
    "guidance": [1.0, 2.5],
    "arms": {"seeds": [0, 1], "prompts": 4},
    "map": {"gammas": [1.0, 3.0], "thresholds": [0.97, 0.0], "seeds": [1], "prompts": 3},
    "variants": {
        "seeds": [0, 1],
        "prompts": 2,
        "schedules": {"as it is": {}, "bias": {"effect": "bias", "gamma": 3.0}, "constant": {"form": "constant"}},
    },
}


@pytest.fixture(scope="module")
def prepared(place_at: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory, drawn_people: Any) -> Any:
    """A workspace in which everything that the study reads is there."""
    place = place_at(tmp_path_factory.mktemp("study") / "workspace")
    place.edit(PARAMS)
    (place.root / "data/people").symlink_to(drawn_people.root / "data/people")
    people = PersonDataset(place.root / "data/people")
    pipe = build_tiny_pipeline(SMALL, word_vocabulary(people.rows(split="train", form="short").column("caption")), 0)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():  # FLUX starts with a silent output layer: give it a voice
        for parameter in pipe.transformer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    pipe.save_pretrained(place.root / "models/base")
    write_reference(place.root / "models/base", place.root / "models/base.json")
    AttributeProbe(ATTRIBUTES, height=64, width=32, seed=0).save(place.root / "models/probe")
    run_stage(taca_cache.run, "taca_cache", place.root, place.root)
    (place.root / "studies").mkdir()
    (place.root / "studies/taca.yaml").write_text(yaml.safe_dump(PLAN))
    return place


def run_stage(function: Any, address: str, root: Path, target: Path, **replaced: Any) -> dict[str, Any]:
    """A stage's function on the inputs in `root`, its outputs below `target`."""
    run = find(address)
    scratch = Scratch(target / "scratch" / address)
    scratch.figures.mkdir(parents=True)
    params = Parameters.partial({**load(root / "params.yaml").only(run.stage.reads), **replaced})
    context = StageContext(scratch, seed=params.__dict__.get("seed", 0), arm=run.arm, device=torch.device("cpu"))
    inputs = {name: target / path if (target / path).exists() else root / path for name, path in run.inputs.items()}
    outputs = {name: target / path for name, path in run.outputs.items()}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    return function(params, inputs, outputs, context)


def opened_in(place: Any, home: Path) -> Opened:
    return open_study("taca", Workspace(place.root, home))


@pytest.fixture(scope="module")
def finished(prepared: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Opened, dict[str, Any]]:
    opened = opened_in(prepared, tmp_path_factory.mktemp("home"))
    return opened, json.loads(run_study(opened).read_text())


def test_an_arm_at_the_pipelines_seed_is_what_the_stages_make(prepared, finished, tmp_path):
    opened, _ = finished
    done = opened.done()
    run_stage(taca_train.run, "taca_train@taca", prepared.root, tmp_path)
    kept = opened.store.files(opened.identities["train/taca/seed-0"]) / "adapter"
    written = tmp_path / "models/adapters/taca"
    assert files_below(kept) == files_below(written)
    assert files_below(kept)
    made = run_stage(taca_generate.run, "taca_generate@taca_lora", prepared.root, tmp_path)
    judged = run_stage(taca_evaluate.run, "taca_evaluate@taca_lora", prepared.root, tmp_path)
    for guidance in ("1", "2.5"):
        cell = done[f"arms/taca_lora/guidance-{guidance}/seed-0"]
        assert cell["alignment"] == pytest.approx(judged[f"guidance_{guidance}"]["alignment"]["mean"], abs=1e-9)
        assert (cell["steps"], cell["active_steps"]) == (made["steps"], made["active_steps"])


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_seed_trains_another_adapter_and_starts_from_other_noise(finished):
    opened, _ = finished
    done = opened.done()
    adapters = [files_below(opened.store.files(opened.identities[f"train/lora/seed-{seed}"])) for seed in (0, 1)]
    assert adapters[0] != adapters[1]
    assert done["arms/base/guidance-1/seed-0"]["shown"] != done["arms/base/guidance-1/seed-1"]["shown"]


def test_differences_are_paired_by_prompt_and_seed(finished):
    opened, document = finished
    done = opened.done()
    for guidance in ("1", "2.5"):
        arms = document["summary"]["arms"][f"guidance {guidance}"]
        assert list(arms) == sorted(TACA_ARMS)
        for arm, row in arms.items():
            shown = {
                name: np.array([done[f"arms/{name}/guidance-{guidance}/seed-{seed}"]["shown"] for seed in (0, 1)])
                for name in (arm, "base")
            }
            difference = shown[arm] - shown["base"]  # (2 seeds, 4 prompts)
            assert row["by_seed"] == pytest.approx(shown[arm].mean(1).tolist(), rel=1e-5)
            assert row["difference_by_seed"] == pytest.approx(difference.mean(1).tolist(), rel=1e-5)
            expected = bootstrap_crossed(difference, resamples=200, seed=0).as_dict()
            assert row["difference"] == pytest.approx(expected, rel=1e-5)
        assert arms["base"]["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert any(row["difference"]["mean"] for row in document["summary"]["arms"]["guidance 1"].values())


def test_the_map_counts_active_steps_and_gamma_one_is_the_base_itself(finished):
    _, document = finished
    for rows in document["summary"]["map"].values():
        found = {(row["gamma"], row["threshold"]): row for row in rows}
        assert set(found) == {(1.0, 0.97), (1.0, 0.0), (3.0, 0.97), (3.0, 0.0)}
        # Shift 3 and 4 steps: sigma 1, 0.9, 0.75, 0.5.
        assert [found[3.0, threshold]["active_steps"] for threshold in (0.97, 0.0)] == [1, 4]
        assert found[1.0, 0.97]["difference"] == found[1.0, 0.0]["difference"] == {"mean": 0, "low": 0, "high": 0}
        assert all((row["seeds"], row["prompts"]) == ([1], 3) for row in rows)


def test_variants_stand_beside_the_default_schedule_on_their_own_prompts(finished):
    _, document = finished
    for rows in document["summary"]["variants"].values():
        assert set(rows) == {"taca", "as it is", "bias", "constant"}
        assert all((row["seeds"], row["prompts"]) == ([0, 1], 2) for row in rows.values())
        assert rows["as it is"] == rows["taca"]  # drawn again for fewer prompts: the same pictures
        assert rows["constant"]["active_steps"] == 4
    settings = {cell["key"]: cell["settings"] for cell in document["cells"]}
    bias = settings["variants/bias/guidance-1/seed-0"]
    assert (bias["effect"], bias["gamma"]) == ("bias", 3.0)
    assert bias["threshold"] == document["summary"]["default"]["threshold"]


def test_what_is_not_done_is_left_out_of_the_summary(prepared, tmp_path):
    opened = opened_in(prepared, tmp_path)
    kept = (opened.workspace.root / "studies/results/taca.json").read_bytes()
    document = json.loads(run_study(opened, "arms/[bt]a*/guidance-1/seed-1").read_text())
    assert (opened.workspace.root / "studies/results/taca.json").read_bytes() == kept
    assert (document["done"], document["of"]) == (4, len(opened.cells))  # an adapter and three arms
    assert list(document["summary"]["arms"]["guidance 1"]) == ["base", "taca", "taca_lora"]
    assert document["summary"]["arms"]["guidance 1"]["taca"]["seeds"] == [1]
    assert document["summary"]["arms"]["guidance 2.5"] == {}
    assert document["summary"]["map"] == {"guidance 1": [], "guidance 2.5": []}


@pytest.mark.heavy
def test_a_killed_study_goes_on_and_ends_with_the_same_bytes(prepared, finished, tmp_path, waiting):
    opened, _ = finished
    results = opened.workspace.root / "studies/results/taca.json"
    undisturbed = results.read_bytes()
    results.unlink()
    process = prepared.fork("study", "taca", PIPELINES_HOME=str(tmp_path))
    # Two adapters and an arm are there, a later cell is being measured.
    waiting(lambda: len(list((tmp_path / "studies/taca").glob("*.json"))) >= 5, process, 120)
    process.kill()
    assert process.wait(100) == -signal.SIGKILL
    assert not results.exists()
    again = prepared.call("study", "taca", PIPELINES_HOME=str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert 5 <= int(again.stdout.split(" cells, ")[1].split()[0]) < len(opened.cells)
    measured, before = json.loads(results.read_text()), json.loads(undisturbed)
    assert {**measured, "cost": None} == {**before, "cost": None}


def test_prompts_in_other_words_have_the_same_noise_and_are_judged_by_the_same_facts(prepared, tmp_path, monkeypatch):
    asked: list[tuple[list[str], list[int]]] = []

    def recorded(pipe: Any, prompts: list[str], seeds: list[int], **settings: Any) -> torch.Tensor:
        asked.append((prompts, seeds))
        return generate(pipe, prompts, seeds, **settings)

    monkeypatch.setattr(taca_cells, "generate", recorded)
    judged = []
    for words in ("trained", "noun-first"):
        plan = {"kind": "taca", "words": words, "guidance": [1.0], "arms": {"seeds": [0], "prompts": 4}}
        (prepared.root / "studies/wording.yaml").write_text(yaml.safe_dump(plan))
        opened = open_study("wording", Workspace(prepared.root, tmp_path))
        run_study(opened, "arms/base/*")
        judged.append(opened.done()["arms/base/guidance-1/seed-0"]["prompt_ids"])
    (trained, seeds), (turned, same) = asked
    assert seeds == same
    assert judged[0] == judged[1]
    assert turned == [noun_first(prompt) for prompt in trained]
    assert all(prompt != other for prompt, other in zip(trained, turned, strict=True))


def test_the_studys_own_plan_is_valid_and_what_it_promises():
    plan = read(ROOT / "studies/taca.yaml", taca.TacaPlan, "studies/taca.yaml")
    every = taca.cells(plan, load(ROOT / "params.yaml"))
    assert len({cell.key for cell in every}) == len(every)
    assert len(plan.arms.seeds) >= 2
    assert len(plan.confirm) >= 5
    fresh = [cell for cell in every if cell.phase == "confirm"]
    assert {cell.settings["seed"] for cell in fresh} == set(plan.confirm)
    assert {cell.function for cell in fresh} == {"train", "draw"}
    assert 1.0 in plan.guidance
    assert max(plan.guidance) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"map": {**PLAN["map"], "seeds": [7]}},
            "studies/taca.yaml: map: seeds and prompts must be among those of arms",
        ),
        ({"guidance": [1.0, 1.0]}, "studies/taca.yaml: guidance: a value is listed twice"),
        ({"guidance": [0.5]}, "guidance.0 = 0.5"),
        (
            {"variants": {**PLAN["variants"], "schedules": {"odd": {"gama": 2}}}},
            "studies/taca.yaml: variants.schedules.odd: gama: unknown key, did you mean gamma?",
        ),
    ],
)
def test_a_mistake_in_the_plan_is_named(prepared, tmp_path, change, message):
    place = tmp_path / "workspace"
    (place / "studies").mkdir(parents=True)
    (place / "studies/taca.yaml").write_text(yaml.safe_dump({**PLAN, **change}))
    (place / "params.yaml").write_text((prepared.root / "params.yaml").read_text())
    with pytest.raises(ParameterError) as caught:
        open_study("taca", Workspace(place, tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
