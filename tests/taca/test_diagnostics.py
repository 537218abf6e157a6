"""Text mass against explicit softmax, and the measurement of a whole sampling run against a forward done by hand."""

import pytest
import torch
from small_pipelines import small_sd3_pipeline
from torch.utils._python_dispatch import TorchDispatchMode

from components.errors import ParameterError
from components.taca.attention import temperature_adjusted_attention
from components.taca.diagnostics import measure_text_mass, text_attention_mass
from components.taca.generation import Arm, apply_arm, generate
from components.taca.schedule import TemperatureSchedule
from components.taca.toy.config import TinyConfig
from components.taca.toy.pipeline import build_tiny_pipeline

B, T, IMAGE, H, D = 2, 5, 23, 3, 8
S = T + IMAGE
TEXT = {"first": slice(0, T), "last": slice(IMAGE, S)}


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def queries_and_keys(dtype=torch.float64):
    return normal(B, S, H, D, seed=1, dtype=dtype) * 2, normal(B, S, H, D, seed=2, dtype=dtype) * 2


def explicit(query, key, text, gamma=1.0, mask=None, scale=D**-0.5, bias=0.0):
    """The whole S x S softmax, float64: mean over image rows of the sum over text columns."""
    logits = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) * scale
    is_text = torch.zeros(S, dtype=torch.bool)
    is_text[text] = True
    by_key = torch.ones(B, S, H, 1, dtype=torch.float64)
    by_key[:, text] *= gamma
    plus = torch.zeros(S, dtype=torch.float64)
    plus[text] = bias
    logits = logits * by_key.permute(0, 2, 3, 1) + plus
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1)[:, :, ~is_text][..., is_text].sum(-1).mean(-1)


GAMMAS = {
    "none": None,
    "one number": torch.tensor(1.2),
    "per sample": torch.tensor([1.5, 0.7]).view(B, 1, 1, 1),
    "per head": torch.tensor([1.5, 1.0, 0.5]).view(1, 1, H, 1),
    "per token": torch.linspace(0.5, 2, B * T).view(B, T, 1, 1),
}


@pytest.mark.parametrize("place", TEXT)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_text_mass_equals_the_explicit_softmax(place, gamma, chunk):
    query, key = queries_and_keys()
    factor = GAMMAS[gamma]
    found = text_attention_mass(query, key, TEXT[place], gamma=factor, chunk=chunk)
    assert found.shape == (B, H)
    assert found.dtype == torch.float64
    expected = explicit(query, key, TEXT[place], 1.0 if factor is None else factor)
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("place", TEXT)
def test_text_mass_is_what_the_attention_kernel_gives_to_text(place):
    """A value that is 1 on text and 0 on the image makes attention itself tell its mass."""
    query, key = queries_and_keys()
    told = torch.zeros(B, S, H, D, dtype=torch.float64)
    told[:, TEXT[place]] = 1
    gamma = GAMMAS["per sample"]
    attended = temperature_adjusted_attention(query, key, told, gamma, TEXT[place])[..., 0]  # (B, S, H)
    is_image = torch.ones(S, dtype=torch.bool)
    is_image[TEXT[place]] = False
    found = text_attention_mass(query, key, TEXT[place], gamma=gamma)
    assert (found - attended[:, is_image].mean(1)).abs().max() < 1e-12


def keys_mask():
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[0, 2:T] = False
    mask[1, IMAGE - 4 :] = False
    return mask


MASKS = {
    "keys": (keys_mask(), keys_mask()[:, None, None]),
    "keys, four dimensions": (keys_mask()[:, None, None], keys_mask()[:, None, None]),
    "one row for all": (keys_mask()[0], keys_mask()[:1, None, None]),
    "queries and keys": ((normal(S, S) > -0.5) | torch.eye(S, dtype=torch.bool), None),
    "heads": ((normal(B, H, S, S) > -0.5) | torch.eye(S, dtype=torch.bool), None),
    "added": (normal(B, 1, S, S), None),
}


@pytest.mark.parametrize("place", TEXT)
@pytest.mark.parametrize("name", MASKS)
def test_text_mass_under_a_mask_equals_the_explicit_softmax(place, name):
    query, key = queries_and_keys()
    given, seen = MASKS[name]
    found = text_attention_mass(query, key, TEXT[place], gamma=torch.tensor(1.25), attn_mask=given, scale=0.5, chunk=4)
    expected = explicit(query, key, TEXT[place], 1.25, given if seen is None else seen, scale=0.5)
    assert (found - expected).abs().max() < 1e-12


