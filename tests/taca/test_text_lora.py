"""LoRA files with parts for text encoders, and control LoRAs: the same pictures as `pipe.load_lora_weights`, and plain removal."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_pipelines import small_flux_pipeline, small_sd3_pipeline, small_vae
from small_transformers import flux, flux_inputs, qwen
from torch import Tensor

from components.errors import DataError, ParameterError
from components.taca.adapter_gate import AdapterGate
from components.taca.generation import Adapter, Arm, apply_arm
from components.taca.lora import load_lora, unload_lora
from components.taca.lora_files import read_lora
from components.taca.lora_pairs import linear_layers

RANK = 2
Q = "transformer.transformer_blocks.0.attn.to_q"
CLIP = "text_model.encoder.layers"
Shapes = dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any]]:
    """Two equal pipelines of a family: ours and diffusers'."""
    build = {"flux": small_flux_pipeline, "sd3": small_sd3_pipeline}
    made: dict[str, tuple[Any, Any]] = {}

    def pair(family: str) -> tuple[Any, Any]:
        if family not in made:
            made[family] = (build[family](tmp_path_factory.mktemp("a")), build[family](tmp_path_factory.mktemp("b")))
        return made[family]

    return pair


def embed(pipe: Any) -> list[Tensor]:
    """What the pipeline's transformer reads of a prompt."""
    with torch.no_grad():
        if type(pipe).__name__ == "StableDiffusion3Pipeline":
            embedded = pipe.encode_prompt(
                "red hat", None, None, do_classifier_free_guidance=False, max_sequence_length=6
            )
        else:
            embedded = pipe.encode_prompt("red hat", max_sequence_length=6)
    return [part for part in embedded if part is not None]


def picture(pipe: Any) -> Tensor:
    source = torch.Generator().manual_seed(1)
    size: dict[str, Any] = {"height": 8, "width": 8, "num_inference_steps": 1, "max_sequence_length": 6}
    drawn: Tensor = pipe(["red hat"], generator=source, output_type="latent", **size).images
    return drawn


def shapes(pipe: Any, *parts: str) -> Shapes:
    """Layers of the transformer and of text encoders in a file, (out, in)."""
    found: Shapes = {Q: (64, 64)}
    for part in parts:
        width = getattr(pipe, part).config.hidden_size
        found |= {f"{part}.{CLIP}.{i}.self_attn.q_proj": (width, width) for i in (0, 1)}
        found |= {f"{part}.{CLIP}.1.mlp.fc1": (2 * width, width), f"{part}.{CLIP}.0.self_attn.out_proj": (width, width)}
    return found


def matrices(
    layers: Shapes, seed: int = 0, halves: tuple[str, str] = ("lora_A.weight", "lora_B.weight")
) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    down, up = halves
    found = {}
    for name, (out, into) in layers.items():
        found[f"{name}.{down}"] = torch.randn(RANK, into, generator=source)
        found[f"{name}.{up}"] = torch.randn(out, RANK, generator=source)
    return found


def kohya(layers: Shapes, prefix: str = "lora_te1_") -> dict[str, Tensor]:
    flat = {"lora_unet_double_blocks_0_img_attn_proj": (64, 64)}
    for name, shape in layers.items():
        if name.startswith("text_encoder."):
            flat[prefix + name.removeprefix("text_encoder.").replace(".", "_")] = shape
    return matrices(flat, halves=("lora_down.weight", "lora_up.weight")) | {
        f"{n}.alpha": torch.tensor(1.0) for n in flat
    }


def comfy(layers: Shapes) -> dict[str, Tensor]:
    named: Shapes = {"diffusion_model.double_blocks.0.img_attn.proj": (64, 64)}
    for name, shape in layers.items():
        if name.startswith("text_encoder."):
            named[name.replace("text_encoder.", "text_encoders.clip_l.transformer.")] = shape
    return matrices(named, halves=("lora_down.weight", "lora_up.weight")) | {
        f"{n}.alpha": torch.tensor(4.0) for n in named
    }


