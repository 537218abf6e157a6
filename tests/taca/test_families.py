"""Other transformers: one more family added in a few lines, and clear words for those that TACA cannot serve."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_transformers import Small, _random
from test_install import explicit_output, run

from components.errors import ParameterError
from components.taca import Family, TemperatureSchedule, enable_taca, register_family
from components.taca.registry import FAMILIES

SCHEDULE = TemperatureSchedule(gamma=1.6, threshold=0.9)


# The example of docs/taca.md.
COGVIDEOX = Family(
    name="cogvideox",
    transformer="CogVideoXTransformer3DModel",
    stock_processors=("CogVideoXAttnProcessor2_0",),
    single={"transformer_blocks": "num_layers"},
    attention="attn1",
    timesteps=(0.0, 1000.0),
    attention_kwargs="attention_kwargs",
)


@pytest.fixture
def unknown() -> Iterator[None]:
    """As if the project did not have this family."""
    before = copy.copy(FAMILIES)
    del FAMILIES[COGVIDEOX.transformer]
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


@pytest.fixture
def registered(unknown: None) -> None:
    register_family(COGVIDEOX)


def cogvideox(seed: int = 0) -> Any:
    from diffusers import CogVideoXTransformer3DModel

    return _random(
        lambda: CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=4,
            out_channels=4,
            time_embed_dim=16,
            text_embed_dim=24,
            num_layers=2,
            sample_width=8,
            sample_height=8,
            sample_frames=5,
            max_text_seq_length=6,
            use_rotary_positional_embeddings=True,
        ),
        seed,
    )


def cogvideox_inputs(sigma: list[float], text: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    source = torch.Generator().manual_seed(1)
    rotary = get_3d_rotary_pos_embed(32, ((0, 0), (4, 4)), (4, 4), 2, device="cpu")
    return {
        "hidden_states": torch.randn(len(sigma), 2, 4, 8, 8, generator=source).to(dtype),
        "encoder_hidden_states": torch.randn(len(sigma), text, 24, generator=source).to(dtype),
        "timestep": torch.tensor(sigma) * 1000,
        "image_rotary_emb": rotary,
    }


def test_a_family_added_in_a_few_lines_equals_an_explicit_softmax(registered: None) -> None:
    small = Small(cogvideox, cogvideox_inputs, 2, text_first=True)
    model, inputs = cogvideox().double(), cogvideox_inputs([1.0, 0.5], dtype=torch.float64)
    stock = run(model, inputs)
    with enable_taca(model, SCHEDULE) as handle:
        assert handle.patched_modules == 2
        got = run(model, inputs)
    assert (got - explicit_output(small, model, inputs, [1.6, 1.0])).abs().max() < 1e-7
    assert (got[0] - stock[0]).abs().max() > 1e-3


def test_before_it_is_registered_the_model_is_refused_with_a_pointer(unknown: None) -> None:
    with pytest.raises(ParameterError, match=r"does not support CogVideoX.*register_family"):
        enable_taca(cogvideox(), SCHEDULE)


def small_pixart() -> Any:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=16,
        use_additional_conditions=False,
    )


def small_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        layers_per_block=1,
        attention_head_dim=4,
    )


@pytest.mark.parametrize("build", [small_pixart, small_unet])
def test_separate_cross_attention_is_told_that_taca_has_no_meaning_there(build: Any) -> None:
    with pytest.raises(ParameterError, match="no meaning"):
        enable_taca(build(), SCHEDULE)
