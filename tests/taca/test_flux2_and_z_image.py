"""FLUX.2 and Z-Image against their own pipelines: latents, noise, noise levels, text and the velocity that training asks for."""

from typing import Any

import pytest
import torch
from tiny_pipelines import PIPELINES

from components.errors import ParameterError
from components.taca import TemperatureSchedule, add_lora
from components.taca.conventions import as_call_input, encode_captions, encode_pictures, sampler_sigmas
from components.taca.generation import generate, initial_noise
from components.taca.registry import CONVENTIONS, conventions_of
from components.taca.velocity import VelocityTask

SIZE = {"height": 16, "width": 16}
NAMES = ("flux2-klein", "z-image")


@pytest.fixture(scope="module", params=NAMES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    described = PIPELINES[request.param]
    return described, described.read_back(tmp_path_factory.mktemp("pipelines") / request.param)


def stepped(described: Any, pipe: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Any]:
    """Draw, and return what the scheduler was given: (velocity, timestep, latents) of each step."""
    steps: list[Any] = []
    step = type(pipe.scheduler).step

    def watched(scheduler: Any, velocity: Any, timestep: Any, latents: Any, **rest: Any) -> Any:
        steps.append((velocity, timestep, latents))
        return step(scheduler, velocity, timestep, latents, **rest)

    monkeypatch.setattr(type(pipe.scheduler), "step", watched)
    described.draw(pipe, **options)
    return steps


def test_the_noise_is_what_the_call_takes_and_the_levels_are_its_own(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    described, pipe = tiny
    noise = initial_noise(pipe, [5], **SIZE)
    steps = stepped(described, pipe, monkeypatch, latents=noise)
    assert steps[0][2].shape == stepped(described, pipe, monkeypatch)[0][2].shape
    tokens = noise.flatten(2).transpose(1, 2) if conventions_of(pipe).packed else noise
    assert torch.equal(steps[0][2], tokens.to(steps[0][2]))
    seen = torch.stack([timestep for _, timestep, _ in steps[:2]]).float() / 1000
    torch.testing.assert_close(sampler_sigmas(pipe, 2, **SIZE), seen)


def test_latents_decode_to_the_encoded_picture(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    described, pipe = tiny
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if hasattr(pipe.vae, "bn"):
        pipe.vae.bn.running_mean.uniform_(-1, 1)
        pipe.vae.bn.running_var.uniform_(0.5, 2)
    latents = conventions_of(pipe).encode_pixels(pipe.vae, pixels * 2 - 1)
    decoded: list[Any] = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z, **kw: decoded.append(z) or decode(z, **kw))
    monkeypatch.setattr(type(pipe.scheduler), "step", lambda scheduler, velocity, timestep, latents, **rest: (latents,))
    described.draw(pipe, latents=as_call_input(pipe, latents), output_type="pt")
    torch.testing.assert_close(decoded[0], pipe.vae.encode(pixels * 2 - 1).latent_dist.mean, rtol=1e-4, atol=1e-5)
    packed = encode_pictures(pipe, pixels)
    if conventions_of(pipe).packed:
        torch.testing.assert_close(packed, pipe._pack_latents(pipe._patchify_latents(latents)))
    else:
        torch.testing.assert_close(packed, latents)


def test_training_asks_for_the_velocity_that_the_sampler_steps_by(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    described, pipe = tiny
    text = encode(pipe, described, ["red hat"])
    noise = initial_noise(pipe, [5], **SIZE)
    expected, timestep, latents = stepped(described, pipe, monkeypatch, latents=noise)[0]
    task = VelocityTask(pipe.transformer, seed=0, **{f"null_{name}": part[0] for name, part in text.items()})
    batch = text | ({"img_ids": positions(latents)} if latents.ndim == 3 else {})
    batch["latents"] = latents
    with torch.no_grad():
        got = task._velocity(latents, timestep.reshape(1) / 1000, batch)
    torch.testing.assert_close(got, expected.to(got), rtol=1e-4, atol=1e-4)


def test_a_lora_trains(tiny: Any) -> None:
    described, pipe = tiny
    text = encode(pipe, described, ["red hat", "hat"])
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = encode_pictures(pipe, pictures)
    batch = text | {"latents": latents} | ({"img_ids": positions(latents)} if latents.ndim == 3 else {})
    add_lora(pipe.transformer, 2, seed=0)
    task = VelocityTask(
        pipe.transformer,
        seed=0,
        schedule=TemperatureSchedule(1.5),
        **{f"null_{name}": part[0] for name, part in text.items()},
    )
    loss = task(batch, 0)["loss"]
    loss.backward()
    trained = [p for p in pipe.transformer.parameters() if p.requires_grad]
    assert loss.isfinite()
    assert trained
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    pipe.transformer.delete_adapters([*pipe.transformer.peft_config])


def encode(pipe: Any, described: Any, captions: list[str]) -> dict[str, Any]:
    """Captions as the tiny pipeline is called: klein reads layers 9, 18 and 27 of its encoder, the tiny one has three."""
    layers = described.options.get("text_encoder_out_layers")
    if layers is None:
        return encode_captions(pipe, captions)
    embeds, _ = pipe.encode_prompt(captions, max_sequence_length=6, text_encoder_out_layers=layers)
    return {"prompt_embeds": embeds}


def positions(latents: torch.Tensor) -> torch.Tensor:
    side = int(latents.shape[1] ** 0.5)
    return torch.cartesian_prod(torch.zeros(1), torch.arange(float(side)), torch.arange(float(side)))


def test_z_image_is_drawn_with_the_guidance_that_the_others_mean(tmp_path: Any) -> None:
    pipe = PIPELINES["z-image"].read_back(tmp_path)
    calls: list[int] = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(args[0])), with_kwargs=True
    )
    for guidance, samples in ((1.0, 1), (3.0, 2)):
        calls.clear()
        pictures = generate(pipe, ["red hat"], [0], **SIZE, steps=2, guidance=guidance)
        assert pictures.shape == (1, 3, 16, 16)
        assert calls == [samples] * 2


def test_flux2_dev_refuses_classifier_free_guidance_and_klein_does_not() -> None:
    dev, klein = CONVENTIONS["Flux2Pipeline"], CONVENTIONS["Flux2KleinPipeline"]
    assert dev.guidance_arguments(None, 1, 4.0) == {"guidance_scale": 4.0}
    assert klein.guidance_arguments(None, 3.0, 4.0) == {"guidance_scale": 3.0}
    with pytest.raises(ParameterError, match=r"FLUX\.2 dev has no classifier-free guidance"):
        dev.guidance_arguments(None, 3.0, 4.0)
