import json
import shutil

import pytest
import torch

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.taca.reference import TEXT, load_base, write_reference
from components.taca.tiny import TinyConfig, build_tiny_pipeline

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
    with pytest.raises(DataError, match="no diffusers pipeline"):
        write_reference(tmp_path, tmp_path / "base.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="location, revision and files"):
        load_base(tmp_path / "other.json")
