"""The generator on a small card: offloading, quantised bases, GGUF files, half precision, LoRAs in turn, pictures to start from."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from small_pipelines import small_flux_pipeline
from small_transformers import flux
from torch import nn

from components.errors import DataError, ParameterError
from components.taca.adapter_slot import AdapterSlot
from components.taca.generation import Adapter, Arm, active_steps, apply_arm, generate
from components.taca.lora import add_lora, load_lora, save_lora, unload_lora
from components.taca.memory_options import Offload
from components.taca.offloading import place, require_offloading
from components.taca.quantization import require_quantizable
from components.taca.reference import load_base, write_reference
from components.taca.schedule import TemperatureSchedule
from components.taca.source_pictures import SourcePicture, from_pictures, skipped_steps
from components.training.randomness import generator

CHANNELS = 16
"""Of packed latents: 4 x 4. Pipelines of diffusers take a picture of as many channels as latents have for latents."""
PROMPTS, SEEDS = ["red hat", "blue"], [1, 2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference of a small FLUX pipeline; three LoRAs lie beside it. Look, do not touch."""
    folder = tmp_path_factory.mktemp("base")
    pipe = small_flux_pipeline(folder / "model", in_channels=CHANNELS)
    write_reference(folder / "model", folder / "base.json")
    for number, settings in enumerate(({"rank": 2}, {"rank": 2, "alpha": 5.0}, {"rank": 3})):
        add_lora(pipe, seed=number, **settings)
        for name, parameter in pipe.transformer.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
        save_lora(pipe.transformer, folder / f"lora-{number}", {"threshold": 0.8} if number == 1 else {})
        unload_lora(pipe)
    return folder / "base.json"


@pytest.fixture
def pipe(base: Path) -> Any:
    return load_base(base)


def draw(pipe: Any, **options: Any) -> torch.Tensor:
    return generate(pipe, PROMPTS, SEEDS, **({"height": 16, "width": 8, "steps": 3} | options))


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first.int() - second.int()).abs().float().mean().item()


def lora(base: Path, number: int) -> Path:
    return base.parent / f"lora-{number}"


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_draws_the_same_picture_with_taca_and_a_lora(base: Path, pipe: Any, offload: Offload) -> None:
    arm = Arm(lora(base, 1), TemperatureSchedule(gamma=2.0, threshold=0.8))
    with apply_arm(pipe, arm):
        expected = draw(place(pipe, CPU))
    waiting = load_base(base)
    with apply_arm(waiting, arm):
        place(waiting, CPU, offload)
        assert torch.equal(draw(waiting), expected)
        assert torch.equal(draw(waiting), expected)  # also when all parts have been used before
    assert not torch.equal(draw(load_base(base)), expected)


def test_offloading_without_a_gpu_is_refused_in_one_line() -> None:
    require_offloading("none", CPU)
    require_offloading("group", torch.device("cuda"))
    with pytest.raises(ParameterError, match="offload model: nothing to move weights from, as this runs on the CPU"):
        require_offloading("model", CPU)


def test_a_model_is_quantised_while_it_is_read_and_its_lora_lies_over_it(base: Path) -> None:
    plain, pipe = load_base(base, dtype=torch.bfloat16), load_base(base, dtype=torch.bfloat16, quantize="int8")
    for part, expected in (("transformer", True), ("text_encoder_2", True), ("text_encoder", False), ("vae", False)):
        model = getattr(pipe, part)
        found = [name for name, module in model.named_modules() if "Int8" in type(_weight(module)).__name__]
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        assert bool(found) == expected, part
        assert not expected or set(found) <= set(linear)
    exact = plain.transformer.transformer_blocks[0].attn.to_q.weight.float()
    step = exact.abs().amax(1, keepdim=True) / 127.5  # a signed byte for each weight, of its row's scale
    held = pipe.transformer.transformer_blocks[0].attn.to_q.weight.dequantize().float()
    assert ((held - exact).abs() <= 0.6 * step + 0.01 * exact.abs()).all()

    drawn, other = draw(plain, steps=1), draw(plain, steps=1, height=16, batch_size=1).flip(0)
    assert distance(draw(pipe, steps=1), drawn) < 0.3 * distance(other, drawn)
    before = draw(pipe)
    load_lora(pipe, lora(base, 0))
    assert not torch.equal(draw(pipe), before)
    with pytest.raises(ParameterError, match="fuse_lora: the weights of this FluxTransformer2DModel are quantised"):
        pipe.fuse_lora()
    unload_lora(pipe)
    assert torch.equal(draw(pipe), before)
    assert torch.equal(draw(place(pipe, CPU, "group")), before)


