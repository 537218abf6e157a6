import pytest
import torch

from components.errors import ParameterError
from components.taca.generation import Arm, apply_arm, generate, initial_noise
from components.taca.install import enable_taca, taca_handle
from components.taca.lora import add_lora, save_lora, unload_lora
from components.taca.schedule import TemperatureSchedule
from components.taca.tiny import TinyConfig, build_tiny_pipeline

SMALL = TinyConfig(width=32, heads=2, double_blocks=1, single_blocks=1, text_width=16, text_layers=1, text_tokens=6)
PROMPTS = ["red hat", "blue hat", "red", "hat red blue"]
SEEDS = [11, 12, 13, 14]
SCHEDULE = TemperatureSchedule(gamma=3.0, threshold=0.8)


@pytest.fixture
def pipe():
    pipe = build_tiny_pipeline(SMALL, ("red", "blue", "hat"), seed=0)
    # FLUX starts with a silent output layer; give it a voice, or every model draws the same noise.
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.add_(
                0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return pipe


def draw(pipe, **options):
    settings = {"prompts": PROMPTS, "seeds": SEEDS, "height": 16, "width": 8, "steps": 4, **options}
    return generate(pipe, **settings)


def make_adapter(pipe, folder, metadata):
    add_lora(pipe.transformer, rank=2, seed=0)
    for name, parameter in pipe.transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    save_lora(pipe.transformer, folder, metadata)
    unload_lora(pipe.transformer)
    pipe.transformer.requires_grad_(True)
    return folder


def fingerprint(transformer):
    """Everything an arm could leave behind: parameters, modules, processors and hooks."""
    return (
        {name: (id(p), p._version, p.requires_grad) for name, p in transformer.named_parameters()},
        {name: type(module) for name, module in transformer.named_modules()},
        {name: id(processor) for name, processor in transformer.attn_processors.items()},
        (len(transformer._forward_pre_hooks), len(transformer._forward_hooks)),
    )


def test_pictures_are_bytes_of_the_size_asked_for(pipe):
    pictures = draw(pipe, height=24, width=8)
    assert pictures.dtype == torch.uint8
    assert pictures.shape == (4, 3, 24, 8)
    assert pictures.float().std() > 5


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_prompt_and_seed_give_the_same_picture_in_any_company(pipe, guidance):
    together = draw(pipe, guidance=guidance)
    assert torch.equal(together, draw(pipe, guidance=guidance))
    backwards = draw(pipe, prompts=PROMPTS[::-1], seeds=SEEDS[::-1], guidance=guidance, batch_size=3).flip(0)
    assert (together.int() - backwards.int()).abs().max() <= 1
    assert (together.int() - draw(pipe, seeds=[1, 2, 3, 4], guidance=guidance).int()).abs().max() > 20


def test_guidance_moves_away_from_the_empty_prompt(pipe):
    # By the definition on one step: x - sigma (v_empty + w (v - v_empty)).
    noise = initial_noise(pipe, SEEDS[:1], 16, 8)
    velocity = []
    for prompt in ("", PROMPTS[0]):
        embeds, pooled, text_ids = pipe.encode_prompt([prompt], max_sequence_length=6)
        with torch.no_grad():
            velocity.append(
                pipe.transformer(
                    hidden_states=noise,
                    timestep=torch.ones(1),
                    encoder_hidden_states=embeds,
                    pooled_projections=pooled,
                    txt_ids=text_ids,
                    img_ids=pipe._prepare_latent_image_ids(1, 4, 2, "cpu", torch.float32),
                    return_dict=False,
                )[0]
            )
    latents = noise - (velocity[0] + 4.0 * (velocity[1] - velocity[0]))
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe._unpack_latents(latents, 16, 8, 2)).sample
    expected = (decoded / 2 + 0.5).clamp(0, 1) * 255
    drawn = draw(pipe, prompts=PROMPTS[:1], seeds=SEEDS[:1], steps=1, guidance=4.0)
    assert (drawn - expected).abs().max() < 0.51


