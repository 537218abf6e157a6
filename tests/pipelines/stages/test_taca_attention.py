"""The stage that measures attention on text, what the report takes from it, and its drawing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import encode_png

from components.persons.shards import CaptionRow, DatasetWriter
from components.taca.reference import write_reference
from components.taca.toy.config import TinyConfig
from components.taca.toy.pipeline import build_tiny_pipeline
from pipelines import presets
from pipelines.engine.context import StageContext
from pipelines.graph import find
from pipelines.params import Parameters, load
from pipelines.reporting.attention import mass_chart, mass_panels
from pipelines.scratch.folder import Scratch
from pipelines.stages import taca_attention
from pipelines.stages.parts.report_attention import attention_section
from pipelines.stages.report import columns, to_text

ROOT = Path(__file__).resolve().parents[3]
LAYERS = ("double 0", "single 0")
STEPS, PROMPTS, GAMMA, THRESHOLD = 4, 3, 1.5, 0.8  # sigma 1, .9, .75, .5


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of two people, and a small untrained model."""
    root = tmp_path_factory.mktemp("workspace")
    picture = bytes(encode_png(torch.zeros(3, 64, 32, dtype=torch.uint8)).numpy())
    with DatasetWriter(root / "data/people") as writer:
        for image in range(6):
            caption = CaptionRow(("red hat", "blue hat")[image // 3], "short")
            writer.add(picture, [caption], identity=image // 3, split="test", source="made up")
    small = TinyConfig(width=32, heads=2, double_blocks=1, single_blocks=1, text_width=16, text_layers=1, text_tokens=6)
    pipe = build_tiny_pipeline(small, ("red", "blue", "hat"), seed=0)
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    pipe.save_pretrained(root / "models/base")
    write_reference(root / "models/base", root / "models/base.json")
    return root


def run_stage(root: Path, folder: Path, **taca: float) -> tuple[Path, dict]:
    (folder / "params.yaml").parent.mkdir(parents=True)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    values = {
        "taca": {"gamma": GAMMA, "threshold": THRESHOLD, **taca},
        "taca_generate": {"steps": STEPS, "prompts": 6, "batch": 2},
        "taca_attention": {"prompts": PROMPTS},
    }
    presets.edit(folder / "params.yaml", values)
    run = find("taca_attention")
    params = Parameters.partial(load(folder / "params.yaml").only(run.stage.reads))
    inputs = {name: root / path for name, path in run.inputs.items()}
    outputs = {name: folder / path for name, path in run.outputs.items()}
    outputs["attention"].parent.mkdir()
    context = StageContext(Scratch(folder / "scratch"), seed=0, arm=None, device=torch.device("cpu"))
    return outputs["attention"], taca_attention.run(params, inputs, outputs, context)


@pytest.fixture(scope="module")
def measured(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    return run_stage(workspace, tmp_path_factory.mktemp("run") / "one")


def test_two_runs_give_the_same_bytes(workspace, measured, tmp_path):
    path, metrics = measured
    again, same = run_stage(workspace, tmp_path / "two")
    assert again.read_bytes() == path.read_bytes()
    assert same == metrics


def test_prompts_are_spread_over_the_people(measured):
    table = columns(measured[0])
    assert sorted(set(table["prompt_id"])) == [0, 2, 4]
    assert len(table["mass"]) == 2 * PROMPTS * STEPS * len(LAYERS)


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in columns(path).items()}


def test_metrics_are_means_over_the_cells_where_taca_is_on(measured):
    path, metrics = measured
    rows = arrays(path)
    assert set(rows["step"][(rows["arm"] == "taca") & rows["active"]]) == {1, 2}
    assert (metrics["active_steps"], metrics["steps"], metrics["prompts"]) == (2, STEPS, PROMPTS)
    assert (metrics["text_tokens"], metrics["image_tokens"]) == (6, 128)
    by_layer = metrics["layer"]
    for layers, told in ((LAYERS, metrics), (LAYERS[:1], by_layer["double_0"]), (LAYERS[1:], by_layer["single_0"])):
        cells = (rows["step"] <= 2) & np.isin(rows["layer"], layers)
        mean = {}  # of arm and prompt
        for arm in ("base", "taca"):
            of_arm = cells & (rows["arm"] == arm)
            mean[arm] = np.array([100 * rows["mass"][of_arm & (rows["prompt_id"] == p)].mean() for p in (0, 2, 4)])
            assert told[arm] == pytest.approx(mean[arm].mean())
        differences, interval = mean["taca"] - mean["base"], told["difference"]
        assert interval["mean"] == pytest.approx(differences.mean())
        assert differences.min() - 1e-9 <= interval["low"] <= interval["high"] <= differences.max() + 1e-9


def test_taca_moves_the_mass_from_the_first_step_on_and_the_base_arm_is_without_it(measured):
    rows = arrays(measured[0])
    first = (rows["step"] == 1) & (rows["layer"] == "double 0")
    base, taca = (rows["mass"][first & (rows["arm"] == arm)] for arm in ("base", "taca"))
    assert np.abs(base - taca).min() > 1e-4
    assert not rows["active"][rows["arm"] == "base"].any()


def test_a_gamma_of_one_is_measured_as_no_taca(workspace, tmp_path):
    path, metrics = run_stage(workspace, tmp_path / "off", gamma=1.0)
    rows = arrays(path)
    assert rows["mass"][rows["arm"] == "base"].tolist() == rows["mass"][rows["arm"] == "taca"].tolist()
    assert metrics["active_steps"] == 0
    assert "difference" not in metrics
    section = attention_section(metrics, columns(path))
    assert section["change"] == {}
    assert [layer["change"] for layer in section["layers"]] == [{}, {}]
    assert all('class="band"' not in panel["svg"] for panel in mass_panels(section))


def test_the_report_shows_the_mean_over_prompts_of_every_layer_and_step(measured):
    path, metrics = measured
    section = json.loads(to_text(attention_section(metrics, columns(path))))
    rows = arrays(path)
    assert [layer["name"] for layer in section["layers"]] == list(LAYERS)
    assert section["sigma"] == pytest.approx([1.0, 0.9, 0.75, 0.5])
    for layer in section["layers"]:
        assert layer["active"] == [True, True, False, False]
        assert layer["change"]["taca"] == pytest.approx(
            metrics["layer"][layer["name"].replace(" ", "_")]["taca"], rel=1e-5
        )
        for arm in ("base", "taca"):
            mine = (rows["arm"] == arm) & (rows["layer"] == layer["name"])
            expected = [100 * rows["mass"][mine & (rows["step"] == step)].mean() for step in range(1, STEPS + 1)]
            assert layer["mass"][arm] == pytest.approx(expected, rel=1e-5)


def chart_of(active, base, taca):
    layer = {"name": "double <0>", "mass": {"base": base, "taca": taca}, "active": active}
    return str(mass_chart(layer, [1.0, 0.9, 0.5], 20.0, [0, 10, 20, 30, 40]))


def test_a_drawing_puts_values_bands_and_the_uniform_share_on_the_same_axes():
    svg = chart_of([True, True, False], [10, 20, 30], [40, 30, 0])
    points = {
        name: np.array([[float(n) for n in pair.split(",")] for pair in path.split()])
        for name, path in re.findall(r'class="curve (\w+)" points="([^"]*)"', svg)
    }
    grid = [float(y) for y in re.findall(r'class="grid".*?y1="([\d.]+)"', svg)]  # of 0, 10, 20, 30, 40
    assert points["base"][:, 1].tolist() == grid[1:4]
    assert points["taca"][:, 1].tolist() == [grid[4], grid[3], grid[0]]
    assert float(re.search(r'class="uniform".*?y1="([\d.]+)"', svg)[1]) == grid[2]
    ((start, width),) = [
        (float(x), float(w)) for x, w in re.findall(r'class="band" x="([\d.]+)".*?width="([\d.]+)"', svg)
    ]
    across = points["base"][:, 0]
    assert across[0] > start
    assert across[1] < start + width < across[2]
    assert "step 2, σ 0.900: 20.0 % without TACA, 30.0 % with TACA" in svg
    assert "double &lt;0&gt;" in svg


def test_a_temperature_that_comes_and_goes_has_a_band_for_each_stretch():
    assert chart_of([True, False, True], [1, 2, 3], [4, 5, 6]).count('class="band"') == 2
    assert chart_of([False] * 3, [1, 2, 3], [4, 5, 6]).count('class="band"') == 0
