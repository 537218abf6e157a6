from contextlib import nullcontext

import pytest
import small_pipelines
import torch

from components.errors import ParameterError
from components.taca.batches import cache_batches
from components.taca.cache import CachedCaption, LatentCache, write_cache
from components.taca.generation import Adapter, Arm, apply_arm, generate, initial_noise
from components.taca.install import enable_taca, taca_handle
from components.taca.lora import add_lora, save_lora, unload_lora
from components.taca.reference import TEXT, load_base, write_reference
from components.taca.schedule import TemperatureSchedule
from components.taca.toy.config import TinyConfig
from components.taca.toy.pipeline import build_tiny_pipeline
from components.taca.velocity import VelocityTask

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
    arms = {"base": Arm(), "lora": Arm(adapter), "taca": Arm(schedule=SCHEDULE), "both": Arm(adapter, SCHEDULE)}
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
    with apply_arm(pipe, Arm(Adapter(adapter, threshold=1.0))):
        first_step = draw(pipe)
    with apply_arm(pipe, Arm(Adapter(adapter, threshold=0.0))):
        every_step = draw(pipe)
    with apply_arm(pipe, Arm(adapter)):  # four steps at shift 3: sigma 1, .9, .75, .5
        stored = draw(pipe)
    with apply_arm(pipe, Arm(Adapter(adapter, threshold=0.85))):
        assert torch.equal(draw(pipe), stored)
    assert not torch.equal(first_step, base)
    assert not torch.equal(first_step, stored)
    assert not torch.equal(every_step, stored)


def test_an_error_inside_an_arm_restores_the_pipeline(pipe, tmp_path):
    adapter = make_adapter(pipe, tmp_path, {"threshold": 0.8})
    before = fingerprint(pipe.transformer)
    with pytest.raises(KeyboardInterrupt), apply_arm(pipe, Arm(adapter, SCHEDULE)):
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


def test_an_adapter_whose_file_names_no_threshold_is_on_at_every_step(pipe, tmp_path):
    """As any LoRA is in diffusers; one that was trained with TACA names its threshold."""
    adapter = make_adapter(pipe, tmp_path, {})
    with apply_arm(pipe, Arm(adapter, SCHEDULE)):
        unnamed = draw(pipe)
    with apply_arm(pipe, Arm(Adapter(adapter, threshold=0.0), SCHEDULE)):
        assert torch.equal(draw(pipe), unnamed)
    with apply_arm(pipe, Arm(Adapter(adapter, threshold=0.8), SCHEDULE)):
        assert not torch.equal(draw(pipe), unnamed)


def test_several_adapters_each_with_its_weight_and_threshold_beside_the_users_own(pipe, tmp_path):
    adapter = make_adapter(pipe, tmp_path, {"threshold": 0.8})
    pipe.load_lora_weights(adapter, adapter_name="style")
    pipe.set_adapters(["style"], [0.5])
    own = draw(pipe)
    with apply_arm(pipe, Arm((Adapter(adapter, 0.25, 0.0), Adapter(adapter, -0.75, 0.0)))):
        assert set(pipe.transformer.active_adapters()) == {"style", "taca", "taca_1"}
        cancelled = draw(pipe)  # 0.5 + 0.25 - 0.75 = 0
    assert torch.equal(draw(pipe), own)
    pipe.unload_lora_weights()
    assert (cancelled.int() - draw(pipe).int()).abs().max() <= 1
    assert (cancelled.int() - own.int()).abs().max() > 20
    with apply_arm(pipe, Arm(Adapter(adapter, 0.5, 0.0))):
        assert torch.equal(draw(pipe), own)


@pytest.mark.parametrize("wrong", [{"seeds": [1]}, {"steps": 0}, {"guidance": 0.5}, {"height": 18}])
def test_impossible_requests_are_refused(pipe, wrong):
    with pytest.raises(ParameterError):
        draw(pipe, **wrong)


PIPELINES = ("flux", "sd3", "chroma", "qwen", "auraflow")


