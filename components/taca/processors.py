"""The attention processor that applies the temperature: the stock one, with its attention intercepted."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import Tensor

from components.taca.attention import Attend, adjusted_attention
from components.taca.config import Effect, Queries
from components.taca.interception import intercepted, running
from components.taca.placement import Columns, Placement

Observer = Callable[[str, Tensor, Tensor, Columns, Tensor | None, Tensor | None, float | None], None]
"""(layer, query, key (B, S, H, D), text, gamma or None, mask, scale), called before each joint attention."""


@dataclass(frozen=True)
class Adjustment:
    """The adjustment that one forward makes in every joint attention layer.

    gamma: broadcasts to (B, T, H, 1) over the text keys, float32; None for stock attention. placement: where text is.
    by_sample: whether a layer attends once for each sample, in their order (Mochi).
    """

    gamma: Tensor | None
    placement: Placement
    effect: Effect = "temperature"
    queries: Queries = "image"
    by_sample: bool = False

    def joint_attention(
        self, attend: Attend, query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float | None
    ) -> Tensor:
        """Attend with query (B, R, H, D) over key (B, S, H, D), adjusted."""
        block = self.placement.block(self.queries, query.shape[1], key.shape[1])
        gamma = 1.0 if self.gamma is None else self.gamma.to(key.device)
        return adjusted_attention(attend, query, key, gamma, block, attn_mask=attn_mask, effect=self.effect)


class TemperatureProcessor:
    """The attention of one joint layer. Without an adjustment, or in a layer that is not selected, the original is called.

    Made by `wrapped`. Each class of originals has a subclass, whose `__call__` has the original's signature, since attention
    modules pass only those arguments on that a processor names.
    """

    stock_call: Callable[..., Any]

    def __init__(self, original: Any, layer: str = "", *, selected: bool = True) -> None:
        self.original, self.layer, self.selected = original, layer, selected
        self.observer: Observer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return wrapped, (self.original, self.layer), self.__dict__

    # diffusers configures attention by assigning these on the processor. They live on the original, which computes
    # the steps with TACA off, and which `disable_taca` restores with its present backend. An original without them has
    # no choice of backends.
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

    def _call(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
        here = running()
        taca: Adjustment | None = here.adjustment
        if taca is None or not (self.selected or self.observer is not None):
            return self.original(attn, *args, **kwargs)
        if self.observer is None and not taca.by_sample:
            return self.stock_call(self.original, attn, *args, **kwargs)
        # Written only where it must be: torch.compile does not trace writes in a block that is checkpointed.
        here.layer = _RunningLayer(self, taca)
        try:
            return self.stock_call(self.original, attn, *args, **kwargs)
        finally:
            here.layer = None


class _RunningLayer:
    """One call of a layer that is observed, or that attends once for each sample."""

    def __init__(self, processor: TemperatureProcessor, taca: Adjustment) -> None:
        self.processor = processor
        self.taca = taca if processor.selected else replace(taca, gamma=None)
        self.sample = 0

    def joint_attention(
        self, attend: Attend, query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float | None
    ) -> Tensor:
        """As `Adjustment.joint_attention`."""
        taca, processor = self.taca, self.processor
        if taca.by_sample and taca.gamma is not None and len(taca.gamma) > 1:
            taca = replace(taca, gamma=taca.gamma[self.sample : self.sample + 1])
        self.sample += 1
        seen = taca.placement.block("image", query.shape[1], key.shape[1])
        if processor.observer is not None and seen is not None:
            processor.observer(processor.layer, query, key, seen.columns, taca.gamma, attn_mask, scale)
        return taca.joint_attention(attend, query, key, attn_mask, scale)


def wrapped(original: Any, layer: str = "", *, selected: bool = True) -> TemperatureProcessor:
    """Return the processor that applies the temperature around `original`."""
    stock: Any = type(original)
    return _subclass(stock)(original, layer, selected=selected)


@cache
def _subclass(stock: type[Any]) -> type[TemperatureProcessor]:
    stock_call, name = stock.__call__, stock.__name__

    def call(self: Any, attn: Any, *args: Any, **kwargs: Any) -> Any:
        return TemperatureProcessor._call(self, attn, *args, **kwargs)

    # Not `__signature__`: torch.compile does not read one that exists, if the caller gave a dictionary of arguments for attention.
    call.__wrapped__ = stock_call  # type: ignore[attr-defined]
    members = {"__call__": call, "stock_call": staticmethod(intercepted(stock_call)), "__doc__": None}
    return type(f"Temperature{name}", (TemperatureProcessor,), members)
