"""Each pipeline's conventions against the pipeline itself: what its own call gives the transformer, the VAE, the scheduler."""

from functools import cache

import pytest
import small_pipelines
import torch

from components.errors import DataError, ParameterError
from components.taca.config import TacaConfig
from components.taca.conventions import encode_captions, encode_pictures, sampler_sigmas, text_length
from components.taca.families import forward_parameters, named_arguments
from components.taca.generation import active_steps, generate, initial_noise, schedule_for_pictures
from components.taca.registry import CONVENTIONS, conventions_of, family_of
from components.taca.schedule import TemperatureSchedule

NAMES = ("flux", "sd3", "chroma", "qwen", "auraflow")
CAPTIONS = ["red hat blue coat", "hat"]
SIZE = {"height": 16, "width": 24}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipelines")


@cache
def cached_pipeline(folder, name):
    """A pipeline whose scheduler tests may replace."""
    return getattr(small_pipelines, f"small_{name}_pipeline")(folder / f"{name}-samplers")


@pytest.fixture(scope="module", params=NAMES)
def pipe(request, folder):
    return getattr(small_pipelines, f"small_{request.param}_pipeline")(folder / request.param)


class Calls:
    """What a transformer is called with, by name, and answers, while the block is open."""

    def __init__(self, transformer, answer=None):
        self.given, self._transformer, self._answer = [], transformer, answer

    def __enter__(self):
        names = forward_parameters(self._transformer)

        def before(_, args, kwargs):
            self.given.append(named_arguments(names, args, kwargs))

        def after(_, __, output):
            return (self._answer(output[0]),) if self._answer else None

        self._hooks = [
            self._transformer.register_forward_pre_hook(before, with_kwargs=True),
            self._transformer.register_forward_hook(after),
        ]
        return self.given

    def __exit__(self, *_):
        for hook in self._hooks:
            hook.remove()


def mask_given(call):
    return call.get("encoder_hidden_states_mask", call.get("attention_mask"))


def test_captions_are_embedded_as_the_pipelines_own_call_embeds_them(pipe):
    encoded = encode_captions(pipe, CAPTIONS)
    with Calls(pipe.transformer) as calls:
        generate(pipe, CAPTIONS, [0, 1], **SIZE, steps=1)
    given = calls[0]["encoder_hidden_states"]
    seen = given.shape[1]  # Qwen-Image's call pads to the longest of its prompts, the others to text_length
    torch.testing.assert_close(encoded["prompt_embeds"][:, :seen], given)
    assert not encoded["prompt_embeds"][:, seen:].any()
    assert ("pooled" in encoded) == ("pooled_projections" in calls[0])
    if "pooled" in encoded:
        torch.testing.assert_close(encoded["pooled"], calls[0]["pooled_projections"])
    assert ("text_mask" in encoded) == (mask_given(calls[0]) is not None)
    if "text_mask" in encoded:
        assert torch.equal(encoded["text_mask"][:, :seen], mask_given(calls[0])[:, :seen].bool())
        assert not encoded["text_mask"][:, seen:].any()
        assert encoded["text_mask"][0].sum() > encoded["text_mask"][1].sum()


def test_captions_are_embedded_alike_in_any_company(pipe):
    together, alone = encode_captions(pipe, CAPTIONS), encode_captions(pipe, CAPTIONS[1:])
    assert together["prompt_embeds"].shape[1] >= text_length(pipe)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name][1:], tensor)


def test_latents_are_those_that_the_pipeline_decodes_to_the_picture(pipe, monkeypatch):
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    latents, decoded = encode_pictures(pipe, pixels), []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z, **kw: decoded.append(z) or decode(z, **kw))
    with Calls(pipe.transformer, answer=torch.zeros_like):  # a still sampler: what goes in comes out
        pipe(CAPTIONS, latents=latents, num_inference_steps=1, output_type="pt", **SIZE)
    signed = pixels * 2 - 1
    mean = pipe.vae.encode(signed if decoded[0].ndim == 4 else signed[:, :, None]).latent_dist.mean
    torch.testing.assert_close(decoded[0], mean, rtol=1e-4, atol=1e-5)


