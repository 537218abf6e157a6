"""The dry run: presets resolve, models of exactly the published architectures are patched, and what is missing is said."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from components.errors import DataError, ParameterError
from components.taca.conventions import sampler_sigmas
from components.taca.footprint import Activations, count_activations
from pipelines import presets
from pipelines.__main__ import main
from pipelines.health import architectures, drawing_plan
from pipelines.health import dry_run as dryrun
from pipelines.health.encoder_plan import encoder_rows
from pipelines.identity.closure import ROOT
from pipelines.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """params.yaml, presets and checkpoints of this checkout, no data, and an empty Hugging Face cache."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / "pretraining").symlink_to(ROOT / "pretraining")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return Workspace(tmp_path, tmp_path / ".runs")


def count_from_few_blocks(config: Mapping[str, Any], **settings: Any) -> Activations:
    """`count_activations` in a tenth of the time: a block of each kind is counted once and stands for all that follow it."""
    layers = config["num_layers"]
    if config["_class_name"] == "FluxTransformer2DModel":
        fewer: dict[str, Any] = {"num_layers": 2, "num_single_layers": 2}
        times = (1, layers - 1, 1, config["num_single_layers"] - 1)
    else:
        dual = len(config["dual_attention_layers"])
        fewer = {"num_layers": 4, "dual_attention_layers": (0, 1)}
        times = (1, dual - 1, layers - dual - 1, 1)  # the last one drops the text
    found = count_activations({**config, **fewer}, **settings)
    inputs, internals = (
        tuple(chain.from_iterable(map(repeat, blocks, times))) for blocks in (found.inputs, found.internals)
    )
    return Activations(found.outside, inputs, internals)


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dryrun, "count_activations", count_from_few_blocks)


