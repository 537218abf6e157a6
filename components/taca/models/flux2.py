"""FLUX.2 dev and klein. Reference pictures count as image; klein may cache their keys, and then they see only themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from components.errors import ParameterError
from components.taca.config import Queries
from components.taca.families import Arguments, Batch, Conventions, Family, plain_guidance
from components.taca.placement import Block, Placement, segments


@dataclass(frozen=True)
class _BeforeReferences(Placement):
    """Text first, in queries and keys. references: the reference tokens that attend to themselves, in a call of their own."""

    text: int
    references: int

    @property
    def text_tokens(self) -> int:  # type: ignore[override]
        return self.text

    def block(self, queries: Queries, rows: int, keys: int) -> Block | None:
        if self.references and keys == self.references:
            return None
        if queries == "text":
            return Block(slice(self.text, keys), segments([slice(0, self.text)], rows))
        return Block(slice(0, self.text), segments([slice(self.text, rows)], rows))


def _placement(config: Any, arguments: Arguments, padding: bool) -> Placement:
    references = arguments.get("num_ref_tokens", 0) if arguments.get("kv_cache_mode") == "extract" else 0
    return _BeforeReferences(arguments["encoder_hidden_states"].shape[1], references)


def _max_text_tokens(config: Mapping[str, Any]) -> int:
    return 512


def _embed(pipe: Any, captions: list[str], length: int) -> dict[str, Tensor]:
    embeds, _ = pipe.encode_prompt(captions, max_sequence_length=length)
    return {"prompt_embeds": embeds}


def _guidance(pipe: Any, scale: float, embedded: float) -> dict[str, Any]:
    if scale != 1:
        raise ParameterError(
            f"guidance {scale:g}: FLUX.2 dev has no classifier-free guidance; use 1 and embedded_guidance"
        )
    return {"guidance_scale": embedded}


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    """Normalise each channel of a patch (C, row, column) by the VAE's batch norm."""
    latents = vae.encode(pixels.to(vae.dtype)).latent_dist.mean  # (B, C, H / f, W / f)
    rows, columns = latents.shape[2] // 2, latents.shape[3] // 2
    deviation = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    mean, deviation = (
        part.view(-1, 2, 2).repeat(1, rows, columns).to(latents) for part in (vae.bn.running_mean, deviation)
    )
    return (latents - mean) / deviation


def _positions(batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    """Rotary positions (picture, row, column, place in the text): image tokens have no last one, text tokens only that."""
    ids = batch["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    text = torch.arange(batch["prompt_embeds"].shape[1], device=ids.device, dtype=ids.dtype)
    return {"img_ids": F.pad(ids, (0, 1)), "txt_ids": F.pad(text[:, None], (3, 0))}


def _levels(config: Mapping[str, Any], steps: int, tokens: int) -> dict[str, Any]:
    """Evenly spaced levels, unless the scheduler has flow sigmas, and a shift by resolution and steps."""
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    sigmas = None if config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
    return {"sigmas": sigmas, "mu": compute_empirical_mu(image_seq_len=tokens, num_steps=steps)}


DEV = Conventions(
    pipeline="Flux2Pipeline",
    text_parts=("text_encoder", "tokenizer"),
    length_tokenizer="tokenizer",
    max_text_tokens=_max_text_tokens,
    embed_captions=_embed,
    guidance_arguments=_guidance,
    encode_pixels=_latents,
    forward_arguments=_positions,
    call_packs=True,
    sampler_arguments=_levels,
)
KLEIN = replace(DEV, pipeline="Flux2KleinPipeline", guidance_arguments=plain_guidance)
FLUX2 = Family(
    name="flux2",
    transformer="Flux2Transformer2DModel",
    stock_processors=(
        "Flux2AttnProcessor",
        "Flux2ParallelSelfAttnProcessor",
        "Flux2KVAttnProcessor",
        "Flux2KVParallelSelfAttnProcessor",
    ),
    double={"transformer_blocks": "num_layers"},
    single={"single_transformer_blocks": "num_single_layers"},
    placement=_placement,
    attention_kwargs="joint_attention_kwargs",
    lora_reader="Flux2LoraLoaderMixin",
    conventions=DEV,
)
