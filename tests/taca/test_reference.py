import json
import shutil

import pytest
import torch
from small_pipelines import small_flux_pipeline, small_sd3_pipeline

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.taca.conventions import encode_captions
from components.taca.reference import TEXT, load_base, write_reference
from components.taca.toy.config import TinyConfig
from components.taca.toy.pipeline import build_tiny_pipeline

SMALL = TinyConfig(width=32, heads=2, double_blocks=1, single_blocks=1, text_width=16, text_layers=1, text_tokens=6)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    build_tiny_pipeline(SMALL, ("red", "hat"), seed=0).save_pretrained(folder / "tiny")
    return folder


@pytest.fixture
def models(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "models")
    write_reference(tmp_path / "models" / "tiny", tmp_path / "models" / "base.json")
    return tmp_path / "models"


def test_a_reference_loads_the_pipeline_it_describes(models):
    pipe = load_base(models / "base.json")
    original = build_tiny_pipeline(SMALL, ("red", "hat"), seed=0)
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        loaded, expected = getattr(pipe, part).state_dict(), getattr(original, part).state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)
        assert not getattr(pipe, part).training


def test_a_reference_moves_with_its_folder_and_names_no_machine(models, tmp_path):
    reference = json.loads((models / "base.json").read_text())
    assert reference["location"] == "tiny"
    assert reference["revision"] is None
    assert set(reference["files"]) >= {"model_index.json", "transformer/diffusion_pytorch_model.safetensors"}
    shutil.move(models, tmp_path / "elsewhere")
    load_base(tmp_path / "elsewhere" / "base.json", components=["scheduler"])