def _weight(module: nn.Module) -> Any:
    return module._parameters.get("weight")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("int8", torch.float32), "quantize int8: computes in bfloat16 only, not in float32; set dtype bf16"),
        (("fp8", torch.float16), "not in float16"),
        (("nf4", torch.bfloat16), "needs the package bitsandbytes, which is not installed"),
    ],
)
def test_a_quantisation_that_is_not_possible_is_refused_in_one_line(settings: Any, expected: str) -> None:
    with pytest.raises(ParameterError, match=expected) as caught:
        require_quantizable(*settings)
    assert "\n" not in str(caught.value)


def test_nf4_does_not_go_with_offloading_by_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    require_quantizable("nf4", torch.bfloat16, "model")
    with pytest.raises(ParameterError, match="nf4 with offload group"):
        require_quantizable("nf4", torch.bfloat16, "group")


def write_gguf(model: nn.Module, path: Path, architecture: str = "flux") -> dict[str, torch.Tensor]:
    """Write a transformer in Q8_0 where rows are whole blocks of 32, else float32; return what the file holds, by name."""
    writer, held = gguf.GGUFWriter(path, architecture), {}
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        blocks = values.ndim == 2 and values.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if blocks else gguf.GGMLQuantizationType.F32
        stored = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
        held[name] = torch.from_numpy(np.array(gguf.quants.dequantize(stored, kind))).reshape(tensor.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def test_a_transformer_from_a_gguf_file_draws_what_its_weights_say(base: Path, pipe: Any, tmp_path: Path) -> None:
    held = write_gguf(pipe.transformer, tmp_path / "flux-Q8_0.gguf")
    read = load_base(base, gguf=tmp_path / "flux-Q8_0.gguf")
    kinds = {type(module).__name__ for module in read.transformer.modules()}
    assert "GGUFLinear" in kinds
    assert read.transformer.x_embedder.weight.shape == (64, CHANNELS)
    load_lora(read, lora(base, 0))
    with_lora = draw(read)
    with pytest.raises(ParameterError, match="fuse_lora"):
        read.fuse_lora()
    unload_lora(read)
    exact, found = draw(pipe), draw(read)
    pipe.transformer.load_state_dict(held)
    assert (draw(pipe).int() - found.int()).abs().max() <= 1
    assert not torch.equal(found, exact)
    load_lora(pipe, lora(base, 0))
    assert (draw(pipe).int() - with_lora.int()).abs().max() <= 1
    assert distance(with_lora, found) > 1


def test_of_a_folder_whose_transformer_is_replaced_only_the_config_is_read(
    base: Path, pipe: Any, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(base.parent / "model", tmp_path / "model")
    for weights in (tmp_path / "model/transformer").glob("*.safetensors"):
        weights.unlink()
    write_reference(tmp_path / "model", tmp_path / "base.json")
    write_gguf(pipe.transformer, tmp_path / "flux.gguf")
    assert torch.equal(draw(load_base(tmp_path / "base.json", gguf=tmp_path / "flux.gguf")).isfinite(), draw(pipe) >= 0)


def test_a_file_that_is_no_gguf_of_this_model_is_one_line(base: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("GG")
    write_gguf(flux(num_layers=1, attention_head_dim=32, joint_attention_dim=32), tmp_path / "other.gguf")
    for name, expected in (
        ("none", "cannot be read"),
        ("text", "not a GGUF file"),
        ("other", "cannot be read as a Flux"),
    ):
        with pytest.raises(DataError, match=expected) as caught:
            load_base(base, gguf=tmp_path / f"{name}.gguf")
        assert "\n" not in str(caught.value)


def test_half_precision_draws_and_what_is_not_finite_is_refused(base: Path, pipe: Any) -> None:
    half = load_base(base, dtype=torch.float16)
    assert {model.dtype for model in (half.transformer, half.vae, half.text_encoder)} == {torch.float16}
    near, far = draw(half, steps=1), draw(pipe, steps=1)
    assert distance(near, far) < 0.1 * distance(far, draw(pipe, steps=1).flip(0))
    with torch.no_grad():
        half.vae.decoder.conv_out.weight.fill_(60_000)
        half.vae.decoder.conv_in.weight.fill_(60_000)
    with pytest.raises(ParameterError, match="not finite in float16; draw in bfloat16 or float32"):
        draw(half, steps=1)


def test_guidance_away_from_the_prompt_itself_is_no_guidance(pipe: Any) -> None:
    plain, default = draw(pipe), draw(pipe, guidance=3.0)
    assert (draw(pipe, guidance=3.0, negative_prompts=PROMPTS).int() - plain.int()).abs().max() <= 1
    assert torch.equal(draw(pipe, guidance=3.0, negative_prompts=["", ""]), default)
    assert not torch.equal(draw(pipe, guidance=3.0, negative_prompts=["coat", "coat"]), default)
    half = draw(pipe, guidance=3.0, negative_prompts=["coat", ""], batch_size=1)  # each prompt has its own
    assert (half[1].int() - default[1].int()).abs().max() <= 1
    with pytest.raises(ParameterError, match="no effect at guidance 1"):
        draw(pipe, negative_prompts=["coat", "coat"])
    with pytest.raises(ParameterError, match="2 prompts but 1 negative prompts"):
        draw(pipe, guidance=2.0, negative_prompts=["coat"])


def test_loras_take_turns_over_one_base_and_each_draws_as_if_alone(base: Path, pipe: Any) -> None:
    turns = [Adapter(lora(base, 0)), Adapter(lora(base, 1), 0.5), Adapter(lora(base, 2)), Adapter(lora(base, 0))]
    plain, layers = draw(pipe), None
    slot = AdapterSlot(pipe)
    for number, adapter in enumerate(turns):
        slot.fill(adapter)
        if number == 0:
            place(pipe, CPU, "group")  # the next ones come and go while layers are offloaded
        now = {id(module) for name, module in pipe.transformer.named_modules() if "lora_A" in name}
        if number == 1:
            assert now == layers  # of the same ranks: overwritten in place
        layers = now
        found = draw(pipe)
        alone = load_base(base)
        with apply_arm(alone, Arm(adapter)):
            assert torch.equal(draw(alone), found), number
    assert slot.swaps == 1
    slot.empty()
    assert torch.equal(draw(pipe), plain)
    assert not pipe.transformer._forward_pre_hooks


def test_a_lora_has_the_alpha_and_the_layers_that_it_is_given(pipe: Any) -> None:
    transformer = pipe.transformer
    layer = transformer.transformer_blocks[0].ff.net[2]
    weight = layer.weight.detach().clone()
    count = add_lora(transformer, 4, 0, alpha=10.0, targets=["ff.net.2"])
    linears = [m for n, m in transformer.named_modules() if n.endswith("ff.net.2")]
    assert len(linears) == 2
    assert count == sum(4 * (m.in_features + m.out_features) for m in linears)
    adapted = transformer.transformer_blocks[0].ff.net[2]
    with torch.no_grad():
        adapted.lora_B["taca"].weight.normal_()
        up, down = (half["taca"].weight.double() for half in (adapted.lora_B, adapted.lora_A))
        given = torch.randn(3, layer.in_features)
        expected = given.double() @ (weight.double() + 10.0 / 4 * up @ down).T + layer.bias.double()
        # Float32 sums of the size of 10; an alpha that is off by a hundredth changes them by 0.1.
        torch.testing.assert_close(adapted(given).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"alpha": 0.0}, "alpha = 0.0: must be above 0"),
        (
            {"targets": ["to_q", "to_z"]},
            "targets: to_z: no such linear layer in FluxTransformer2DModel; its layers end",
        ),
        ({"targets": []}, "targets: none given"),
    ],
)
def test_a_lora_that_would_train_nothing_is_refused(wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        add_lora(flux(), 2, 0, **wrong)


def sources(masks: bool = False) -> list[SourcePicture]:
    noise = np.random.default_rng(0).integers(0, 255, (2, 32, 20, 3), dtype=np.uint8)
    mask = Image.fromarray(np.where(np.arange(32)[:, None] < 16, 255, 0).repeat(20, 1).astype(np.uint8))
    return [SourcePicture(Image.fromarray(one), mask if masks else None) for one in noise]


def test_a_picture_to_start_from_is_drawn_by_diffusers_own_class(base: Path, pipe: Any) -> None:
    from diffusers import FluxImg2ImgPipeline

    starting = from_pictures(pipe, masks=False)
    assert type(starting) is FluxImg2ImgPipeline
    assert starting.transformer is pipe.transformer
    drawn = draw(starting, sources=sources(), strength=0.7, steps=4)
    plain = FluxImg2ImgPipeline.from_pretrained(base.parent / "model", local_files_only=True, dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    expected = plain(
        PROMPTS,
        image=[source.image.resize((8, 16), Image.Resampling.LANCZOS) for source in sources()],
        height=16,
        width=8,
        strength=0.7,
        num_inference_steps=4,
        guidance_scale=3.5,
        max_sequence_length=6,
        generator=[generator(seed, "initial noise") for seed in SEEDS],
        output_type="pt",
    ).images
    assert torch.equal(drawn, (expected * 255).round().to(torch.uint8))
    alone = draw(starting, sources=sources(), strength=0.7, steps=4, batch_size=1)
    assert (alone.int() - drawn.int()).abs().max() <= 1
    assert not torch.equal(draw(starting, sources=sources()[::-1], strength=0.7, steps=4), drawn)
    assert not torch.equal(draw(starting, sources=sources(), strength=1.0, steps=4), drawn)


def test_where_the_first_steps_are_left_out_taca_is_on_at_fewer(pipe: Any) -> None:
    starting, schedule = from_pictures(pipe, masks=False), TemperatureSchedule(threshold=0.75)
    seen: list[float] = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    for strength in (1.0, 0.8, 0.5, 0.3):
        seen.clear()
        draw(starting, sources=sources(), strength=strength, steps=10)
        size: dict[str, Any] = {"height": 16, "width": 8, "steps": 10}
        assert len(seen) == 10 - skipped_steps(10, strength)
        assert active_steps(pipe, schedule, strength=strength, **size) == sum(sigma >= 0.75 for sigma in seen)


def fill_folder(folder: Path) -> Path:
    """A small FLUX.1 Fill: its transformer sees the latents, those of the masked picture, and 16 channels of the mask."""
    from diffusers import FluxFillPipeline

    parts = small_flux_pipeline(folder / "flux", in_channels=CHANNELS).components
    taken = {name: part for name, part in parts.items() if name not in ("image_encoder", "feature_extractor")}
    taken["transformer"] = flux(in_channels=2 * CHANNELS + 16, out_channels=CHANNELS)
    FluxFillPipeline(**taken).save_pretrained(folder / "fill")
    write_reference(folder / "fill", folder / "fill.json")
    return folder / "fill.json"


def test_the_class_that_the_folder_names_is_the_one_that_draws(tmp_path: Path) -> None:
    pipe = load_base(fill_folder(tmp_path))
    assert type(pipe).__name__ == "FluxFillPipeline"
    assert from_pictures(pipe, masks=True) is pipe
    drawn = draw(pipe, sources=sources(masks=True), embedded_guidance=30.0)
    expected = pipe(
        PROMPTS,
        image=[source.image.resize((8, 16), Image.Resampling.LANCZOS) for source in sources()],
        mask_image=[source.mask.resize((8, 16), 0) for source in sources(masks=True) if source.mask],
        height=16,
        width=8,
        num_inference_steps=3,
        max_sequence_length=6,
        generator=[generator(seed, "initial noise") for seed in SEEDS],
        output_type="pt",
    ).images
    assert torch.equal(drawn, (expected * 255).round().to(torch.uint8))
    with apply_arm(pipe, Arm(schedule=TemperatureSchedule(gamma=3.0, threshold=0.5))):
        assert not torch.equal(draw(pipe, sources=sources(masks=True), embedded_guidance=30.0), drawn)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "FluxFillPipeline: draws from a picture, so every prompt needs an image"),
        (
            {"sources": sources(masks=True), "guidance": 2.0},
            "guidance 2: FluxFillPipeline has no classifier-free guidance",
        ),
        ({"sources": sources(masks=True), "strength": 0.0}, "strength 0: must be above 0, which is the picture itself"),
        ({"sources": sources(masks=True)[:1]}, "2 prompts but 1 pictures"),
    ],
)
def test_a_pipeline_that_draws_from_pictures_says_what_it_needs(
    options: dict[str, Any], expected: str, tmp_path_factory: pytest.TempPathFactory, filled: list[Any]
) -> None:
    if not filled:
        filled.append(load_base(fill_folder(tmp_path_factory.mktemp("fill"))))
    with pytest.raises(ParameterError, match=expected):
        draw(filled[0], **options)


@pytest.fixture(scope="module")
def filled() -> list[Any]:
    """The pipeline of FLUX.1 Fill, once it is made."""
    return []


def test_what_diffusers_has_no_class_for_is_refused(pipe: Any, filled: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"strength 0.5: FluxPipeline starts from noise"):
        draw(pipe, strength=0.5)
    with pytest.raises(ParameterError, match="FluxPipeline: takes no picture"):
        draw(pipe, sources=sources())
    fill = filled[0] if filled else load_base(fill_folder(tmp_path))
    with pytest.raises(ParameterError, match="every prompt needs a mask beside its image"):
        from_pictures(fill, masks=False)
