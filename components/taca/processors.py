"""Attention processors that apply the temperature; stateless, gamma is a keyword argument of each call.

That matters for gradient checkpointing, which calls a block again during backward: the arguments of the first call
are replayed, whereas state kept on the processor would by then belong to a later forward (and give wrong gradients
without an error). Without a gamma a processor calls the one it replaced, so a step with TACA off is the stock
computation itself.
"""

from typing import Any

import torch
from torch import Tensor

from components.taca.attention import temperature_adjusted_attention


class FluxTemperatureProcessor:
    """Replaces `FluxAttnProcessor` in double- and single-stream blocks. Text comes first in the joint sequence."""

    def __init__(self, original: Any) -> None:
        self.original = original

    # diffusers configures attention by assigning these on the processor. They live on the original, which computes
    # the steps with TACA off, and which is put back by `disable_taca` with whatever was chosen meanwhile.
    @property
    def _attention_backend(self) -> Any:
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.original._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.original._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.original._parallel_config = config

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        taca_gamma: Tensor | None = None,
        taca_text_length: int | None = None,
    ) -> Any:
        """hidden_states (B, S_image, C) with encoder_hidden_states (B, T, C), or (B, T + S_image, C) alone.

        taca_gamma: broadcasts to (B, T, H, 1), None for stock attention; taca_text_length: T.
        """
        if taca_gamma is None or taca_text_length is None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        from diffusers.models.embeddings import apply_rotary_emb

        query = attn.norm_q(_heads(attn.to_q(hidden_states), attn.head_dim))
        key = attn.norm_k(_heads(attn.to_k(hidden_states), attn.head_dim))
        value = _heads(attn.to_v(hidden_states), attn.head_dim)
        if encoder_hidden_states is not None:
            text_query = attn.norm_added_q(_heads(attn.add_q_proj(encoder_hidden_states), attn.head_dim))
            text_key = attn.norm_added_k(_heads(attn.add_k_proj(encoder_hidden_states), attn.head_dim))
            text_value = _heads(attn.add_v_proj(encoder_hidden_states), attn.head_dim)
            query = torch.cat([text_query, query], dim=1)  # (B, T + S_image, H, D)
            key = torch.cat([text_key, key], dim=1)
            value = torch.cat([text_value, value], dim=1)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)

        joint = temperature_adjusted_attention(
            query,
            key,
            value,
            taca_gamma,
            slice(0, taca_text_length),
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        joint = joint.flatten(2, 3).to(query.dtype)  # (B, T + S_image, C)
        if encoder_hidden_states is None:
            return joint
        text = attn.to_add_out(joint[:, :taca_text_length].contiguous())
        image = attn.to_out[1](attn.to_out[0](joint[:, taca_text_length:].contiguous()))
        return image, text


class SD3TemperatureProcessor:
    """Replaces diffusers' `JointAttnProcessor2_0` in SD3's joint attention. Text comes last in the joint sequence."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        taca_gamma: Tensor | None = None,
    ) -> Any:
        """hidden_states (B, S_image, C), encoder_hidden_states (B, T, C); taca_gamma as for Flux.

        `attention_mask` is ignored, as by the stock processor. The native backend is the stock processor's kernel.
        """
        if taca_gamma is None or encoder_hidden_states is None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask)
        images = hidden_states.shape[1]
        head_dim = attn.to_k.out_features // attn.heads

        query = _normalised(attn.norm_q, _heads(attn.to_q(hidden_states), head_dim))
        key = _normalised(attn.norm_k, _heads(attn.to_k(hidden_states), head_dim))
        value = _heads(attn.to_v(hidden_states), head_dim)
        text_query = _normalised(attn.norm_added_q, _heads(attn.add_q_proj(encoder_hidden_states), head_dim))
        text_key = _normalised(attn.norm_added_k, _heads(attn.add_k_proj(encoder_hidden_states), head_dim))
        text_value = _heads(attn.add_v_proj(encoder_hidden_states), head_dim)

        joint = temperature_adjusted_attention(
            torch.cat([query, text_query], dim=1),  # (B, S_image + T, H, D)
            torch.cat([key, text_key], dim=1),
            torch.cat([value, text_value], dim=1),
            taca_gamma,
            slice(images, images + encoder_hidden_states.shape[1]),
            backend="native",
        )
        joint = joint.flatten(2, 3).to(query.dtype)  # (B, S_image + T, C)
        text = joint[:, images:]
        if not attn.context_pre_only:
            text = attn.to_add_out(text)
        return attn.to_out[1](attn.to_out[0](joint[:, :images])), text


class StockProcessor:
    """The original processor behind a signature that accepts TACA's argument, for attention TACA must leave alone.

    SD3 hands the same keyword arguments to its image-only `attn2`, which would log a warning about them on every call.
    """

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        taca_gamma: Tensor | None = None,
    ) -> Any:
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask)


def _heads(projected: Tensor, head_dim: int) -> Tensor:
    """(B, S, H * D) -> (B, S, H, D)"""
    return projected.unflatten(-1, (-1, head_dim))


def _normalised(norm: Any, heads: Tensor) -> Tensor:
    return heads if norm is None else norm(heads)
