"""Random transformers of every supported family, small enough to run in milliseconds, and inputs for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

FLUX_LAYERS = 5
SD3_LAYERS = 3


def flux(seed: int = 0, **config: Any) -> Any:
    """2 double-stream and 3 single-stream blocks, width 64."""
    from diffusers import FluxTransformer2DModel

    settings: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 12,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "pooled_projection_dim": 20,
        "guidance_embeds": False,
        "axes_dims_rope": (8, 12, 12),
    }
    return _random(lambda: FluxTransformer2DModel(**settings | config), seed)


def sd3(seed: int = 0, **config: Any) -> Any:
    """3 blocks, the first two with image-only second attention, width 64."""
    from diffusers import SD3Transformer2DModel

    settings: dict[str, Any] = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 3,
        "out_channels": 3,
        "num_layers": 3,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 20,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0, 1),
        "qk_norm": "rms_norm",
    }
    return _random(lambda: SD3Transformer2DModel(**settings | config), seed)


def chroma(seed: int = 0) -> Any:
    """2 double-stream and 2 single-stream blocks, width 64."""
    from diffusers import ChromaTransformer2DModel

    return _random(
        lambda: ChromaTransformer2DModel(
            in_channels=12,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=24,
            axes_dims_rope=(8, 12, 12),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
        seed,
    )


def qwen(seed: int = 0) -> Any:
    """3 double-stream blocks, width 64."""
    from diffusers import QwenImageTransformer2DModel

    return _random(
        lambda: QwenImageTransformer2DModel(
            in_channels=12,
            out_channels=3,
            num_layers=3,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=24,
            axes_dims_rope=(8, 12, 12),
        ),
        seed,
    )


def auraflow(seed: int = 0) -> Any:
    """2 double-stream and 2 single-stream blocks, width 64."""
    from diffusers import AuraFlowTransformer2DModel

    return _random(
        lambda: AuraFlowTransformer2DModel(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            num_mmdit_layers=2,
            num_single_dit_layers=2,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=24,
            caption_projection_dim=64,
            pos_embed_max_size=64,
        ),
        seed,
    )


def _random(build: Any, seed: int) -> Any:
    """Weights large enough that attention is not uniform and the temperature has a visible effect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = build()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)
    return model.eval()


def flux_inputs(sigma: list[float], text: int = 6, side: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source).to(dtype)

    batch = len(sigma)
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(float(side)), torch.arange(float(side)))
    return {
        "hidden_states": normal(batch, side * side, 12),
        "encoder_hidden_states": normal(batch, text, 24),
        "pooled_projections": normal(batch, 20),
        "timestep": torch.tensor(sigma),
        "img_ids": grid,
        "txt_ids": torch.zeros(text, 3),
    }


def sd3_inputs(sigma: list[float], text: int = 6, side: int = 10, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source).to(dtype)

    batch = len(sigma)
    return {
        "hidden_states": normal(batch, 3, side, side),
        "encoder_hidden_states": normal(batch, text, 24),
        "pooled_projections": normal(batch, 20),
        "timestep": torch.tensor(sigma) * 1000,
    }


def chroma_inputs(
    sigma: list[float], text: int = 6, side: int = 5, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    inputs = flux_inputs(sigma, text, side, dtype)
    del inputs["pooled_projections"]
    return inputs


def qwen_inputs(
    sigma: list[float], text: int = 6, side: int = 5, dtype: torch.dtype = torch.float32, padded: int = 2
) -> dict[str, Any]:
    """The last `padded` text tokens of the first sample are padding."""
    flux = flux_inputs(sigma, text, side, dtype)
    mask = torch.ones(len(sigma), text, dtype=torch.bool)
    mask[0, text - padded :] = False
    return {
        "hidden_states": flux["hidden_states"],
        "encoder_hidden_states": flux["encoder_hidden_states"],
        "encoder_hidden_states_mask": mask,
        "timestep": flux["timestep"],
        "img_shapes": [[(1, side, side)]] * len(sigma),
    }


def auraflow_inputs(
    sigma: list[float], text: int = 6, side: int = 10, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    inputs = sd3_inputs(sigma, text, side, dtype)
    del inputs["pooled_projections"]
    return inputs | {"timestep": torch.tensor(sigma)}


@dataclass(frozen=True)
class Small:
    """A family's small model, its inputs, and what its code says about it, stated here a second time."""

    build: Callable[..., Any]
    inputs: Callable[..., dict[str, Any]]
    layers: int
    text_first: bool
    prefix: int = 0
    """Learned tokens in front of the text, whose logits TACA leaves alone."""
    single: int = 0
    """How many of the layers are single-stream, the last ones."""
    attention_kwargs: str = "joint_attention_kwargs"


SMALL = {
    "flux": Small(flux, flux_inputs, FLUX_LAYERS, text_first=True, single=3),
    "chroma": Small(chroma, chroma_inputs, 4, text_first=True, single=2),
    "sd3": Small(sd3, sd3_inputs, SD3_LAYERS, text_first=False),
    "qwen-image": Small(qwen, qwen_inputs, 3, text_first=True, attention_kwargs="attention_kwargs"),
    "auraflow": Small(
        auraflow, auraflow_inputs, 4, text_first=True, prefix=8, single=2, attention_kwargs="attention_kwargs"
    ),
}
FAMILIES = {name: (SMALL[name].build, SMALL[name].inputs) for name in ("flux", "sd3")}
