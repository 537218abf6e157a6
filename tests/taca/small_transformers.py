"""Random FLUX and SD3 transformers small enough to run in milliseconds, and inputs for them."""

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


def sd3(seed: int = 0) -> Any:
    """3 blocks, the first two with image-only second attention, width 64."""
    from diffusers import SD3Transformer2DModel

    return _random(
        lambda: SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=3,
            out_channels=3,
            num_layers=3,
            attention_head_dim=32,
            num_attention_heads=2,
            joint_attention_dim=24,
            caption_projection_dim=64,
            pooled_projection_dim=20,
            pos_embed_max_size=8,
            dual_attention_layers=(0, 1),
            qk_norm="rms_norm",
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


FAMILIES = {"flux": (flux, flux_inputs), "sd3": (sd3, sd3_inputs)}
