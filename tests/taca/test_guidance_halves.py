"""The switch for the unconditional half of guidance: decided from the running call, in every pipeline that runs the transformer."""

import copy
import gc
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import small_pipelines
import torch
from small_transformers import flux, flux_inputs, sd3, sd3_inputs
from torch import Tensor

from components.errors import ParameterError
from components.taca import TemperatureSchedule, disable_taca, enable_taca, observe_attention
from components.taca.install import transformer_of

STEPS = 2
SPARED = TemperatureSchedule(1.5, form="constant", unconditional=False)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small pipeline of each family."""
    names = ("flux", "chroma", "sd3", "qwen", "auraflow")
    folder = tmp_path_factory.mktemp("pipelines")
    return {name: getattr(small_pipelines, f"small_{name}_pipeline")(folder / name) for name in names}


def applied(transformer: Any, call: Callable[[], Any]) -> list[list[float]]:
    """The largest gamma of each sample of each transformer call."""
    calls: list[list[float]] = []

    def observer(layer: str, query: Tensor, key: Tensor, text: slice, gamma: Tensor | None, *rest: Any) -> None:
        if layer in ("transformer_blocks.0.attn", "joint_transformer_blocks.0.attn") and gamma is not None:
            samples = gamma.expand(query.shape[0], -1, -1, -1)
            calls.append([round(value, 3) for value in samples.flatten(1).amax(1).tolist()])

    with observe_attention(transformer, observer), torch.no_grad():
        call()
    return calls


def pipeline(bases: dict[str, Any], base: str, name: str, **parts: Any) -> Any:
    """A pipeline of another class with the parts of a family's own."""
    import inspect

    import diffusers

    cls = getattr(diffusers, name)
    taken = {
        key: bases[base].components.get(key) for key in inspect.signature(cls.__init__).parameters if key != "self"
    }
    pipe = cls(**taken | parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.latent_channels = -1  # the small VAE has three, so that a picture would be taken for latents
    return pipe


def draw(pipe: Any, guidance: float, side: int = 32, **options: Any) -> None:
    """Draw one picture; of the options those that the class has."""
    import inspect

    from PIL import Image

    taken = inspect.signature(pipe.__call__).parameters
    image = Image.new("RGB", (side, side), "red")
    scale = "true_cfg_scale" if "true_cfg_scale" in taken else "guidance_scale"
    given = {
        "prompt": "red hat",
        "negative_prompt": "blue" if guidance > 1 else None,
        scale: guidance,
        "height": side,
        "width": side,
        "num_inference_steps": STEPS,
        "output_type": "latent",
        "max_sequence_length": 6,
        "image": image,
        "mask_image": Image.new("L", (side, side), 255),
        "control_image": image,
        "control_mask": Image.new("L", (side, side), 255),
        "strength": 1.0,
        "_auto_resize": False,
        "max_area": side * side,
    }
    pipe(**{key: value for key, value in (given | options).items() if key in taken})


ONE_BATCH, TWO_PASSES, NO_GUIDANCE = [[1.0, 1.5]] * STEPS, [[1.5], [1.0]] * STEPS, [[1.5]] * STEPS


@pytest.mark.parametrize(
    ("base", "name", "guided"),
    [
        ("flux", "FluxPipeline", TWO_PASSES),
        ("flux", "FluxImg2ImgPipeline", TWO_PASSES),
        ("flux", "FluxInpaintPipeline", TWO_PASSES),
        ("flux", "FluxKontextPipeline", TWO_PASSES),
        ("flux", "FluxKontextInpaintPipeline", TWO_PASSES),
        ("flux", "FluxFillPipeline", NO_GUIDANCE),
        ("flux", "FluxControlPipeline", NO_GUIDANCE),
        ("flux", "FluxControlImg2ImgPipeline", NO_GUIDANCE),
        ("flux", "FluxControlNetPipeline", TWO_PASSES),
        ("flux", "FluxControlNetImg2ImgPipeline", NO_GUIDANCE),
        ("flux", "FluxControlNetInpaintPipeline", NO_GUIDANCE),
        ("chroma", "ChromaPipeline", TWO_PASSES),
        ("chroma", "ChromaImg2ImgPipeline", TWO_PASSES),
        ("qwen", "QwenImagePipeline", TWO_PASSES),
        ("qwen", "QwenImageImg2ImgPipeline", TWO_PASSES),
        ("qwen", "QwenImageInpaintPipeline", TWO_PASSES),
        ("qwen", "QwenImageControlNetPipeline", TWO_PASSES),
        ("sd3", "StableDiffusion3Pipeline", ONE_BATCH),
        ("sd3", "StableDiffusion3Img2ImgPipeline", ONE_BATCH),
        ("sd3", "StableDiffusion3ControlNetPipeline", ONE_BATCH),
        ("sd3", "StableDiffusion3ControlNetInpaintingPipeline", ONE_BATCH),
        ("auraflow", "AuraFlowPipeline", ONE_BATCH),
    ],
)
def test_every_pipeline_class_with_guidance_and_without(
    bases: dict[str, Any], base: str, name: str, guided: list[list[float]]
) -> None:
    parts, options = special_parts(bases[base].transformer, name)
    pipe = pipeline(bases, base, name, **parts)
    with enable_taca(pipe, SPARED):
        assert applied(pipe, lambda: draw(pipe, 3.0, **options)) == guided
        assert applied(pipe, lambda: draw(pipe, 1.0, **options)) == NO_GUIDANCE


@pytest.mark.parametrize("family", ["flux", "chroma", "qwen", "sd3", "auraflow"])
def test_both_halves_are_scaled_unless_one_is_left_out(bases: dict[str, Any], family: str) -> None:
    pipe = bases[family]
    with enable_taca(pipe, TemperatureSchedule(1.5, form="constant")):
        calls = applied(pipe, lambda: draw(pipe, 3.0))
    assert calls == ([[1.5, 1.5]] * STEPS if family in ("sd3", "auraflow") else [[1.5]] * 2 * STEPS)


def special_parts(transformer: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parts and call arguments that only some classes have."""
    import diffusers

    heads = {"attention_head_dim": 32, "num_attention_heads": 2}
    if name.startswith("FluxControlNet"):
        net = diffusers.FluxControlNetModel.from_transformer(transformer, num_layers=1, num_single_layers=1, **heads)
        return {"controlnet": net.eval()}, {}
    if name.startswith("StableDiffusion3ControlNet"):
        extra = 1 if "Inpainting" in name else 0
        net = diffusers.SD3ControlNetModel.from_transformer(
            transformer, num_layers=1, num_extra_conditioning_channels=extra
        )
        return {"controlnet": net.eval()}, {}
    if name.startswith("QwenImageControlNet"):
        net = diffusers.QwenImageControlNetModel.from_transformer(transformer, num_layers=1, **heads)
        return {"controlnet": net.eval()}, {}
    if name.startswith("FluxControl"):
        return {"transformer": flux(in_channels=24, out_channels=12)}, {}
    if name == "FluxFillPipeline":
        return {"transformer": flux(in_channels=48, out_channels=16), "vae": small_pipelines.small_vae(4)}, {}
    return {}, {"side": 16} if name == "StableDiffusion3Img2ImgPipeline" else {}


def test_pipelines_that_share_a_transformer_are_asked_each_for_its_own_call(bases: dict[str, Any]) -> None:
    """`from_pipe` is how diffusers recommends to change the class; what the first pipeline did last, or whether it is still
    there, is nothing to the second."""
    first = copy.deepcopy(bases["sd3"])
    with enable_taca(first, SPARED):
        second = pipeline({"sd3": first}, "sd3", "StableDiffusion3Img2ImgPipeline")
        draw(first, 1.0)
        assert applied(second, lambda: draw(second, 4.0, 16)) == ONE_BATCH
        draw(first, 4.0)
        pair = {"prompt": ["red hat"] * 2, "image": torch.zeros(2, 3, 16, 16)}
        assert applied(second, lambda: draw(second, 1.0, 16, **pair)) == [[1.5, 1.5]] * STEPS
        for transformer in (copy.deepcopy(first.transformer), pickle.loads(pickle.dumps(first.transformer))):
            twin = pipeline({"sd3": first}, "sd3", "StableDiffusion3Img2ImgPipeline", transformer=transformer)
            assert applied(twin, lambda twin=twin: draw(twin, 4.0, 16)) == ONE_BATCH
            assert disable_taca(twin)
        del first
        gc.collect()
        assert applied(second, lambda: draw(second, 4.0, 16)) == ONE_BATCH


def test_guidance_that_a_callback_switches_off_or_that_skips_layers(bases: dict[str, Any]) -> None:
    pipe = bases["sd3"]

    def stop(pipe: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale = 0.0  # as in diffusers' documentation
        return {name: tensor[-1:] for name, tensor in tensors.items()}

    names = ["prompt_embeds", "pooled_prompt_embeds"]
    stopping = {"callback_on_step_end": stop, "callback_on_step_end_tensor_inputs": names}
    with enable_taca(pipe, SPARED):
        assert applied(pipe, lambda: draw(pipe, 4.0, **stopping)) == [[1.0, 1.5], [1.5]]
        skipping = {"skip_guidance_layers": [1], "num_inference_steps": 8}
        calls = applied(pipe, lambda: draw(pipe, 4.0, **skipping))
    assert [1.5] in calls  # one more forward, of the conditional half
    assert [call for call in calls if call != [1.5]] == [[1.0, 1.5]] * 8


@pytest.mark.parametrize("family", ["flux", "sd3", "qwen"])
@pytest.mark.parametrize("guided", [True, False])
def test_blocks_of_modular_pipelines(bases: dict[str, Any], family: str, guided: bool) -> None:
    from diffusers import ClassifierFreeGuidance
    from diffusers.modular_pipelines.flux.denoise import FluxLoopDenoiser
    from diffusers.modular_pipelines.modular_pipeline import BlockState
    from diffusers.modular_pipelines.qwenimage.denoise import QwenImageLoopDenoiser
    from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3LoopDenoiser

    transformer = bases[family].transformer
    guider = ClassifierFreeGuidance(guidance_scale=4.0 if guided else 1.0)
    parts = SimpleNamespace(transformer=transformer, guider=guider)
    inputs = flux_inputs([1.0]) if family != "sd3" else sd3_inputs([1.0])
    text, negative = inputs["encoder_hidden_states"], torch.randn(inputs["encoder_hidden_states"].shape)
    state = BlockState(latents=inputs["hidden_states"], prompt_embeds=text, guidance=None, num_inference_steps=1)
    state.joint_attention_kwargs = state.attention_kwargs = None
    if guided or family != "flux":
        state.negative_prompt_embeds = negative
    if family == "qwen":
        state.latent_model_input, state.timestep = state.latents, torch.tensor([1000.0])
        state.prompt_embeds_mask = state.negative_prompt_embeds_mask = torch.ones(1, 6, dtype=torch.bool)
        state.denoiser_input_fields, state.additional_cond_kwargs = {"img_shapes": [[(1, 5, 5)]]}, {}
        block: Any = QwenImageLoopDenoiser()
    else:
        state.pooled_prompt_embeds = state.negative_pooled_prompt_embeds = inputs["pooled_projections"]
        state.txt_ids, state.img_ids = inputs.get("txt_ids"), inputs.get("img_ids")
        block = FluxLoopDenoiser() if family == "flux" else StableDiffusion3LoopDenoiser()
    with enable_taca(transformer, SPARED):
        calls = applied(transformer, lambda: block(parts, state, 0, torch.tensor(1000.0)))
    assert calls == ([[1.5], [1.0]] if guided and family != "flux" else [[1.5]])


def test_somebodys_own_call_that_does_not_say_is_one_line_and_can_say() -> None:
    model, inputs = flux(), flux_inputs([1.0, 1.0])
    enable_taca(model, SPARED)

    def own(**attention: Any) -> list[list[float]]:
        arguments = {"joint_attention_kwargs": attention} if attention else {}
        return applied(model, lambda: model(**inputs, **arguments))

    with pytest.raises(ParameterError, match=r"does not say.*taca_unconditional") as caught:
        own()
    assert "\n" not in str(caught.value)
    assert own(taca_unconditional=True) == [[1.0, 1.0]]
    assert own(taca_unconditional=torch.tensor([False, True])) == [[1.5, 1.0]]
    with pytest.raises(ParameterError, match=r"shape \(3,\)"):
        own(taca_unconditional=[True, False, True])
    for name, expected in (("cond", 1.5), ("uncond", 1.0)):
        with model.cache_context(name):
            assert own() == [[expected, expected]]
    with model.cache_context("cond_uncond"), pytest.raises(ParameterError, match="does not say"):
        own()
    with enable_taca(model, TemperatureSchedule(1.5, threshold=1.0, unconditional=False)):
        plain = {**inputs, "timestep": torch.tensor([0.5, 0.5])}  # where TACA is off, the argument is not passed on
        applied(model, lambda: model(**plain, joint_attention_kwargs={"taca_unconditional": True}))


def test_a_batch_of_both_prompts_is_told_apart_by_its_text_in_either_order() -> None:
    model, inputs = sd3(), sd3_inputs([1.0, 1.0])
    enable_taca(model, SPARED)
    prompt_embeds, negative_prompt_embeds = inputs["encoder_hidden_states"].split(1)
    assert applied(model, lambda: (negative_prompt_embeds, model(**inputs))) == [[1.5, 1.0]]
    swapped = {**inputs, "encoder_hidden_states": torch.cat([negative_prompt_embeds, prompt_embeds])}
    assert applied(model, lambda: (negative_prompt_embeds, model(**swapped))) == [[1.0, 1.5]]
    other = {**inputs, "encoder_hidden_states": 2 * inputs["encoder_hidden_states"]}
    with pytest.raises(ParameterError, match="does not say"):
        applied(model, lambda: (negative_prompt_embeds, model(**other)))


@pytest.mark.heavy
@pytest.mark.parametrize("before", [True, False])
def test_a_compiled_transformer_in_a_pipeline(bases: dict[str, Any], before: bool) -> None:
    pipe = copy.deepcopy(bases["sd3"])
    torch._dynamo.reset()
    if not before:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    enable_taca(pipe, SPARED)
    if before:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert applied(transformer_of(pipe), lambda: draw(pipe, 4.0)) == ONE_BATCH
    assert applied(transformer_of(pipe), lambda: draw(pipe, 1.0)) == NO_GUIDANCE