def test_an_additive_bias_is_measured_as_such():
    query, key = queries_and_keys()
    found = text_attention_mass(query, key, TEXT["first"], gamma=torch.tensor(1.5), effect="bias")
    expected = explicit(query, key, TEXT["first"], bias=torch.tensor(1.5).double().log())
    assert (found - expected).abs().max() < 1e-7  # gamma itself is float32


def test_queries_that_see_nothing_are_left_out_of_the_mean():
    query, key = queries_and_keys()
    mask = torch.ones(B, 1, S, S, dtype=torch.bool)
    mask[1, :, T + 3 :] = False  # of the second sample only three image queries see anything
    found = text_attention_mass(query, key, TEXT["first"], attn_mask=mask)
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) * D**-0.5
    expected = logits.softmax(-1)[1, :, T : T + 3, :T].sum(-1).mean(-1)
    assert (found[1] - expected).abs().max() < 1e-12
    mask[1] = False
    assert text_attention_mass(query, key, TEXT["first"], attn_mask=mask)[1].isnan().all()


def test_half_precision_is_measured_in_float32():
    query, key = (part.to(torch.bfloat16) for part in queries_and_keys())
    found = text_attention_mass(query, key, TEXT["last"])
    assert found.dtype == torch.float32
    assert (found - explicit(query, key, TEXT["last"])).abs().max() < 1e-6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(text_attention_mass(query, key, TEXT["last"]), found)


def test_a_temperature_takes_mass_from_text_whose_logits_are_negative():
    """Spec 1.3: more mass is not what a temperature promises."""
    query, key = torch.ones(1, 8, 1, 1), torch.zeros(1, 8, 1, 1)
    for logit, change in ((2.0, 1), (-2.0, -1)):
        key[:, :2] = logit
        off, on = (text_attention_mass(query, key, slice(0, 2), gamma=g) for g in (None, torch.tensor(1.2)))
        assert torch.sign(on - off).item() == change


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_memory_grows_with_the_sequence_and_not_with_its_square():
    chunk, peak = 16, {}
    for length in (512, 2048):
        query = normal(1, length, 2, 4, dtype=torch.float32)
        with Largest() as seen:
            text_attention_mass(query, query, slice(0, 64), gamma=torch.tensor(1.2), chunk=chunk)
        peak[length] = seen.elements
        assert seen.elements <= 2 * chunk * length
    assert peak[2048] < 5 * peak[512]  # the square would be 16 times as much


@pytest.mark.parametrize("text", [slice(0, 0), slice(0, S), slice(0, T, 2), slice(3, 2)])
def test_a_sequence_without_both_kinds_of_tokens_is_refused(text):
    query, key = queries_and_keys()
    with pytest.raises(ParameterError, match="text ="):
        text_attention_mass(query, key, text)


def test_cross_attention_is_refused():
    query, key = queries_and_keys()
    with pytest.raises(ParameterError, match="joint"):
        text_attention_mass(query[:, :4], key, TEXT["first"])


SMALL = TinyConfig(width=32, heads=2, double_blocks=1, single_blocks=2, text_width=16, text_layers=1, text_tokens=6)
PROMPTS, SEEDS = ["red hat", "blue hat", "red"], [11, 12, 13]
LAYERS = ("double 0", "single 0", "single 1")
SCHEDULE = TemperatureSchedule(gamma=2.0, threshold=0.8)  # four steps at shift 3: sigma 1, .9, .75, .5


@pytest.fixture
def pipe():
    pipe = build_tiny_pipeline(SMALL, ("red", "blue", "hat"), seed=0)
    # Freshly drawn, FLUX attends almost evenly and draws the noise itself; louder weights make every layer say something.
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.add_(0.2 * normal(*parameter.shape, seed=parameter.numel(), dtype=torch.float32))
    return pipe


def measure(pipe, arm=None, **options):
    settings = {"prompts": PROMPTS, "seeds": SEEDS, "height": 16, "width": 8, "steps": 4, **options}
    with apply_arm(pipe, arm or Arm()):
        return measure_text_mass(pipe, **settings)