@pytest.fixture(scope="module", params=PIPELINES)
def small(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return getattr(small_pipelines, f"small_{request.param}_pipeline")(folder / "pipeline")


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_every_pipeline_draws_a_prompt_and_seed_alike_in_any_company(small, guidance):
    together = draw(small, guidance=guidance)
    assert together.shape == (4, 3, 16, 8)
    assert together.dtype == torch.uint8
    assert torch.equal(together, draw(small, guidance=guidance))
    backwards = draw(small, prompts=PROMPTS[::-1], seeds=SEEDS[::-1], guidance=guidance, batch_size=3).flip(0)
    assert (together.int() - backwards.int()).abs().max() <= 1
    assert not torch.equal(together, draw(small, seeds=[1, 2, 3, 4], guidance=guidance))
    assert not torch.equal(together, draw(small, prompts=["coat"] * 4, guidance=guidance))


def test_every_pipeline_draws_differently_under_taca_and_is_restored(small):
    before, base = fingerprint(small.transformer), draw(small)
    with apply_arm(small, Arm(schedule=SCHEDULE)):
        assert not torch.equal(draw(small), base)
    assert fingerprint(small.transformer) == before
    assert torch.equal(draw(small), base)


def test_every_pipeline_draws_in_bfloat16_from_the_same_noise(small, tmp_path):
    small.save_pretrained(tmp_path / "pipeline")
    write_reference(tmp_path / "pipeline", tmp_path / "base.json")
    half = load_base(tmp_path / "base.json", dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16
    noise = initial_noise(half, SEEDS, 16, 8)
    assert noise.dtype == torch.float32
    assert torch.equal(noise, initial_noise(small, SEEDS, 16, 8))
    given = []
    half.transformer.register_forward_pre_hook(
        lambda _, args, kw: given.append((args or [kw["hidden_states"]])[0]), with_kwargs=True
    )
    # One step: random weights as large as these turn a rounding into another picture within a few.
    near, far = draw(half, steps=1), draw(small, steps=1)
    other = draw(small, steps=1, seeds=[1, 2, 3, 4])
    assert torch.equal(given[0], noise.to(torch.bfloat16))
    assert (near.int() - far.int()).abs().float().mean() < 0.3 * (other.int() - far.int()).abs().float().mean()


def test_sd3_guidance_moves_away_from_the_empty_prompt(tmp_path):
    pipe = small_pipelines.small_sd3_pipeline(tmp_path)
    noise = initial_noise(pipe, SEEDS[:1], 16, 8)
    velocity = []
    for prompt in ("", PROMPTS[0]):
        embeds, _, pooled, _ = pipe.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=6
        )
        with torch.no_grad():
            velocity.append(
                pipe.transformer(
                    hidden_states=noise,
                    timestep=torch.full((1,), 1000.0),
                    encoder_hidden_states=embeds,
                    pooled_projections=pooled,
                    return_dict=False,
                )[0]
            )
    latents = noise - (velocity[0] + 4.0 * (velocity[1] - velocity[0]))
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / 1.5 + 0.125).sample
    expected = (decoded / 2 + 0.5).clamp(0, 1) * 255
    drawn = draw(pipe, prompts=PROMPTS[:1], seeds=SEEDS[:1], steps=1, guidance=4.0)
    assert (drawn - expected).abs().max() < 0.51


def test_taca_on_the_conditional_half_alone_works_in_an_arm_of_sd3(tmp_path):
    pipe = small_pipelines.small_sd3_pipeline(tmp_path)
    half = TemperatureSchedule(gamma=3.0, threshold=0.8, unconditional=False)
    base = draw(pipe, guidance=2.5)
    with apply_arm(pipe, Arm(schedule=half)):
        conditional = draw(pipe, guidance=2.5)
    with apply_arm(pipe, Arm(schedule=SCHEDULE)):
        both = draw(pipe, guidance=2.5)
    assert not torch.equal(conditional, base)
    assert not torch.equal(conditional, both)
    assert torch.equal(draw(pipe, guidance=2.5), base)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_from_pictures_to_a_trained_adapter_to_pictures(name, tmp_path):
    """The whole TACA half on one pipeline folder: reference, cache, training, adapter file, arms, plain diffusers."""
    getattr(small_pipelines, f"small_{name}_pipeline")(tmp_path / "model")
    reference = tmp_path / "base.json"
    write_reference(tmp_path / "model", reference)
    pixels = torch.rand(8, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    rows = [CachedCaption(number, number, PROMPTS[number % 4]) for number in range(8)]
    text = load_base(reference, components=("vae", *TEXT))
    write_cache(text, tmp_path / "cache", rows, lambda ids: pixels[list(ids)])

    cache, transformer = (
        LatentCache.open(tmp_path / "cache"),
        load_base(reference, components=["transformer"]).transformer,
    )
    schedule = TemperatureSchedule(gamma=2.0, threshold=0.7)
    add_lora(transformer, rank=4, seed=0)
    task = VelocityTask(transformer, **cache.null_caption(), seed=0, sigma_low=0.7, schedule=schedule)
    optimizer = torch.optim.AdamW([p for p in transformer.parameters() if p.requires_grad], lr=1e-2)
    batches, losses = cache_batches(cache, batch_size=8, seed=0), []
    for step in range(12):
        optimizer.zero_grad()
        loss = task(batches(step), step)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])
    save_lora(transformer, tmp_path / "adapter", schedule.to_mapping())

    pipe = load_base(reference)
    before, drawn = fingerprint(pipe.transformer), {"base": draw(pipe)}
    for arm in (Arm(Adapter(tmp_path / "adapter", threshold=0.0)), Arm(schedule=schedule)):
        with (
            pytest.warns(UserWarning, match="without TACA") if arm.schedule is None else nullcontext(),
            apply_arm(pipe, arm),
        ):
            drawn["lora" if arm.adapters else "taca"] = draw(pipe)
    with apply_arm(pipe, Arm(tmp_path / "adapter", schedule)):
        drawn["taca_lora"] = draw(pipe)
    pictures = list(drawn.values())
    assert all(not torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[i + 1 :])
    assert fingerprint(pipe.transformer) == before

    plain = type(pipe).from_pretrained(tmp_path / "model", local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(tmp_path / "adapter")
    assert torch.equal(draw(plain), drawn["lora"])