def before_peft(layers: Shapes) -> dict[str, Tensor]:
    """The names of diffusers before it used PEFT."""
    renamed = {}
    for key, tensor in matrices(layers).items():
        key = key.replace("q_proj.lora_A", "to_q_lora.down").replace("q_proj.lora_B", "to_q_lora.up")
        key = key.replace("out_proj.lora_A", "to_out_lora.down").replace("out_proj.lora_B", "to_out_lora.up")
        if key.startswith("text_encoder"):
            key = key.replace("lora_A", "lora_linear_layer.down").replace("lora_B", "lora_linear_layer.up")
        renamed[key] = tensor
    return renamed


def with_alphas(layers: Shapes) -> dict[str, Tensor]:
    return matrices(layers) | {f"{name}.alpha": torch.tensor(1.0) for name in layers}


FILES: dict[str, tuple[str, tuple[str, ...], Callable[[Shapes], dict[str, Tensor]]]] = {
    "diffusers": ("flux", ("text_encoder",), matrices),
    "two encoders": ("sd3", ("text_encoder", "text_encoder_2"), matrices),
    "second encoder alone": (
        "sd3",
        ("text_encoder_2",),
        lambda layers: {k: v for k, v in matrices(layers).items() if Q not in k},
    ),
    "before PEFT": ("flux", ("text_encoder",), before_peft),
    "alphas": ("flux", ("text_encoder",), with_alphas),
    "kohya": ("flux", ("text_encoder",), kohya),
    "kohya, first names": ("flux", ("text_encoder",), lambda layers: kohya(layers, "lora_te_")),
    "ComfyUI": ("flux", ("text_encoder",), comfy),
    "bfloat16": ("sd3", ("text_encoder",), lambda layers: {k: v.bfloat16() for k, v in matrices(layers).items()}),
}


@pytest.mark.parametrize("layout", FILES)
def test_text_encoders_embed_as_with_diffusers_own_loader(layout: str, pipes: Any, tmp_path: Path) -> None:
    family, parts, write = FILES[layout]
    ours, theirs = pipes(family)
    file = tmp_path / "x.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in write(shapes(ours, *parts)).items()}, file)
    plain = embed(ours)
    load_lora(ours, file)
    theirs.load_lora_weights(str(file), adapter_name="taca")
    try:
        adapted = embed(ours)
        for mine, its in zip(adapted, embed(theirs), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-6)
        assert any((mine - before).abs().max() > 0.1 for mine, before in zip(adapted, plain, strict=True))
        assert not any(p.requires_grad for p in ours.text_encoder.parameters() if p.shape[0] == RANK)
    finally:
        unload_lora(ours)
        theirs.unload_lora_weights()
    assert all(torch.equal(after, before) for after, before in zip(embed(ours), plain, strict=True))
    assert not [
        name for part in (ours.transformer, ours.text_encoder) for name, _ in part.named_modules() if "lora" in name
    ]


def test_several_adapters_with_weights_draw_the_pictures_of_diffusers_and_leave_nothing(
    pipes: Any, tmp_path: Path
) -> None:
    ours, theirs = pipes("sd3")
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for seed, file in enumerate(files):
        save_file(matrices(shapes(ours, "text_encoder"), seed), file)
    stock = picture(ours)
    trainable = {name: p.requires_grad for name, p in ours.text_encoder.named_parameters()}
    with apply_arm(ours, Arm((Adapter(files[0]), Adapter(files[1], 0.5)))):
        drawn = picture(ours)
    for name, file in zip("ab", files, strict=True):
        theirs.load_lora_weights(str(file), adapter_name=name)
    theirs.set_adapters(["a", "b"], [1.0, 0.5])
    assert torch.equal(drawn, picture(theirs))
    theirs.unload_lora_weights()
    assert not torch.equal(drawn, stock)
    assert torch.equal(picture(ours), stock)
    assert trainable == {name: p.requires_grad for name, p in ours.text_encoder.named_parameters()}


