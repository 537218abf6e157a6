"""FLUX and SD3 through the same stages: base_model, taca_cache, taca_train, taca_generate, on small published models."""

import json
import shutil
from pathlib import Path

import pytest
import small_pipelines
import torch
from torchvision.io import encode_png

from components.errors import ParameterError
from components.persons.shards import CaptionRow, DatasetWriter, PersonDataset
from components.taca.cache import LatentCache
from components.taca.lora_files import read_lora_settings
from pipelines import presets
from pipelines.engine.context import StageContext
from pipelines.graph import find
from pipelines.params import Parameters, load
from pipelines.scratch.folder import Scratch
from pipelines.stages import base_model, taca_cache, taca_generate, taca_train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
STAGES = {module.__name__.rsplit(".", 1)[-1]: module for module in (base_model, taca_cache, taca_train, taca_generate)}
REVISION = "0123456789abcdef0123456789abcdef01234567"
VALUES = {
    "pictures": {"height": 32, "width": 16},
    "base_model": {"source": "someone/small", "revision": REVISION, "sha256": None},
    "taca": {"gamma": 3.0, "threshold": 0.7},
    "taca_cache": {"captions": 4, "batch": 2},
    "taca_train": {"rank": 2, "training": {"steps": 4, "batch": 4, "report_every": 2, "checkpoint_every": 2}},
    "taca_generate": {"prompts": 2, "corpus": 4, "guidance": [1.0, 2.0], "steps": 4, "batch": 2},
}


# Of 4 steps with shift 3, those at 0.7 and above: FLUX's call spaces them to 1, .9, .75, .5, SD3's to 1, .86, .60, .01.
ACTIVE_STEPS = {"flux": 3, "sd3": 2}


@pytest.fixture(params=list(ACTIVE_STEPS))
def model(request):
    return request.param