def test_noise_belongs_to_its_seed(pipe):
    noise = initial_noise(pipe, SEEDS, 16, 8)
    assert noise.shape == (4, 8, 32)
    assert torch.equal(noise[2:3], initial_noise(pipe, SEEDS[2:3], 16, 8))


def test_progress_is_told_after_every_batch(pipe):
    told = []
    draw(pipe, steps=1, batch_size=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 4), (4, 4)]


def test_every_arm_draws_differently_and_leaves_no_trace(pipe, tmp_path):
    adapter = make_adapter(pipe, tmp_path, {"gamma": 1.0, "threshold": 0.8})
    before, base = fingerprint(pipe.transformer), draw(pipe)
    arms = {
        "base": Arm(),
        "lora": Arm(adapter=adapter),
        "taca": Arm(schedule=SCHEDULE),
        "both": Arm(adapter=adapter, schedule=SCHEDULE),
    }
    drawn = {}
    for name, arm in arms.items():
        with apply_arm(pipe, arm):
            drawn[name] = draw(pipe)
        assert fingerprint(pipe.transformer) == before, name
        assert torch.equal(draw(pipe), base), name
    assert torch.equal(drawn["base"], base)
    pictures = list(drawn.values())
    for i, first in enumerate(pictures):
        assert all(not torch.equal(first, second) for second in pictures[i + 1 :])


def test_the_adapter_is_on_only_above_its_threshold(pipe, tmp_path):
    adapter = make_adapter(pipe, tmp_path, {"gamma": 1.0, "threshold": 0.8})
    base = draw(pipe)
    with apply_arm(pipe, Arm(adapter=adapter, adapter_threshold=1.0)):
        first_step = draw(pipe)
    with apply_arm(pipe, Arm(adapter=adapter, adapter_threshold=0.0)):
        every_step = draw(pipe)
    with apply_arm(pipe, Arm(adapter=adapter)):  # four steps at shift 3: sigma 1, .9, .75, .5
        stored = draw(pipe)
    with apply_arm(pipe, Arm(adapter=adapter, adapter_threshold=0.85)):
        assert torch.equal(draw(pipe), stored)
    assert not torch.equal(first_step, base)
    assert not torch.equal(first_step, stored)
    assert not torch.equal(every_step, stored)


def test_an_error_inside_an_arm_restores_the_pipeline(pipe, tmp_path):
    adapter = make_adapter(pipe, tmp_path, {"threshold": 0.8})
    before = fingerprint(pipe.transformer)
    with pytest.raises(KeyboardInterrupt), apply_arm(pipe, Arm(adapter=adapter, schedule=SCHEDULE)):
        raise KeyboardInterrupt
    assert fingerprint(pipe.transformer) == before


def test_taca_that_was_enabled_before_is_enabled_after(pipe):
    own = TemperatureSchedule(gamma=1.7, threshold=0.5)
    enable_taca(pipe.transformer, own)
    with apply_arm(pipe, Arm()):
        assert taca_handle(pipe.transformer) is None
    assert taca_handle(pipe.transformer).schedule == own
    with apply_arm(pipe, Arm(schedule=SCHEDULE)):
        assert taca_handle(pipe.transformer).schedule == SCHEDULE
    assert taca_handle(pipe.transformer).schedule == own


def test_an_adapter_of_unknown_threshold_needs_one(pipe, tmp_path):
    adapter = make_adapter(pipe, tmp_path, {})
    with pytest.raises(ParameterError, match="adapter_threshold"), apply_arm(pipe, Arm(adapter=adapter)):
        pass
    with apply_arm(pipe, Arm(adapter=adapter, schedule=SCHEDULE)):
        pass


@pytest.mark.parametrize("wrong", [{"seeds": [1]}, {"steps": 0}, {"guidance": 0.5}, {"height": 18}])
def test_impossible_requests_are_refused(pipe, wrong):
    with pytest.raises(ParameterError):
        draw(pipe, **wrong)