def first_step_by_hand(pipe, schedule):
    """Text mass of the first transformer call, layer by layer: projections, norms and rotation as FLUX does them, all logits at
    once, in float64."""
    from diffusers.models.embeddings import apply_rotary_emb

    heard = []

    def listen(module, args, kwargs):
        heard.append((module, args[0] if args else kwargs["hidden_states"], kwargs))

    attention = [*(block.attn for block in pipe.transformer.transformer_blocks)]
    attention += [block.attn for block in pipe.transformer.single_transformer_blocks]
    hooks = [module.register_forward_pre_hook(listen, with_kwargs=True) for module in attention]
    with apply_arm(pipe, Arm(schedule=schedule)):
        generate(pipe, PROMPTS, SEEDS, height=16, width=8, steps=4)
    for hook in hooks:
        hook.remove()

    masses = []
    with torch.no_grad():
        for module, image, kwargs in heard[: len(attention)]:
            query, key = module.norm_q(split(module.to_q(image))), module.norm_k(split(module.to_k(image)))
            text = kwargs.get("encoder_hidden_states")
            if text is not None:
                query = torch.cat([module.norm_added_q(split(module.add_q_proj(text))), query], 1)
                key = torch.cat([module.norm_added_k(split(module.add_k_proj(text))), key], 1)
            query, key = (apply_rotary_emb(part, kwargs["image_rotary_emb"], sequence_dim=1) for part in (query, key))
            logits = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) / 16**0.5
            to_text = logits[:, :, 6:, :6]
            if schedule is not None and schedule.queries == "image":
                to_text *= schedule.gamma if schedule.effect == "temperature" else 1
                to_text += torch.tensor(schedule.gamma).log() if schedule.effect == "bias" else 0
            masses.append(logits.softmax(-1)[:, :, 6:, :6].sum(-1).mean((1, 2)))
    return torch.stack(masses, 1)


def split(projected):
    return projected.unflatten(-1, (2, 16))


@pytest.mark.parametrize(
    "schedule",
    [
        None,
        SCHEDULE,
        TemperatureSchedule(gamma=2.0, threshold=0.8, effect="bias"),
        TemperatureSchedule(gamma=2.0, threshold=0.8, queries="text"),
    ],
    ids=["off", "temperature", "bias", "text queries"],
)
def test_the_mass_of_a_running_model_equals_one_computed_by_hand(pipe, schedule):
    expected = first_step_by_hand(pipe, schedule)
    assert expected.std() > 0.01  # layers and prompts differ, so that mixing them up would show
    measured = measure(pipe, Arm(schedule=schedule))
    assert measured.layers == LAYERS
    assert measured.mass.shape == (3, 4, 3)
    assert (measured.mass[:, 0] - expected).abs().max() < 1e-5


def test_every_step_has_its_noise_level_and_says_whether_taca_was_on(pipe):
    off, on = measure(pipe), measure(pipe, Arm(schedule=SCHEDULE))
    assert torch.allclose(on.sigma, torch.tensor([1.0, 0.9, 0.75, 0.5]))
    assert not off.active.any()
    assert on.active.tolist() == [[True] * 3] * 2 + [[False] * 3] * 2
    assert int(on.active.any(1).sum()) == SCHEDULE.active_steps(on.sigma)
    fading = TemperatureSchedule(gamma=2.0, threshold=0.75, tolerance=0, form="linear")
    assert measure(pipe, Arm(schedule=fading)).active.any(1).tolist() == [True, True, False, False]  # gamma is 1 at .75
    single = measure(pipe, Arm(schedule=TemperatureSchedule(gamma=2.0, threshold=0.95, streams=("single",))))
    assert single.active.tolist() == [[False, True, True]] + [[False] * 3] * 3


def test_without_any_preference_text_gets_its_share_of_the_tokens(pipe):
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if ".to_q." in name or ".add_q_proj." in name:
                parameter.zero_()
    measured = measure(pipe, Arm(schedule=SCHEDULE))
    assert (measured.text_tokens, measured.image_tokens) == (6, 8)
    assert (measured.mass - measured.uniform_share).abs().max() < 1e-6
    assert measured.uniform_share == pytest.approx(6 / 14)


