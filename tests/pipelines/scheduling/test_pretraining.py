"""`python -m pipelines pretrain` at sizes of seconds, against other readers of what it publishes and itself undisturbed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from processes import wait_until
from shared_folders import made_once
from small_recipe import small_recipe, write_small_recipe
from workspaces import Place

from components.evaluation.probe.model import folder_digest as probe_digest
from components.gadms.published import weights_digest
from components.taca.reference import folder_digest as pipeline_digest
from pipelines.dvc_files import pretraining_yaml
from pipelines.engine.forked import WARM
from pipelines.graph import PRETRAINING
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.params import PretrainingParameters, kind_of, load_for
from pipelines.schema.reading import to_yaml

CHECKPOINTS = Path("pretraining/checkpoints")


@pytest.fixture(scope="session")
def pretrained(place_at, tmp_path_factory) -> Place:
    """A workspace in which everything was pre-trained, once for all test processes. Look, do not touch."""

    def make(folder: Path) -> None:
        place = place_at(folder / "workspace")
        write_small_recipe(place.root)
        done = place.call("pretrain", "--jobs", "1")
        assert done.returncode == 0, done.stdout + done.stderr

    return Place(made_once(tmp_path_factory, "pretrained", make) / "workspace")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.heavy
def test_what_is_published_is_read_by_the_libraries_themselves_and_has_cards(pretrained):
    import open_clip
    from diffusers import FluxPipeline

    folder = pretrained.root / CHECKPOINTS
    pipe = FluxPipeline.from_pretrained(folder / "generator", use_safetensors=True)
    assert pipe.tokenizer_2("striped beanie").input_ids.count(pipe.tokenizer_2.unk_token_id) == 0
    assert open_clip.create_model(f"local-dir:{folder / 'encoder'}").visual.image_size == [64, 32]
    assert (folder / "encoder" / "masked_token_decoder.safetensors").is_file()
    metrics = json.loads((pretrained.root / "metrics/pretrain_publish/all.json").read_text())
    recipe = small_recipe()
    for name in ("generator", "encoder", "probe"):
        card = (folder / name / "README.md").read_text()
        assert {"data", "training", "metrics", "limits", "licence"} <= set(card.lower().split())
        assert f"{recipe['pretrain_probe']['training']['steps']} steps" in card
        assert "seed 0" in card
        assert "{" not in card
    assert f"| {metrics['generator']['vae_psnr']:.1f} |" in (folder / "generator" / "README.md").read_text()
    assert not [name for name, content in contents(folder).items() if str(pretrained.root).encode() in content]
    whole = sum(len(content) for content in contents(folder).values()) / 2**20
    assert abs(whole - metrics["megabytes"]) < 0.01


@pytest.mark.heavy
def test_its_runs_in_mlflow_are_below_one_of_the_pretraining_and_finished(pretrained):
    runs = {run.data.tags["mlflow.runName"].split("/")[0].split(" ")[0]: run for run in pretrained.tracked()}
    assert set(runs) == {"pretraining", *(stage.name for stage in PRETRAINING)}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parents = {run.data.tags.get("mlflow.parentRunId") for name, run in runs.items() if name != "pretraining"}
    assert parents == {runs["pretraining"].info.run_id}
    assert "flow/loss" in runs["pretrain_generator"].data.metrics


@pytest.mark.heavy
def test_the_default_takes_the_checkpoints_by_folder_and_digest(pretrained, with_people):
    place = with_people
    shutil.copytree(pretrained.root / CHECKPOINTS, place.root / CHECKPOINTS)
    generator, probe = (place.root / CHECKPOINTS / name for name in ("generator", "probe"))
    place.edit(
        {"base_model": {"source": str(CHECKPOINTS / "generator")}, "probe": {"source": str(CHECKPOINTS / "probe")}}
    )
    refused = place.run("base_model")
    assert refused.returncode != 0
    assert f"base_model.sha256 is null: set it to {pipeline_digest(generator)}" in refused.stderr
    place.edit({"base_model": {"sha256": pipeline_digest(generator)}, "probe": {"sha256": probe_digest(probe)}})
    for stage in ("base_model", "probe"):
        done = place.run(stage)
        assert done.returncode == 0, done.stderr
    published, own = contents(generator), contents(place.root / "models" / "base")
    assert own == {name: content for name, content in published.items() if name != "README.md"}
    assert (place.root / "models/probe/probe.safetensors").read_bytes() == (probe / "probe.safetensors").read_bytes()
    (probe / "probe.json").write_text((probe / "probe.json").read_text() + " ")
    changed = place.run("probe")
    assert changed.returncode != 0
    assert "expected is probe.sha256" in changed.stderr


@pytest.mark.heavy
def test_the_encoder_is_taken_with_its_decoder_by_the_code_of_published_weights(pretrained):
    from components.gadms.published import pretrained_encoder

    name = str(CHECKPOINTS / "encoder")
    encoder = pretrained_encoder(
        str(pretrained.root / name / "open_clip_config.json"),
        name,
        root=pretrained.root,
        sha256=weights_digest(pretrained.root / name),
        image_size=(64, 32),
    )
    assert encoder.decoder_weights is not None
    long, short = "A lady wearing a scarlet pullover and dotted trousers.", "front view of slim tan woman"
    for caption in (long, short):  # one token a word, no spelling in bytes
        words = caption.lower().replace(".", "").split()
        assert len(encoder.tokenizer.encode(caption)) == len(words) + caption.count(".")


@pytest.mark.heavy
def test_one_part_is_trained_below_a_run_of_its_own_and_the_default_takes_it_by_its_digest(with_people):
    place = with_people
    write_small_recipe(place.root)
    assert place.call("pretrain", "probe").returncode == 0
    runs = {run.data.tags["mlflow.runName"].split("/")[0].split(" ")[0]: run for run in place.tracked()}
    assert set(runs) == {"pretraining", "pretrain_probe"}
    assert runs["pretrain_probe"].data.tags["mlflow.parentRunId"] == runs["pretraining"].info.run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert place.call("pretrain", "probe").returncode == 0
    first, second = sorted((place.home / "logs").glob("*/pretrain_probe.log"))
    assert "found finished" not in first.read_text()
    assert "found finished" in second.read_text()
    probe = place.root / "pretraining" / "parts" / "probe"
    place.edit({"probe": {"source": "pretraining/parts/probe"}})
    assert f"probe.sha256 is null: set it to {probe_digest(probe)}" in place.run("probe").stderr
    place.edit({"probe": {"sha256": probe_digest(probe)}})
    assert place.run("probe").returncode == 0
    assert contents(place.root / "models" / "probe") == contents(probe)


def test_a_mistake_is_one_line_that_says_what_is_allowed(place):
    write_small_recipe(place.root)
    unknown = place.call("pretrain", "vae")
    assert unknown.returncode != 0
    assert (
        "vae: no part of pre-training: one of autoencoder, generator, decoder, encoder, probe, publish"
        in unknown.stderr
    )
    alone = place.call("pretrain", "generator")
    assert "run `python -m pipelines pretrain autoencoder` first" in alone.stderr
    recipe = small_recipe()
    recipe["pretrain_probe"]["training"]["grow_at"] = 99
    (place.root / "pretraining" / "recipe.yaml").write_text(to_yaml(recipe))
    late = place.call("pretrain")
    assert "pretraining/recipe.yaml: pretrain_probe.training" in late.stderr
    assert "grow_at = 99: must be below steps = 4" in late.stderr
    assert "Traceback" not in unknown.stderr + alone.stderr + late.stderr


def test_the_recipe_is_valid_and_every_section_of_it_is_read_by_its_stage():
    recipe = load_for(PRETRAINING[0], ROOT)
    assert isinstance(recipe, PretrainingParameters)
    read = {key for stage in PRETRAINING for key in stage.reads}
    assert read == set(PretrainingParameters.model_fields) - {"compute"}
    assert {kind_of(stage) for stage in PRETRAINING} == {PretrainingParameters}


def test_dvc_has_it_as_a_pipeline_of_its_own_with_every_source_and_input():
    text = (ROOT / pretraining_yaml.FILE).read_text()
    assert text == pretraining_yaml.render(), "run `make dag`"
    stages = yaml.safe_load(text)["stages"]
    for stage in PRETRAINING:
        entry = stages[stage.name.removeprefix("pretrain_")]
        assert {*stage_sources(stage), *stage.inputs.values()} < set(entry["deps"])
        assert entry["params"] == [{"pretraining/recipe.yaml": [*stage.reads, "compute.threads"]}]
        assert all(out[path] == {"cache": False} for out in entry["outs"] for path in out)
        assert set(stage.outputs.values()) <= {path for out in entry["outs"] for path in out}


@pytest.mark.heavy
@pytest.mark.timeout(3600)
def test_killed_in_the_middle_it_resumes_and_publishes_the_same_bytes(place_at, tmp_path):
    """Two parts at a time, in processes of their own: all get SIGKILL in the middle of the generator's training."""
    undisturbed, killed = (place_at(tmp_path / name) for name in ("undisturbed", "killed"))
    for place in (undisturbed, killed):
        write_small_recipe(place.root, steps=24)
    done = undisturbed.call("pretrain", "--jobs", "1")
    assert done.returncode == 0, done.stderr

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "pipelines", "--workspace", str(killed.root), "pretrain", "--jobs", "2"]
        environment = killed._environment({WARM: killed.warm})
        return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, text=True)

    process = start()
    # Workers come from the warm process; they end when their runner is gone.
    wait_until(lambda: max(killed.steps("pretrain_generator"), default=0) >= 4, timeout=1200)
    for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        one.kill()
    process.wait(60)
    assert not (killed.root / CHECKPOINTS).exists()
    assert start().wait(1800) == 0
    reached = [run for run in killed.tracked("pretrain_generator") if run.info.status == "FINISHED"]
    assert len(reached) == 1
    assert contents(killed.root / CHECKPOINTS) == contents(undisturbed.root / CHECKPOINTS)