def test_only_the_parts_asked_for_are_read(models):
    (models / "tiny" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    pipe = load_base(models / "base.json", components=("vae", *TEXT))
    assert pipe.transformer is None
    assert pipe.vae_scale_factor == 2
    embeds, pooled, _ = pipe.encode_prompt(["red hat"], max_sequence_length=6)
    assert embeds.shape == (1, 6, 16)
    assert pooled.shape == (1, 16)
    with pytest.raises(DataError, match=r"diffusion_pytorch_model\.safetensors: missing"):
        load_base(models / "base.json")


@pytest.mark.parametrize(
    "name", ["vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json", "model_index.json"]
)
def test_one_changed_byte_is_found_and_named(models, name):
    content = bytearray((models / "tiny" / name).read_bytes())
    content[-2] ^= 1
    (models / "tiny" / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        load_base(models / "base.json")


def test_the_dtype_is_the_one_asked_for(models):
    pipe = load_base(models / "base.json", components=["transformer"], dtype=torch.bfloat16)
    assert pipe.transformer.dtype == torch.bfloat16


def cached_model(cache, saved, revision):
    """A model as the Hugging Face cache keeps it."""
    root = cache / "models--someone--tiny"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    shutil.copytree(saved / "tiny", root / "snapshots" / revision)
    return root / "snapshots" / revision


def test_a_published_model_is_read_from_the_cache_at_its_revision(saved, tmp_path, monkeypatch):
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = cached_model(tmp_path / "hub", saved, revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    reference = write_reference("someone/tiny", tmp_path / "base.json", revision=revision)
    assert reference["location"] == "someone/tiny"
    assert reference["files"]["model_index.json"] == file_digest(snapshot / "model_index.json")
    assert load_base(tmp_path / "base.json", components=["transformer"]).transformer.config.in_channels == 32
    weights = snapshot / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match="transformer/diffusion"):
        load_base(tmp_path / "base.json", components=["transformer"])


def test_a_model_that_is_not_cached_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(DataError, match=r"hf download someone/tiny --revision 0{40}"):
        write_reference("someone/tiny", tmp_path / "base.json", revision="0" * 40)


def test_a_branch_is_not_a_revision(tmp_path):
    with pytest.raises(ParameterError, match="'main'"):
        write_reference("someone/tiny", tmp_path / "base.json", revision="main")


def test_mistakes_are_named(models, tmp_path):
    with pytest.raises(ParameterError, match="unet"):
        load_base(models / "base.json", components=["unet"])
    with pytest.raises(DataError, match=r"none\.json"):
        load_base(tmp_path / "none.json")
    with pytest.raises(DataError, match="not a diffusers pipeline"):
        write_reference(tmp_path, tmp_path / "base.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="location, revision and files"):
        load_base(tmp_path / "other.json")


def referenced(folder):
    """A reference to `folder`, beside it."""
    path = folder.parent / f"{folder.name}.json"
    write_reference(folder, path)
    return path


def flip(file):
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_folder_says_which_pipeline_it_is(tmp_path):
    original = small_sd3_pipeline(tmp_path / "sd3")
    pipe = load_base(referenced(tmp_path / "sd3"))
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        assert same_weights(getattr(pipe, part), getattr(original, part))


def test_sd3_without_its_third_text_encoder_loads_and_embeds_captions(tmp_path):
    original = small_sd3_pipeline(tmp_path / "sd3", t5=False)
    reference = referenced(tmp_path / "sd3")
    assert load_base(reference).text_encoder_3 is None
    text = load_base(reference, components=("vae", *TEXT))  # zeros stand in for T5, as wide as the transformer says
    for name, expected in encode_captions(original, ["red hat", ""]).items():
        assert torch.equal(encode_captions(text, ["red hat", ""])[name], expected)
    assert load_base(reference, components=["vae"]).transformer is None


def test_sharded_weights_load_and_every_shard_is_checked(tmp_path):
    original = small_flux_pipeline(tmp_path / "whole")
    original.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    shards = sorted((tmp_path / "sharded" / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    assert (tmp_path / "sharded" / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    reference = referenced(tmp_path / "sharded")
    assert same_weights(load_base(reference, components=["transformer"]).transformer, original.transformer)
    flip(shards[1])
    with pytest.raises(DataError, match=shards[1].name):
        load_base(reference, components=["transformer"])
    load_base(reference, components=["vae"])  # of another part nothing is read
    shards[1].unlink()
    with pytest.raises(DataError, match=f"index.json: names {shards[1].name}, which is not there"):
        write_reference(tmp_path / "sharded", tmp_path / "again.json")


def test_a_shard_outside_the_folder_is_refused(tmp_path):
    small_flux_pipeline(tmp_path / "whole").save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    index = tmp_path / "sharded" / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    weight, shard = next(iter(content["weight_map"].items()))
    shutil.copy(tmp_path / "sharded" / "transformer" / shard, tmp_path / "outside.safetensors")
    content["weight_map"][weight] = "../../outside.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"\.\./\.\./outside"):
        write_reference(tmp_path / "sharded", tmp_path / "base.json")


def test_weights_that_are_there_in_a_variant_only_are_read(tmp_path):
    original = small_sd3_pipeline(tmp_path / "sd3")
    original.save_pretrained(tmp_path / "fp16", variant="fp16")
    assert (tmp_path / "fp16" / "text_encoder" / "model.fp16.safetensors").is_file()
    pipe = load_base(referenced(tmp_path / "fp16"))
    assert same_weights(pipe.transformer, original.transformer)
    assert same_weights(pipe.text_encoder_2, original.text_encoder_2)


def test_a_variant_beside_the_plain_weights_is_neither_read_nor_checked(tmp_path):
    original = small_sd3_pipeline(tmp_path / "both")
    doubled = small_sd3_pipeline(tmp_path / "other", seed=1)
    doubled.save_pretrained(tmp_path / "both", variant="fp16")
    reference = referenced(tmp_path / "both")
    flip(tmp_path / "both" / "transformer" / "diffusion_pytorch_model.fp16.safetensors")
    assert same_weights(load_base(reference).transformer, original.transformer)


def test_a_part_in_a_variant_does_not_change_what_the_others_are_read_from(tmp_path):
    original = small_sd3_pipeline(tmp_path / "mixed")
    folder = tmp_path / "mixed" / "text_encoder"
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    pipe = load_base(referenced(tmp_path / "mixed"))
    assert same_weights(pipe.text_encoder, original.text_encoder)
    assert same_weights(pipe.transformer, original.transformer)


def test_a_pipeline_of_another_class_is_refused_and_the_supported_ones_named(models):
    index = models / "tiny" / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "PixArtAlphaPipeline"))
    with pytest.raises(DataError, match=r"a PixArtAlphaPipeline; supported are FluxPipeline, StableDiffusion3Pipeline"):
        write_reference(models / "tiny", models / "other.json")
    reference = json.loads((models / "base.json").read_text())
    reference["files"]["model_index.json"] = file_digest(index)
    (models / "base.json").write_text(json.dumps(reference))
    with pytest.raises(DataError, match="PixArtAlphaPipeline"):
        load_base(models / "base.json")


def test_a_part_that_was_not_downloaded_is_named(models):
    shutil.rmtree(models / "tiny" / "text_encoder_2")
    with pytest.raises(DataError, match="names text_encoder_2, but none of its files is there"):
        write_reference(models / "tiny", models / "other.json")


def test_a_reference_cannot_point_out_of_the_models_folder(models):
    reference = json.loads((models / "base.json").read_text())
    reference["files"]["vae/../../secret"] = "0" * 64
    (models / "base.json").write_text(json.dumps(reference))
    with pytest.raises(DataError, match="outside the model's folder"):
        load_base(models / "base.json")


def test_a_name_that_is_no_folder_asks_for_the_revision(tmp_path):
    with pytest.raises(DataError, match="give the revision"):
        write_reference("someone/tiny", tmp_path / "base.json")


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_file_that_was_never_whole_is_one_clear_error(models, part):
    weights = next((models / "tiny" / part).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    write_reference(models / "tiny", models / "base.json")
    with pytest.raises(DataError, match="cannot be read as a FluxPipeline"):
        load_base(models / "base.json")