def test_noise_has_the_shape_that_the_pipeline_would_draw(pipe):
    with Calls(pipe.transformer) as calls:
        pipe(
            CAPTIONS[:1],
            num_inference_steps=1,
            output_type="latent",
            **conventions_of(pipe).guidance_arguments(pipe, 1, 1),
            **SIZE,
        )
    noise = initial_noise(pipe, [5], **SIZE)
    assert noise.shape == calls[0]["hidden_states"].shape
    assert torch.equal(noise, initial_noise(pipe, [4, 5], **SIZE)[1:])


@pytest.mark.parametrize("steps", [3, 8])
@pytest.mark.parametrize("dynamic", [False, True])
def test_noise_levels_are_those_of_the_pipelines_own_call(pipe, steps, dynamic, monkeypatch):
    if dynamic and type(pipe).__name__ == "AuraFlowPipeline":
        pytest.skip("AuraFlow's call does not shift by resolution")
    scheduler = type(pipe.scheduler)(
        shift=3.0, use_dynamic_shifting=dynamic, base_image_seq_len=16, max_image_seq_len=64
    )
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    before = scheduler.sigmas.clone()
    predicted = sampler_sigmas(pipe, steps, **SIZE)
    assert torch.equal(scheduler.sigmas, before)
    generate(pipe, CAPTIONS[:1], [0], **SIZE, steps=steps)
    torch.testing.assert_close(predicted, scheduler.sigmas[:-1], rtol=0, atol=1e-6)
    assert len(predicted) == steps


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 64}
SAMPLERS = {
    "Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "Karras": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
    "exponential": ("FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    "beta": ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}),
    "linear": ("FlowMatchEulerDiscreteScheduler", {**DYNAMIC, "time_shift_type": "linear", "shift_terminal": 0.02}),
    "LCM": ("FlowMatchLCMScheduler", {"shift": 3.0}),
    "Heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "UniPC": ("UniPCMultistepScheduler", FLOW),
    "UniPC dynamic": ("UniPCMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}),
    "UniPC Karras": ("UniPCMultistepScheduler", {**FLOW, "use_karras_sigmas": True}),
    "DPM multi": ("DPMSolverMultistepScheduler", FLOW),
    "DPM multi dynamic": ("DPMSolverMultistepScheduler", {**FLOW, "use_dynamic_shifting": True}),
    "DPM single": ("DPMSolverSinglestepScheduler", FLOW),
    "DEIS": ("DEISMultistepScheduler", FLOW),
    "SA": ("SASolverScheduler", FLOW),
}


@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rules_and_counts_are_of_the_levels_that_the_transformer_sees_whatever_the_sampler(folder, name, sampler):
    """Against the running pipeline; where its own call refuses the scheduler, so do we, in one line."""
    import diffusers

    pipe = cached_pipeline(folder, name)
    kind, settings = SAMPLERS[sampler]
    pipe.scheduler = getattr(diffusers, kind)(**settings)
    call = {"prompt": "red hat", "num_inference_steps": 10, "output_type": "latent", **SIZE}
    with Calls(pipe.transformer) as calls:
        try:
            pipe(**call, **({} if name == "flux" else {"guidance_scale": 1.0}))
        except (AssertionError, TypeError, ValueError):
            for use in (
                lambda: schedule_for_pictures(pipe, TacaConfig(threshold={"fraction": 0.3}), steps=10, **SIZE),
                lambda: generate(pipe, ["red hat"], [0], steps=10, **SIZE),
            ):
                with pytest.raises(ParameterError, match=f"cannot use {kind}"):
                    use()
            assert schedule_for_pictures(pipe, TacaConfig(threshold=0.9), steps=10, **SIZE).threshold == 0.9
            return
    seen = torch.cat([family_of(pipe.transformer).sigma(given["timestep"]) for given in calls])
    levels = list(dict.fromkeys(seen.tolist()))  # of Heun's two evaluations one
    assert sampler_sigmas(pipe, 10, **SIZE).tolist() == pytest.approx(levels, abs=1e-6)
    for rule, wanted in (({"fraction": 0.3}, 3), ({"fraction": 0.01}, 1), ({"fraction": 1.0}, 10)):
        schedule = schedule_for_pictures(pipe, TacaConfig(threshold=rule), steps=10, **SIZE)
        on = [bool(schedule.is_active(torch.tensor(level))) for level in levels]
        assert on == [True] * wanted + [False] * (10 - wanted)
        assert active_steps(pipe, schedule, steps=10, **SIZE) == wanted
        assert schedule.active_steps(pipe.scheduler) == wanted
    by_shift = schedule_for_pictures(pipe, TacaConfig(threshold={"sigma": 0.9, "shift": 3.0}), steps=10, **SIZE)
    assert active_steps(pipe, by_shift, steps=10, **SIZE) in (3, 4)  # shift 3 is at 0.9 after 2.5 of 10 steps


def test_a_shift_set_on_the_scheduler_is_seen(pipe, monkeypatch):
    scheduler = type(pipe.scheduler)(shift=1.0)
    scheduler.set_shift(5.0)  # its config still says 1
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    generate(pipe, CAPTIONS[:1], [0], **SIZE, steps=3)
    torch.testing.assert_close(sampler_sigmas(pipe, 3, **SIZE), scheduler.sigmas[:-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("distilled", "tokens"), [(True, 512), (False, 256)])
def test_schnell_reads_256_tokens_and_dev_512(folder, distilled, tokens):
    """Black Forest Labs' code: max_length = 256 if schnell else 512. Also where the transformer is not loaded, as in caching."""
    pipe = small_pipelines.small_flux_pipeline(folder / f"text-{distilled}", guidance_embeds=distilled)
    pipe.tokenizer_2.model_max_length = 4096
    assert text_length(pipe) == tokens
    pipe.transformer = None
    assert text_length(pipe) == tokens


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_active_steps_are_counted_as_the_transformer_sees_its_timesteps(folder, name):
    """In bfloat16, FLUX's call rounds timesteps to 8 bits and SD3's does not."""
    pipe = getattr(small_pipelines, f"small_{name}_pipeline")(folder / f"{name}-bf16").to(torch.bfloat16)
    steps, differing = 12, 0
    with Calls(pipe.transformer) as calls:
        generate(pipe, CAPTIONS[:1], [0], **SIZE, steps=steps)
    seen = torch.cat([family_of(pipe.transformer).sigma(call["timestep"])[:1] for call in calls])
    for level in sampler_sigmas(pipe, steps, **SIZE):
        schedule = TemperatureSchedule(threshold=float(level), tolerance=0.0)
        expected = int(schedule.is_active(seen).sum())
        assert active_steps(pipe, schedule, steps=steps, **SIZE) == expected
        differing += expected != int(schedule.is_active(sampler_sigmas(pipe, steps, **SIZE)).sum())
    assert bool(differing) == (name == "flux")


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_guidance_asks_for_the_empty_prompt_only_when_it_is_on(pipe, scale):
    with Calls(pipe.transformer) as calls:
        generate(pipe, CAPTIONS, [0, 1], **SIZE, steps=2, guidance=scale)
    first_step = calls[: len(calls) // 2]
    rows = [row for call in first_step for row in call["encoder_hidden_states"]]
    empty = encode_captions(pipe, [""])["prompt_embeds"][0]
    alike = [torch.allclose(row, empty[: len(row)], atol=1e-5) for row in rows]
    assert (len(rows), sum(alike)) == ((2, 0) if scale == 1 else (4, 2))


def test_a_distilled_model_is_told_the_embedded_scale_and_another_is_not(folder):
    for distilled in (True, False):
        pipe = small_pipelines.small_flux_pipeline(folder / f"distilled-{distilled}", guidance_embeds=distilled)
        with Calls(pipe.transformer) as calls:
            generate(pipe, CAPTIONS, [0, 1], **SIZE, steps=1, embedded_guidance=2.25)
        assert (calls[0]["guidance"].tolist() == [2.25, 2.25]) if distilled else (calls[0]["guidance"] is None)


def test_a_picture_whose_sides_do_not_divide_is_refused(pipe):
    with pytest.raises(DataError, match="multiples of 4"):
        encode_pictures(pipe, torch.rand(1, 3, 18, 8))
    with pytest.raises(ParameterError, match="multiples of 4"):
        initial_noise(pipe, [0], 16, 10)


def test_every_supported_class_exists_in_diffusers_and_takes_its_parts():
    import inspect

    import diffusers

    for name, conventions in CONVENTIONS.items():
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
        assert set(conventions.parts) <= set(parameters)
        assert {part for part in parameters if part.startswith(("text_encoder", "tokenizer"))} == set(
            conventions.text_parts
        )


def test_another_pipeline_is_refused_by_name():
    with pytest.raises(ParameterError, match="dict: not supported; supported are FluxPipeline"):
        conventions_of({})