@pytest.fixture
def _one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations are counted for the batch of one GPU, not for that of each number of GPUs."""
    monkeypatch.setattr(dryrun, "GPUS", (1,))


@pytest.mark.parametrize(
    ("name", "fewer"),
    [
        ("flux-dev", {"num_layers": 3, "num_single_layers": 4}),
        ("sd35-medium", {"num_layers": 7, "dual_attention_layers": [0, 1, 2]}),
        pytest.param("flux-dev", {}, marks=pytest.mark.heavy),
        pytest.param("sd35-medium", {}, marks=pytest.mark.heavy),
    ],
)
def test_blocks_of_one_kind_keep_the_same_activations(name: str, fewer: dict[str, Any]) -> None:
    config = json.loads((ROOT / f"presets/architectures/{name}.json").read_text()) | fewer
    settings: dict[str, Any] = {"rank": 4, "batch": 2, "latent": (8, 8), "text_tokens": 12}
    assert count_from_few_blocks(config, **settings) == count_activations(config, **settings)


@pytest.fixture(scope="module")
def plan_of() -> Callable[[str], dryrun.RunPlan]:
    """The plan of a preset, made once."""
    return cache(lambda preset: dryrun.plan(presets.resolve(ROOT, preset), Workspace(ROOT, ROOT / ".runs")))


def architecture(name: str) -> architectures.Architecture:
    return architectures.read(ROOT / "presets/architectures" / f"{name}.json")


def test_flux_dev_is_patched_in_57_layers_and_trains_104_6_million_parameters(
    plan_of: Callable[[str], dryrun.RunPlan],
) -> None:
    found = plan_of("flux-dev")
    assert (found.patched_modules, found.joint_layers) == (57, 57)
    assert found.parameters == 11_901_408_320
    # 19 double-stream blocks with 8 linears and 38 single-stream ones with 3, each 2 x 64 x 3072.
    assert found.trainable == (19 * 8 + 38 * 3) * 2 * 64 * 3072
    assert (found.image_tokens, found.architecture.text_tokens) == (4096, 512)
    assert found.active_steps == 3
    assert [1000 * sigma for sigma in found.sigmas[:4]] == pytest.approx([1000, 989.2, 977.9, 966.0], abs=0.05)


@pytest.mark.usefixtures("_one_gpu")
def test_sd35_medium_is_patched_in_24_layers_and_trains_37_6_million_parameters(
    plan_of: Callable[[str], dryrun.RunPlan],
) -> None:
    found = plan_of("sd35-medium")
    assert (found.patched_modules, found.joint_layers) == (24, 24)
    assert found.parameters == 2_243_171_520
    # 24 blocks with 8 linears of 1536, but the last has no to_add_out; attn2 has none.
    assert found.trainable == (24 * 8 - 1) * 2 * 64 * 1536
    assert (found.image_tokens, found.architecture.text_tokens) == (4096, 333)
    assert found.active_steps == 3
    assert [1000 * sigma for sigma in found.sigmas[:4]] == pytest.approx([1000, 988.3, 976.0, 963.1], abs=0.05)


@pytest.mark.parametrize(
    ("preset", "steps", "pixels", "active"),
    [
        ("flux-dev", 4, 1024, 1),
        ("flux-dev", 20, 1024, 2),
        ("flux-dev", 28, 768, 2),
        ("flux-dev", 30, 768, 3),
        ("flux-dev", 30, 512, 2),
        ("flux-dev", 50, 1024, 5),
        ("flux-dev", 50, 512, 3),
        ("sd35-medium", 20, 1024, 2),
        ("sd35-medium", 28, 1024, 3),
        ("sd35-medium", 50, 512, 5),
    ],
)
def test_active_steps_follow_step_count_and_resolution_as_real_samplers_do(
    preset: str, steps: int, pixels: int, active: int
) -> None:
    sigmas = sampler_sigmas(architecture(preset).pipe, steps, pixels, pixels).tolist()
    assert sum(sigma >= 0.97 for sigma in sigmas) == active
    assert len(sigmas) == steps


@pytest.mark.parametrize("source", ["tiny", "pretraining/checkpoints/generator"])
def test_tokens_and_sampler_of_a_small_model_are_those_of_its_pipeline(workspace: Workspace, source: str) -> None:
    from components.taca.toy.config import TinyConfig
    from components.taca.toy.pipeline import build_tiny_pipeline

    published = presets.resolve(ROOT, None).base_model.sha256
    values = {"source": source, "sha256": None if source == "tiny" else published}
    presets.edit(workspace.root / "params.yaml", {"base_model": values})
    model = architectures.find(presets.resolve(workspace.root, None), ROOT)
    pipe: Any = build_tiny_pipeline(TinyConfig(), ("red",), 0)
    pipe("red", height=64, width=32, num_inference_steps=7, max_sequence_length=24, output_type="latent")
    assert sampler_sigmas(model.pipe, 7, 64, 32).tolist() == pytest.approx(pipe.scheduler.sigmas[:-1].tolist())
    assert (model.image_tokens(64, 32), model.text_tokens) == (128, 24)


def test_a_preset_is_laid_over_the_parameters_and_nothing_is_written(workspace: Workspace) -> None:
    before = {path: path.read_bytes() for path in workspace.root.rglob("*") if path.is_file()}
    chosen = presets.resolve(workspace.root, "flux-dev")
    assert (chosen.base_model.source, chosen.taca.threshold, chosen.pictures.width) == (
        "black-forest-labs/FLUX.1-dev",
        0.97,
        1024,
    )
    assert chosen.probe == presets.resolve(workspace.root, None).probe
    assert {path: path.read_bytes() for path in workspace.root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["flux-dev", "sd35-medium"])
def test_presets_hold_the_recipe_of_the_paper(workspace: Workspace, name: str) -> None:
    chosen = presets.resolve(workspace.root, name)
    assert (chosen.taca.gamma, chosen.taca.threshold, chosen.taca_train.rank) == (1.2, 0.97, 64)
    training = chosen.taca_train.training
    assert (training.learning_rate, training.batch, training.precision) == (1e-4, 4, "bf16")
    assert chosen.taca_generate.steps == 30


@pytest.mark.parametrize("name", ["flux-dev", "sd35-medium"])
def test_what_is_missing_is_listed_with_what_to_do_and_is_no_error(workspace: Workspace, name: str) -> None:
    chosen = presets.resolve(workspace.root, name)
    source = chosen.base_model.source
    model, data = dryrun.missing(chosen, workspace)
    revision = f"base_model.revision is null: set it to the full commit of {source}"
    assert model == f"base_model.source: {source}: {revision}; `hf download {source} --revision <commit>`"
    assert "taca-pairs/manifest.csv does not exist" in data


def test_weights_in_the_cache_and_data_in_place_are_not_missing(workspace: Workspace) -> None:
    commit = "0123456789" * 4
    presets.edit(workspace.root / "params.yaml", presets.read("flux-dev", workspace.root))
    presets.edit(workspace.root / "params.yaml", {"base_model": {"revision": commit}})
    assert (
        "not in the Hugging Face cache: `hf download"
        in dryrun.missing(presets.resolve(workspace.root, None), workspace)[0]
    )
    folder = workspace.root / "hub/models--black-forest-labs--FLUX.1-dev/snapshots" / commit
    (folder / "transformer").mkdir(parents=True)
    parts = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(parts))
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {}}')
    manifest = workspace.path("data/raw/taca-pairs/manifest.csv")
    manifest.parent.mkdir(parents=True)
    manifest.write_text("image_path,caption,identity,split\na.png,a cat,1,train\n")
    assert dryrun.missing(presets.resolve(workspace.root, None), workspace) == []


def test_the_base_model_stage_asks_for_the_revision_in_the_same_words(workspace: Workspace, tmp_path: Path) -> None:
    from pipelines.stages.base_model import run

    chosen = presets.resolve(workspace.root, "flux-dev")
    outputs = {"base": tmp_path / "base.json", "base_weights": tmp_path / "base"}
    with pytest.raises(
        ParameterError, match=r"^base_model.revision is null: set it to the full commit of black-forest"
    ):
        run(chosen, {"people": tmp_path / "data/people"}, outputs, None)  # type: ignore[arg-type]


def test_the_architecture_is_found_again_after_the_preset_was_written(workspace: Workspace) -> None:
    presets.apply(["sd35-medium"], workspace.root)
    assert architectures.find(presets.resolve(workspace.root, None), workspace.root).origin == "sd35-medium.json"


def test_a_model_without_a_known_architecture_needs_a_file(workspace: Workspace) -> None:
    presets.edit(workspace.root / "params.yaml", {"base_model": {"source": "somebody/something"}})
    chosen = presets.resolve(workspace.root, None)
    with pytest.raises(ParameterError, match=r"somebody/something: its architecture is not in .*; give --architecture"):
        architectures.find(chosen, workspace.root)
    given = workspace.root / "presets/architectures/flux-dev.json"
    assert architectures.find(chosen, workspace.root, given).config["num_single_layers"] == 38


def test_a_pipeline_folder_brings_its_own_scheduler(tmp_path: Path) -> None:
    for part in ("transformer", "scheduler"):
        (tmp_path / part).mkdir()
    source, config = ROOT / "presets/architectures", tmp_path / "transformer/config.json"
    shutil.copyfile(source / "sd35-medium.json", config)
    with pytest.raises(DataError, match=r"scheduler_config\.json: cannot be read"):
        architectures.read(config)
    scheduler = json.loads((source / "sd35-medium-scheduler.json").read_text()) | {"shift": 2.5}
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    assert architectures.read(config).pipe.scheduler.config.shift == 2.5


@pytest.mark.parametrize(
    ("content", "error", "expected"),
    [
        (None, DataError, "cannot be read"),
        ("{", DataError, "not JSON"),
        ("[1]", DataError, "must hold an object"),
        ('{"_class_name": "PixArtTransformer2DModel"}', ParameterError, "a dry run supports FluxTransformer2DModel"),
    ],
)
def test_a_file_that_is_no_architecture_is_refused_in_one_line(
    tmp_path: Path, content: str | None, error: type[Exception], expected: str
) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(error, match=expected) as caught:
        architectures.read(file)
    assert "\n" not in str(caught.value)


def test_pictures_that_the_model_cannot_draw_are_refused(workspace: Workspace) -> None:
    with pytest.raises(ParameterError, match="1024x1000: both sides must be multiples of 16"):
        architecture("flux-dev").image_tokens(1024, 1000)


def test_memory_says_what_fits_where(plan_of: Callable[[str], dryrun.RunPlan]) -> None:
    rows = {(row.strategy, row.gpus): row for row in plan_of("flux-dev").memory}
    alone, shared = rows["ddp", 1], rows["fsdp", 8]
    assert (alone.batch, rows["ddp", 2].batch, shared.batch) == (4, 2, 1)
    assert alone.bytes.weights == 2 * 11_901_408_320
    assert alone.smallest_gpu != "24 GB"  # the weights alone nearly fill it
    assert shared.smallest_gpu == "24 GB"
    assert shared.bytes.total < alone.bytes.total / 2


@pytest.mark.parametrize("width", [80, 50])
def test_a_narrow_terminal_and_a_pipe_cut_no_number(plan_of: Callable[[str], dryrun.RunPlan], width: int) -> None:
    found = plan_of("flux-dev")
    printed = io.StringIO()
    dryrun.show(found, presets.resolve(ROOT, "flux-dev"), Console(file=printed, width=width))
    table = printed.getvalue().split("Memory of LoRA training")[1].split("Computed")[0]
    assert "…" not in printed.getvalue()
    if width == 80:  # what a pipe has too
        rows = {line[:12].strip(): line[12:].split() for line in table.splitlines() if line[:12].strip()}
        assert rows["weights"] == [f"{row.bytes.weights / 1e9:.1f}" for row in found.memory]
        assert rows["average"][-1] == f"{found.memory[-1].bytes.average / 1e9:.3f}"
        assert rows["fits"][::2] == [row.smallest_gpu.split()[0] for row in found.memory]


def test_a_preset_says_what_draws_on_which_card(plan_of: Callable[[str], dryrun.RunPlan]) -> None:
    drawing = plan_of("flux-dev").drawing
    assert drawing is not None
    weights = 2 * (11_901_408_320 + 4_762_310_656 + 123_060_480 + 83_819_683)  # of the four parts
    assert drawing.bytes("none", {}) == pytest.approx(weights + drawing.memory.decoding, rel=1e-4)
    whole, packed = (drawing_plan.KINDS[name] for name in ("bf16", "int8 (or fp8)"))
    assert [drawing.least(whole, card) for card in drawing_plan.CARDS] == ["group", "none", "none", "none"]
    assert [drawing.least(packed, card) for card in drawing_plan.CARDS] == ["none"] * 4
    printed = io.StringIO()
    Console(file=printed, width=80).print(drawing_plan.drawing_table(drawing))
    row = next(line.split() for line in printed.getvalue().splitlines() if line.strip().startswith("bf16"))
    assert row == ["bf16", "35.4", "24.5", "2.1", "group", "none", "none", "none"]


@pytest.mark.parametrize("layers", [2, pytest.param(60, marks=pytest.mark.heavy)])
def test_qwen_image_is_patched_in_every_layer_and_what_is_not_computed_is_said(tmp_path: Path, layers: int) -> None:
    from diffusers import QwenImageTransformer2DModel

    published = ROOT / "presets/architectures/qwen-image.json"
    shutil.copyfile(published.with_name("qwen-image-scheduler.json"), tmp_path / "qwen-image-scheduler.json")
    file = tmp_path / "qwen-image.json"
    file.write_text(json.dumps(json.loads(published.read_text()) | {"num_layers": layers}))
    found = dryrun.plan(presets.resolve(ROOT, "qwen-image"), Workspace(ROOT, ROOT / ".runs"), file)
    with torch.device("meta"):
        defaults = QwenImageTransformer2DModel(num_layers=layers)
    assert found.parameters == sum(parameter.numel() for parameter in defaults.parameters())
    assert (found.patched_modules, found.joint_layers) == (layers, layers)
    assert found.trainable == layers * 8 * 2 * 64 * 3072
    assert (found.image_tokens, found.active_steps) == (4096, 3)
    assert found.schedule.threshold == 0.97  # the rule, at as many tokens as it was chosen for
    assert not found.memory
    printed = io.StringIO()
    dryrun.show(found, presets.resolve(ROOT, "qwen-image"), Console(file=printed, width=80))
    assert "activations of QwenImageTransformer2DModel are not computed" in " ".join(printed.getvalue().split())
    assert found.without_activations == 2 * found.parameters + 20 * found.trainable


@pytest.mark.parametrize(("preset", "shown"), [("sd35-medium", False), ("smoke", True), (None, True)])
def test_retrieval_is_left_out_for_a_preset_that_states_nothing_of_it(preset, shown, monkeypatch):
    asked = []
    monkeypatch.setattr(dryrun, "plan", lambda *_: None)
    monkeypatch.setattr(dryrun, "show", lambda *_, retrieval: asked.append(retrieval))
    dryrun.dry_run(Workspace(ROOT, ROOT / ".runs"), preset)
    assert asked == [shown]


def test_pictures_of_another_size_than_the_architecture_was_written_for_are_remarked():
    for preset, words in (
        ("sd35-medium", "1024x1024 (the architecture was written for 64x32): 128 x 128"),
        ("smoke", "64x32: 8 x 4"),
    ):
        rows = dict(encoder_rows(presets.resolve(ROOT, preset)))
        assert rows["pictures"].startswith(words)


@pytest.mark.parametrize("name", ["flux2-dev", "qwen-image", "z-image"])
def test_the_architecture_of_a_preset_that_nobody_measured_is_the_defaults_of_its_class(name: str) -> None:
    import diffusers

    config = json.loads((ROOT / f"presets/architectures/{name}.json").read_text())
    with torch.device("meta"):
        defaults = dict(getattr(diffusers, config.pop("_class_name"))().config)
    assert json.loads(json.dumps({key: defaults[key] for key in config})) == config


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "parameters", "layers", "trainable", "active"),
    [
        # 8 double-stream blocks with 8 linears; those of the single-stream ones hold their MLP too, and are left out.
        ("flux2-dev", 32_223_281_152, 56, 8 * 8 * 2 * 64 * 6144, 10),
        ("z-image", 6_154_908_736, 30, 30 * 4 * 2 * 64 * 3840, 5),
    ],
)
def test_presets_carry_the_threshold_over_by_noise(
    plan_of: Callable[[str], dryrun.RunPlan], name: str, parameters: int, layers: int, trainable: int, active: int
) -> None:
    found = plan_of(name)
    assert (found.parameters, found.patched_modules, found.trainable) == (parameters, layers, trainable)
    assert (found.image_tokens, found.schedule.threshold, found.active_steps) == (4096, 0.97, active)
    assert found.drawing is not None
    assert not found.memory


@pytest.mark.usefixtures("_one_gpu")
def test_the_command_prints_it_all_and_exits_with_0(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"pictures": {"height": 128, "width": 128}, "taca_train": {"rank": 2}}
    small = yaml.safe_load((workspace.root / "presets/sd35-medium.yaml").read_text()) | {
        "pictures": changes["pictures"]
    }
    (workspace.root / "presets/small.yaml").write_text(yaml.safe_dump(small))
    arguments = ["--workspace", str(workspace.root), "dry-run", "--preset", "small"]
    arguments += ["--architecture", str(workspace.root / "presets/architectures/sd35-medium.json")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for said in ("24 of 24 joint attention layers", "64 image, 333 text", "Computed, not measured", "hf download"):
        assert said in printed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--preset", "flux-dve"], 2, "preset 'flux-dve' does not exist"),
        (["--architecture", "nowhere.json"], 3, "nowhere.json: cannot be read"),
    ],
)
def test_a_mistake_costs_one_line(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert main(["--workspace", str(workspace.root), "dry-run", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("_one_gpu")
def test_a_threshold_written_as_a_rule_is_resolved_for_the_model(workspace: Workspace) -> None:
    text = (workspace.root / "params.yaml").read_text()
    values = yaml.safe_load(text)
    values["taca"]["threshold"] = {"fraction": 0.25}
    values["base_model"] |= {"source": "tiny", "sha256": None}
    (workspace.root / "params.yaml").write_text(yaml.safe_dump(values))
    found = dryrun.plan(presets.resolve(workspace.root, None), workspace)
    shifted = [3 * u / (1 + 2 * u) for u in (13 / 16, 12 / 16)]  # levels 4 and 5 of 16: the small model's shift is 3
    assert found.schedule.threshold == pytest.approx(sum(shifted) / 2)
    assert (found.active_steps, len(found.sigmas)) == (4, 16)