@pytest.fixture
def workspace(model, tmp_path, monkeypatch):
    """Six pictures of three people, and a small model as the Hugging Face cache keeps a published one."""
    with DatasetWriter(tmp_path / "data/people") as writer:
        for image in range(6):
            noise = torch.randint(256, (3, 32, 16), generator=torch.Generator().manual_seed(image), dtype=torch.uint8)
            caption = CaptionRow(("red hat", "blue coat", "blue hat")[image // 2], "short")
            split = "test" if image >= 4 else "train"
            writer.add(bytes(encode_png(noise).numpy()), [caption], identity=image // 2, split=split, source="made up")
    snapshot = tmp_path / "hub/models--someone--small/snapshots" / REVISION
    getattr(small_pipelines, f"small_{model}_pipeline")(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    presets.edit(tmp_path / "params.yaml", VALUES)
    return tmp_path


def run(root, address, offload="none", **changed):
    """A stage in `root`, as a worker calls it; returns its metrics."""
    if changed:
        presets.edit(root / "params.yaml", changed)
    stage = find(address)
    params = Parameters.partial(load(root / "params.yaml").only(stage.stage.reads))
    inputs, outputs = ({name: root / path for name, path in paths.items()} for paths in (stage.inputs, stage.outputs))
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Scratch(root / "scratch" / address)
    scratch.figures.mkdir(parents=True, exist_ok=True)
    context = StageContext(scratch, seed=0, arm=stage.arm, device=torch.device("cpu"), offload=offload)
    return STAGES[stage.stage.name].run(params, inputs, outputs, context)


def drawn(root, arm):
    """Pixels of an arm's pictures, by their source."""
    people = PersonDataset(root / "data/generated" / arm)
    rows = people.rows(split="val", form="short")
    pixels = people.pixels(rows.column("image_id"), 32, 16)
    return dict(zip(("guidance 1", "guidance 2"), pixels.split(2), strict=True))


def test_a_published_model_goes_from_its_reference_to_pictures_of_every_arm(model, workspace):
    assert run(workspace, "base_model")["files"] > 10
    assert json.loads((workspace / "models/base.json").read_text())["revision"] == REVISION
    assert run(workspace, "taca_cache") == {"captions": 4, "reshaped": 0, "enlarged": 0}
    for arm in ("lora", "taca"):
        assert run(workspace, f"taca_train@{arm}")["trainable_parameters"] > 0
    assert read_lora_settings(workspace / "models/adapters/taca")["gamma"] == 3.0
    metrics = {arm: run(workspace, f"taca_generate@{arm}") for arm in ("base", "lora", "taca", "taca_lora")}
    assert metrics["base"] == {"pictures": 4, "active_steps": 0, "steps": 4}
    assert metrics["taca"]["active_steps"] == ACTIVE_STEPS[model]
    assert metrics["taca_lora"]["pictures"] == 8
    for scale in ("guidance 1", "guidance 2"):
        pictures = [drawn(workspace, arm)[scale] for arm in metrics]
        assert all(not torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[i + 1 :])


def test_pictures_of_another_shape_are_squashed_or_cropped_as_set_and_counted(workspace, capsys):
    people = workspace / "data/people"
    shutil.rmtree(people)
    wide = torch.zeros(3, 32, 32, dtype=torch.uint8)
    wide[:, :, 8:24] = 255  # the crop is white
    with DatasetWriter(people) as writer:
        for picture in (wide, wide[:, ::2, 8:16]):
            content = bytes(encode_png(picture.contiguous()).numpy())
            writer.add(content, [CaptionRow("red hat", "short")], identity=0, split="train", source="made up")
    run(workspace, "base_model")
    latents = {}
    for fit in ("squash", "crop"):
        found = run(workspace, "taca_cache", taca_cache={"fit": fit})
        assert found == {"captions": 2, "reshaped": 1, "enlarged": 1}
        latents[fit] = LatentCache.open(workspace / "data/taca_cache").batch([0, 1])["latents"]
        shutil.rmtree(workspace / "data/taca_cache")
    assert "1 of 2 pictures are of another shape and are cropped to 32 x 16" in capsys.readouterr().out
    assert torch.equal(latents["crop"][0], latents["crop"][1])
    assert not torch.equal(latents["squash"][0], latents["squash"][1])


def test_weights_can_be_bfloat16_in_every_stage(workspace):
    run(workspace, "base_model")
    half = {"base_dtype": "bf16"}
    run(workspace, "taca_cache", taca_cache=half)
    assert LatentCache.open(workspace / "data/taca_cache").batch([0])["latents"].dtype == torch.bfloat16
    run(workspace, "taca_train@taca", taca_train=half)
    run(workspace, "taca_generate@taca_lora", taca_generate=half)
    assert drawn(workspace, "taca_lora")["guidance 1"].float().std() > 5


def test_generation_that_was_stopped_after_its_last_picture_reports_the_same(workspace):
    run(workspace, "base_model")
    first = run(workspace, "taca_generate@taca")
    pictures = drawn(workspace, "taca")
    shutil.rmtree(workspace / "data/generated/taca")
    shutil.rmtree(workspace / "scratch/taca_generate@taca/figures")
    assert run(workspace, "taca_generate@taca") == first
    assert all(torch.equal(pictures[name], again) for name, again in drawn(workspace, "taca").items())


@pytest.mark.heavy
@pytest.mark.parametrize("model", ["flux"], indirect=True)
def test_a_small_card_draws_from_quantised_weights_away_from_a_negative_prompt(workspace):
    run(workspace, "base_model")
    with pytest.raises(ParameterError, match="offload group: nothing to move weights from"):
        run(workspace, "taca_generate@taca", offload="group")
    shutil.rmtree(workspace / "scratch/taca_generate@taca")
    with pytest.raises(ParameterError, match="quantize int8: computes in bfloat16 only"):
        run(workspace, "taca_generate@taca", taca_generate={"quantize": "int8"})
    shutil.rmtree(workspace / "scratch/taca_generate@taca")
    pictures = []
    for quantize, negative in (("none", ""), ("int8", ""), ("int8", "coat")):
        generate = {"base_dtype": "bf16", "quantize": quantize, "negative_prompt": negative}
        run(workspace, "taca_generate@taca", taca_generate=generate)
        pictures.append(drawn(workspace, "taca"))
        shutil.rmtree(workspace / "scratch/taca_generate@taca")
        shutil.rmtree(workspace / "data/generated/taca")
    plain, packed, away = pictures
    assert all(not torch.equal(packed[source], plain[source]) for source in plain)
    assert torch.equal(away["guidance 1"], packed["guidance 1"])
    assert not torch.equal(away["guidance 2"], packed["guidance 2"])