def test_settings_of_a_text_encoder_are_used_and_checked(pipes: Any, tmp_path: Path) -> None:
    ours, theirs = pipes("sd3")
    weights = matrices(shapes(ours, "text_encoder"))
    targets = ["q_proj", "out_proj", "fc1"]
    file = tmp_path / "x.safetensors"

    def write(**changed: Any) -> None:
        settings = {"r": RANK, "lora_alpha": 7, "target_modules": targets} | changed
        named = {f"text_encoder.{key}": value for key, value in settings.items()}
        named |= {"transformer.r": RANK, "transformer.lora_alpha": RANK, "transformer.target_modules": ["attn.to_q"]}
        save_file(weights, file, {"lora_adapter_metadata": json.dumps(named)})

    write()
    plain = embed(ours)
    load_lora(ours, file)
    theirs.load_lora_weights(str(file), adapter_name="taca")
    assert all(torch.equal(mine, its) for mine, its in zip(embed(ours), embed(theirs), strict=True))
    unload_lora(ours)
    theirs.unload_lora_weights()
    for wrong in ({"target_modules": ["q_proj"]}, {"r": 5}):
        write(**wrong)
        with pytest.raises(DataError, match="settings do not fit its weights") as caught:
            load_lora(ours, file)
        assert "\n" not in str(caught.value)
        assert not getattr(ours.transformer, "peft_config", {})
        assert all(torch.equal(after, before) for after, before in zip(embed(ours), plain, strict=True))
    write()
    load_lora(ours, file, "kept")
    with_kept = embed(ours)
    write(r=5)
    with pytest.raises(DataError, match="settings do not fit its weights"):
        load_lora(ours, file)
    assert ours.transformer.active_adapters() == ours.text_encoder.active_adapters() == ["kept"]
    assert all(torch.equal(after, before) for after, before in zip(embed(ours), with_kept, strict=True))
    unload_lora(ours, "kept")


def test_what_has_no_place_for_text_parts_refuses_them_in_one_line(pipes: Any, tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline

    ours, _ = pipes("flux")
    file = tmp_path / "x.safetensors"
    good = matrices(shapes(ours, "text_encoder"))
    t5 = {"lora_te3_encoder_block_0_layer_0_SelfAttention_q": (24, 24)}

    def refused(kind: type[Exception], match: str, pipe: Any, weights: dict[str, Tensor]) -> None:
        save_file(weights, file)
        with pytest.raises(kind, match=match) as caught:
            load_lora(pipe, file)
        assert "\n" not in str(caught.value)
        assert not getattr(getattr(pipe, "transformer", pipe), "peft_config", {})

    refused(ParameterError, r"8 keys are for a text encoder .*load_lora\(pipe, \.\.\.\)", ours.transformer, good)
    only_clip = "1 of 1 text-encoder layers .* of FluxPipeline, linear layers of text_encoder"
    refused(DataError, only_clip, ours, matrices({Q: (64, 64)}) | matrices(t5))
    second = {f"text_encoder_2.{CLIP}.0.mlp.fc1": (24, 48)}
    refused(DataError, only_clip, ours, matrices({Q: (64, 64)} | second))
    other = {f"text_encoder.{CLIP}.7.mlp.fc1": (40, 20)}
    refused(DataError, only_clip, ours, matrices({Q: (64, 64)} | other))
    wide = {f"text_encoder.{CLIP}.1.mlp.fc1": (40, 768)}
    refused(DataError, "maps 768 to 40 channels, this model's maps 20 to 40", ours, matrices({Q: (64, 64)} | wide))
    no_clip = QwenImagePipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, qwen())
    refused(DataError, "of QwenImagePipeline, none", no_clip, matrices({Q: (64, 64)} | other))
    magnitudes = {f"text_encoder.{CLIP}.1.mlp.fc1.lora_magnitude_vector": torch.ones(40)}
    refused(DataError, "a DoRA for a text encoder .* magnitudes diffusers leaves out", ours, good | magnitudes)
    projection = {"text_encoder.text_projection.lora.down.weight": torch.ones(2, 20)}
    refused(DataError, "text_projection.lora.down.weight: names of a text encoder that diffusers", ours, projection)
    encoder, ours.text_encoder = ours.text_encoder, None
    try:
        refused(ParameterError, "text_encoder of the pipeline, which is not loaded", ours, good)
    finally:
        ours.text_encoder = encoder
    refused(DataError, "all its weights are zero", ours, {key: tensor * 0 for key, tensor in matrices(t5).items()})
    zero = matrices({Q: (64, 64)}) | {key: tensor * 0 for key, tensor in matrices(t5).items()}
    save_file(zero, file)
    load_lora(ours, file)
    unload_lora(ours)


