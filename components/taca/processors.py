"""The attention processor that applies the temperature; a subclass per family, in `models/`, names the arguments of its call.

Each call receives an `Adjustment` as a keyword argument; the processor has no state. That matters for gradient checkpointing,
which calls a block again during backward: the arguments of the first call are replayed, whereas state would by then be that of a
later forward (wrong gradients without an error). Without an adjustment a processor calls the one it replaced, so a step with TACA
off is the stock computation itself.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from components.taca.attention import temperature_adjusted_attention
from components.taca.config import Effect, Queries

Part = Literal["text", "image", "joint"]
Rotation = Callable[[Tensor, Part], Tensor]
"""Rotary embedding of a part (B, S, H, D) of the sequence: text, image, or both joined."""
Observer = Callable[[str, Tensor, Tensor, slice, Tensor | None, Tensor | None, float | None], None]
"""(layer, query, key (B, S, H, D), text, gamma or None, mask, scale), called before each joint attention."""


@dataclass(frozen=True)
class Adjustment:
    """The adjustment that one forward makes in every joint attention layer.

    gamma: broadcasts to (B, T, H, 1) over the text keys, float32; None for stock attention. text_length: T. appended: the number
    of tokens behind them in the text stream that are no text (the picture of FLUX.1 Redux).

    On purpose neither a tuple nor a dictionary: FSDP rounds every tensor that it finds in a block's arguments to the
    block's precision, and gamma must stay float32. Offloading moves arguments by calling their `to`.
    """

    gamma: Tensor | None
    text_length: int
    appended: int = 0
    effect: Effect = "temperature"
    queries: Queries = "image"

    def to(self, device: torch.device | str, *args: Any, **kwargs: Any) -> "Adjustment":
        """Return a copy on another device, with the same dtype."""
        return self if self.gamma is None else replace(self, gamma=self.gamma.to(device))


class TemperatureProcessor:
    """The joint attention of one layer with the image-to-text logits scaled.

    A family's subclass names the arguments of its attention call and passes them to `attend`. Layers with separate
    projections for text (FLUX's double blocks, SD3) are recognised by the attention module having them, others (CogVideoX)
    share one set; a layer called without `encoder_hidden_states` gets an already joined sequence (FLUX's single blocks).
    """

    text_first = True
    """Whether text comes before the image in the joint sequence."""

    def __init__(self, original: Any, layer: str = "", *, selected: bool = True) -> None:
        self.original = original
        self.layer = layer
        self.selected = selected
        self.observer: Observer | None = None

    # diffusers configures attention by assigning these on the processor. They live on the original, which computes
    # the steps with TACA off, and which `disable_taca` restores with its present backend. Processors without them
    # (SD3, AuraFlow) call PyTorch's attention, the same as the dispatcher's default.
    @property
    def _attention_backend(self) -> Any:
        return getattr(self.original, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.original._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.original, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.original._parallel_config = config

    def attend(
        self,
        attn: Any,
        taca: Adjustment,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        *,
        rotate: Rotation | None = None,
        attn_mask: Tensor | None = None,
        scale: float | None = None,
    ) -> Any:
        """Compute hidden_states (B, I, C) with encoder_hidden_states (B, T, C) -> both after attention and output projection; or
        (B, T + I, C) alone -> the same shape."""
        if encoder_hidden_states is None:
            query, key, value = _projected(attn, hidden_states, "joint", rotate)
        else:
            image_parts = _projected(attn, hidden_states, "image", rotate)
            text_parts = _projected(attn, encoder_hidden_states, "text", rotate)
            parts = (text_parts, image_parts) if self.text_first else (image_parts, text_parts)
            query, key, value = (torch.cat(pair, dim=1) for pair in zip(*parts, strict=True))

        length, stream = query.shape[1], taca.text_length + taca.appended
        start = 0 if self.text_first else length - stream
        text = slice(start, start + taca.text_length)
        joint = self._joint_attention(query, key, value, taca, text, attn_mask, scale)
        joint = joint.flatten(2, 3).to(query.dtype)  # (B, T + I, C)
        if encoder_hidden_states is None:
            return joint if getattr(attn, "to_out", None) is None else attn.to_out[1](attn.to_out[0](joint))
        image, others = (
            (slice(stream, length), slice(0, stream)) if self.text_first else (slice(0, start), slice(start, length))
        )
        return _output(attn, joint[:, image].contiguous(), "image"), _output(
            attn, joint[:, others].contiguous(), "text"
        )

    def _joint_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        taca: Adjustment,
        text: slice,
        attn_mask: Tensor | None,
        scale: float | None,
    ) -> Tensor:
        gamma = taca.gamma if self.selected else None
        if self.observer is not None:
            self.observer(self.layer, query, key, text, gamma, attn_mask, scale)
        return temperature_adjusted_attention(
            query,
            key,
            value,
            1.0 if gamma is None else gamma.to(key.device),
            text,
            attn_mask=attn_mask,
            scale=scale,
            effect=taca.effect,
            queries=taca.queries,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )


class StockProcessor:
    """The original processor with a signature that accepts TACA's argument, for attention that TACA does not change.

    SD3 passes the same keyword arguments to its image-only `attn2`, which would log a warning about them on every call.
    """

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        taca: Adjustment | None = None,
    ) -> Any:
        return self.original(attn, hidden_states, encoder_hidden_states, attention_mask)


def _projected(attn: Any, tokens: Tensor, of: Part, rotate: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value of one part of the sequence, (B, S, C) -> (B, S, H, D) each: normalised, then rotated."""
    own = of == "text" and getattr(attn, "add_k_proj", None) is not None
    head_dim = getattr(attn, "head_dim", None) or attn.inner_dim // attn.heads
    if getattr(attn, "fused_projections", False):
        projected = (attn.to_added_qkv if own else attn.to_qkv)(tokens).chunk(3, dim=-1)
    elif own:
        projected = (attn.add_q_proj(tokens), attn.add_k_proj(tokens), attn.add_v_proj(tokens))
    else:
        projected = (attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens))
    # The head width is fixed; the number of heads is the tensor's, which tensor parallelism makes smaller.
    query, key, value = (part.unflatten(-1, (-1, head_dim)) for part in projected)
    norm_query, norm_key = (attn.norm_added_q, attn.norm_added_k) if own else (attn.norm_q, attn.norm_k)
    query = query if norm_query is None else norm_query(query)
    key = key if norm_key is None else norm_key(key)
    return (rotate(query, of), rotate(key, of), value) if rotate else (query, key, value)


def _output(attn: Any, tokens: Tensor, of: Part) -> Tensor:
    """Apply the output projection to one part, (B, S, C)."""
    if of == "text" and getattr(attn, "add_k_proj", None) is not None:
        # SD3's last block does not use the text that it returns.
        return tokens if getattr(attn, "context_pre_only", False) else attn.to_add_out(tokens)
    projected: Tensor = attn.to_out[1](attn.to_out[0](tokens))
    return projected
