"""Computed memory of drawing, against published sizes, bytes of real models and a real decoding."""

import json
from typing import Any

import pytest
import torch
from small_pipelines import small_vae
from test_footprint import LiveBytes
from torch import nn

from components.errors import ParameterError
from components.taca.drawing_memory import DrawingMemory, decoding_bytes, forward_bytes, part_size, skeleton_part
from pipelines.identity.closure import ROOT


def parts_of(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"presets/architectures/{name}-parts.json").read_text())


@pytest.mark.parametrize(
    ("name", "part", "billions"),
    [
        ("flux-dev", "text_encoder", 0.123),  # CLIP ViT-L/14's text tower
        ("flux-dev", "text_encoder_2", 4.762),  # the encoder of T5 v1.1 XXL
        ("sd35-medium", "text_encoder_2", 0.695),  # OpenCLIP ViT-bigG/14's text tower
        ("qwen-image", "text_encoder", 8.292),  # Qwen2.5-VL-7B
        ("z-image", "text_encoder", 4.022),  # Qwen3-4B
        ("flux2-dev", "text_encoder", 24.011),  # Mistral Small 3.2
        ("flux2-dev", "vae", 0.084),
    ],
)
def test_a_part_without_weights_has_its_published_size(name: str, part: str, billions: float) -> None:
    model = skeleton_part(parts_of(name)[part])
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}
    assert part_size(model, quantised=False).parameters / 1e9 == pytest.approx(billions, abs=5e-4)


def test_every_part_that_a_preset_names_is_one_of_its_pipeline() -> None:
    for file in (ROOT / "presets/architectures").glob("*-parts.json"):
        described = json.loads(file.read_text())
        assert described.pop("source")
        assert described.keys() >= {"vae", "text_encoder"}
        assert file.with_name(file.name.replace("-parts", "")).is_file()


def test_a_class_of_no_library_is_refused_in_one_line() -> None:
    with pytest.raises(ParameterError, match="'os' is neither of diffusers nor of transformers"):
        skeleton_part({"_class_name": "os"})


def test_weights_are_counted_by_what_holds_them() -> None:
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.LayerNorm(4), nn.Embedding(100, 4))
    size = part_size(model, quantised=True)
    assert (size.linear, size.other, size.linear_layer, size.other_layer) == (32, 408, 32, 400)
    assert (size.bytes("bf16"), size.bytes("int8"), size.bytes("nf4")) == (880, 32 + 816, 18 + 816)
    assert size.layer_bytes("int8") == 800  # the embedding, which is not quantised
    assert part_size(model, quantised=False).bytes("int8") == 880
    model[2].weight = nn.Parameter(model[2].weight[:1])  # a tied weight counts once
    tied = nn.Sequential(model[0], model[0])
    assert part_size(tied, quantised=False).parameters == 32


def test_the_decoding_that_is_counted_is_a_real_one() -> None:
    vae = small_vae(4).to(torch.bfloat16)
    latents = torch.randn(1, 4, 16, 12, dtype=torch.bfloat16)
    live = LiveBytes(*vae.parameters(), *vae.buffers(), latents)
    with torch.no_grad(), live:
        vae.decode(latents)
    config = json.loads(vae.to_json_string())
    assert decoding_bytes(skeleton_part(config), (16, 12)) == pytest.approx(live.peak, rel=0.1)


def test_the_estimate_of_a_forward_is_no_less_than_a_real_one() -> None:
    from small_transformers import flux, flux_inputs

    model = flux().to(torch.bfloat16)
    text, side = 40, 20
    inputs = flux_inputs([1.0], text=text, side=side, dtype=torch.bfloat16)
    live = LiveBytes(*model.parameters(), *model.buffers(), *(v for v in inputs.values()))
    with torch.no_grad(), live:
        model(**inputs)
    estimate = forward_bytes(model.config, text + side * side)
    assert 0.4 * estimate < live.peak <= estimate


def test_offloading_keeps_one_part_or_two_layers() -> None:
    big, small = (part_size(nn.Linear(n, n, bias=False), quantised=True) for n in (100, 10))
    memory = DrawingMemory({"transformer": big, "text_encoder": big, "vae": small}, forward=7, decoding=5000)
    assert memory.bytes("none", {}) == 20_000 + 20_000 + 200 + 5000
    assert memory.bytes("model", {}) == 20_000 + 7
    assert memory.bytes("group", {}) == 40_000 + 5000
    assert memory.bytes("model", {"transformer": "int8", "text_encoder": "nf4"}) == 10_007