def test_an_adapter_with_text_parts_has_no_threshold_and_is_removed_with_its_pipeline(
    pipes: Any, tmp_path: Path
) -> None:
    ours, _ = pipes("flux")
    file = tmp_path / "x.safetensors"
    save_file(matrices(shapes(ours, "text_encoder")), file)
    with pytest.raises(ParameterError, match="also changes text_encoder, which act at every step"):  # noqa: SIM117
        with apply_arm(ours, Arm(Adapter(file, threshold=0.5))):
            pass
    assert not getattr(ours.transformer, "peft_config", {})
    load_lora(ours, file)
    with pytest.raises(ParameterError, match="also changes text_encoder"):
        AdapterGate(ours.transformer, "taca", 0.5)
    with pytest.raises(ParameterError, match=r"unload_lora\(pipe, \.\.\.\)"):
        unload_lora(ours.transformer)
    unload_lora(ours)
    with pytest.raises(ParameterError, match="no LoRA adapter 'taca'"):
        unload_lora(ours)


def test_loading_reports_no_weights_as_missing(pipes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers lists every weight of the encoder itself as newly initialised, which is not so."""
    ours, _ = pipes("sd3")
    file = tmp_path / "x.safetensors"
    save_file(matrices(shapes(ours, "text_encoder")), file)
    logger = logging.getLogger("transformers.integrations.peft")
    logger.addHandler(caplog.handler)
    try:
        load_lora(ours, file)
    finally:
        logger.removeHandler(caplog.handler)
        unload_lora(ours)
    assert not caplog.records
    assert not logger.disabled


def control_pipe() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlPipeline

    pipe = FluxControlPipeline(FlowMatchEulerDiscreteScheduler(), small_vae(), None, None, None, None, flux())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_control_lora_is_loaded_into_a_control_pipeline_alone_and_removed_whole(pipes: Any, tmp_path: Path) -> None:
    layers = {"transformer.x_embedder": (64, 24), Q: (64, 64)}
    norms = {"transformer.transformer_blocks.0.attn.norm_q.weight": torch.full((32,), 1.7)}
    control, style = tmp_path / "control.safetensors", tmp_path / "style.safetensors"
    save_file(matrices(layers) | norms, control)
    save_file(matrices({"transformer.x_embedder": (64, 12)}, 1), style)
    ours, theirs = control_pipe(), control_pipe()
    wide = flux_inputs([1.0]) | {"hidden_states": torch.randn(1, 25, 24, generator=torch.Generator().manual_seed(3))}

    def run(pipe: Any, inputs: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            result: Tensor = pipe.transformer(**inputs, return_dict=False)[0]
        return result

    stock, names = run(ours, flux_inputs([1.0])), [name for name, _ in ours.transformer.named_parameters()]
    for pipe, given in ((pipes("flux")[0], "FluxPipeline"), (flux(), "FluxTransformer2DModel")):
        with pytest.raises(
            ParameterError, match=f"a control LoRA .* needs a control image that {given} does"
        ) as caught:
            load_lora(pipe, control)
        assert "FluxControlPipeline" in str(caught.value)
    load_lora(ours, control, "control", 0.8)
    load_lora(ours, style, "style", 0.5)  # made for the narrow input, which diffusers fills up with zeros
    theirs.load_lora_weights(str(control), adapter_name="control")
    theirs.load_lora_weights(str(style), adapter_name="style")
    theirs.set_adapters(["control", "style"], [0.8, 0.5])
    assert torch.equal(run(ours, wide), run(theirs, wide))
    assert ours.transformer.config.in_channels == 24
    with pytest.raises(ParameterError, match="also changes attention norms"):
        AdapterGate(ours, "control", 0.5)
    with pytest.raises(ParameterError, match="unload style before it"):
        unload_lora(ours, "control")
    unload_lora(ours, "style")
    unload_lora(ours, "control")
    assert torch.equal(run(ours, flux_inputs([1.0])), stock)
    assert [name for name, _ in ours.transformer.named_parameters()] == names
    assert ours.transformer.config.in_channels == 12
    load_lora(ours, style, "style")
    with pytest.raises(ParameterError, match="load it before other adapters"):
        load_lora(ours, control, "control")


def black_forest_labs() -> dict[str, Tensor]:
    """A control LoRA of rank 2 in the names of FLUX's own code, all layers of FLUX.1-dev, as FLUX.1-Canny-dev-lora has them."""
    layers: Shapes = {"img_in": (3072, 128), "txt_in": (3072, 4096), "final_layer.linear": (64, 3072)}
    layers |= {"final_layer.adaLN_modulation.1": (6144, 3072)}
    for name, width in (("time_in", 256), ("guidance_in", 256), ("vector_in", 768)):
        layers |= {f"{name}.in_layer": (3072, width), f"{name}.out_layer": (3072, 3072)}
    norms = []
    for i in range(19):
        for kind in ("img", "txt"):
            start = f"double_blocks.{i}.{kind}"
            layers |= {
                f"{start}_mod.lin": (18432, 3072),
                f"{start}_attn.qkv": (9216, 3072),
                f"{start}_attn.proj": (3072, 3072),
            }
            layers |= {f"{start}_mlp.0": (12288, 3072), f"{start}_mlp.2": (3072, 12288)}
            norms += [f"{start}_attn.norm.query_norm.scale", f"{start}_attn.norm.key_norm.scale"]
    for i in range(38):
        start = f"single_blocks.{i}"
        layers |= {
            f"{start}.modulation.lin": (9216, 3072),
            f"{start}.linear1": (21504, 3072),
            f"{start}.linear2": (3072, 15360),
        }
        norms += [f"{start}.norm.query_norm.scale", f"{start}.norm.key_norm.scale"]
    weights = {name: torch.ones(128, dtype=torch.bfloat16) for name in norms}
    for name, (out, into) in layers.items():
        weights[f"{name}.lora_A.weight"] = torch.ones(RANK, into, dtype=torch.bfloat16)
        weights |= {f"{name}.lora_B.weight": torch.ones(out, RANK, dtype=torch.bfloat16)}
        weights[f"{name}.lora_B.bias"] = torch.ones(out, dtype=torch.bfloat16)
    return weights


@pytest.mark.heavy
def test_a_published_control_lora_is_read_whole_and_other_pipelines_refuse_it_by_its_name(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxControlPipeline, FluxPipeline, FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    file = tmp_path / "flux1-canny-dev-lora.safetensors"
    save_file(black_forest_labs(), file)
    parts = (FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, model)
    read = read_lora(file, model, FluxControlPipeline(*parts))
    assert read.whole
    assert len(read.transformer) == 3 * len(linear_layers(model))
    with pytest.raises(
        ParameterError, match="a control LoRA of FLUX, which needs a control image that FluxPipeline does not"
    ):
        read_lora(file, model, FluxPipeline(*parts))