def test_a_prompt_has_the_same_mass_in_any_batch(pipe):
    told = []
    together = measure(pipe, Arm(schedule=SCHEDULE))
    apart = measure(
        pipe, Arm(schedule=SCHEDULE), batch_size=2, chunk=3, progress=lambda done, total: told.append((done, total))
    )
    assert (together.mass - apart.mass).abs().max() < 1e-4
    assert told == [(2, 3), (3, 3)]


def test_the_table_holds_every_number_at_its_place(pipe):
    measured = measure(pipe, Arm(schedule=SCHEDULE))
    table = measured.columns([70, 80, 90])
    assert len(table["mass"]) == 3 * 4 * 3
    for prompt, step, sigma, layer, active, mass in zip(*table.values(), strict=True):
        place = (step - 1, LAYERS.index(layer))
        assert measured.mass[(prompt // 10 - 7, *place)] == mass
        assert measured.active[place] == active
        assert measured.sigma[step - 1] == sigma


def test_measuring_changes_nothing_and_leaves_nothing_behind(pipe, monkeypatch):
    draw = {"prompts": PROMPTS, "seeds": SEEDS, "height": 16, "width": 8, "steps": 4}
    before = generate(pipe, **draw)
    processors, drawn = dict(pipe.transformer.attn_processors), []

    def listening(*args, **kwargs):
        drawn.append(generate(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr("components.taca.diagnostics.generate", listening)
    measure_text_mass(pipe, **draw)
    assert torch.equal(drawn[0], before)

    def failing(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("components.taca.diagnostics.generate", failing)
    with pytest.raises(KeyboardInterrupt):
        measure_text_mass(pipe, **draw)
    assert pipe.transformer.attn_processors == processors
    assert not pipe.transformer._forward_pre_hooks


def test_no_prompts_are_refused(pipe):
    with pytest.raises(ParameterError, match="no prompts"):
        measure(pipe, prompts=[], seeds=[])


def test_a_run_that_leaves_layers_out_is_refused(pipe, monkeypatch):
    """A feature cache would: the layers that it skips have no mass, and the rest would be taken for other steps."""
    skipped = pipe.transformer.single_transformer_blocks[1]
    monkeypatch.setattr(
        skipped, "forward", lambda hidden_states, encoder_hidden_states, **_: (encoder_hidden_states, hidden_states)
    )
    assert measure(pipe).layers == LAYERS[:2]  # never called: as if it were not there
    calls = iter(range(100))
    whole = type(skipped).forward
    monkeypatch.setattr(
        skipped,
        "forward",
        lambda hidden_states, encoder_hidden_states, **rest: (
            (encoder_hidden_states, hidden_states)
            if next(calls) % 2
            else whole(skipped, hidden_states, encoder_hidden_states, **rest)
        ),
    )
    with pytest.raises(ParameterError, match="every layer once"):
        measure(pipe)


def test_text_that_comes_last_is_measured_as_text(tmp_path):
    """SD3: image first, no rotation; its image-only second attention does not count."""
    pipe = small_sd3_pipeline(tmp_path)
    heard = []
    blocks = pipe.transformer.transformer_blocks
    hooks = [
        block.attn.register_forward_pre_hook(lambda module, _, kwargs: heard.append((module, kwargs)), with_kwargs=True)
        for block in blocks
    ]
    measured = measure(pipe, Arm(schedule=SCHEDULE), width=16)
    for hook in hooks:
        hook.remove()
    assert measured.layers == tuple(f"double {number}" for number in range(len(blocks)))
    with torch.no_grad():
        for layer, (module, kwargs) in enumerate(heard[: len(blocks)]):
            image, text = kwargs["hidden_states"], kwargs["encoder_hidden_states"]
            assert (measured.image_tokens, measured.text_tokens) == (image.shape[1], text.shape[1])
            query = module.norm_q(module.to_q(image).unflatten(-1, (2, 32)))  # of the image alone
            keys = module.norm_k(module.to_k(image).unflatten(-1, (2, 32)))
            text_keys = module.norm_added_k(module.add_k_proj(text).unflatten(-1, (2, 32))) * SCHEDULE.gamma
            logits = torch.einsum("bqhd,bkhd->bhqk", query, torch.cat([keys, text_keys], 1)) / 32**0.5
            mass = logits.softmax(-1)[..., image.shape[1] :].sum(-1).mean((1, 2))
            assert (measured.mass[:, 0, layer] - mass).abs().max() < 1e-5
