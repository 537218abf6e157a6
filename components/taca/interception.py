"""Run the code of a stock attention processor with its call of attention replaced, and nothing else.

Stock processors end in one of two functions: diffusers' `dispatch_attention_fn`, or PyTorch's `F.scaled_dot_product_attention`.
`intercepted` copies a processor's `__call__` with a global namespace of its own, in which both names lead here; no module of
diffusers or PyTorch is changed. So queries, keys and values arrive as stock attention gets them, after projection, normalisation
and rotation, whatever the family does before and after.

What a call needs to know is dynamically scoped, per thread: the adjustment of the transformer's forward (or, while gradient
checkpointing computes a block again, that of the block's own forward) and, where layers must be told apart, the running one.
`torch.compile` traces this as it traces an attribute of an object; it follows writes to an object in thread-local storage, and
not those to the storage itself.
"""

import threading
import types
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from components.errors import ParameterError
from components.taca.attention import Attend, refuse_parallel


class Attention(Protocol):
    """What takes the place of a stock attention."""

    def joint_attention(
        self, attend: Attend, query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float | None
    ) -> Tensor:
        """Attend with query (B, R, H, D) over key (B, S, H, D); `attend` is the stock attention."""


class Running:
    """What is running in one thread: the adjustment of a transformer's forward, and a layer that is to be told apart."""

    def __init__(self) -> None:
        self.adjustment: Any = None
        self.layer: Attention | None = None


class _Threads(threading.local):
    def __init__(self) -> None:
        self.running = Running()


_THREADS = _Threads()


def running() -> Running:
    """Return what is running in this thread."""
    return _THREADS.running


@cache
def intercepted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a copy of a processor's `__call__` whose attention is that of the running layer.

    One copy per function, as `torch.compile` tells functions apart by their code alone.
    """
    namespace = dict(function.__globals__)
    # torch.compile looks up globals in the module of this name, unless there is none.
    namespace.pop("__name__", None)
    replaced = {"dispatch_attention_fn": _dispatch_attention_fn, "F": _FUNCTIONAL}
    namespace |= {name: ours for name, ours in replaced.items() if name in namespace}
    for name, value in function.__globals__.items():
        # Helpers of the same module that attend (FLUX.2 with cached references).
        here = isinstance(value, types.FunctionType) and value.__globals__ is function.__globals__
        if here and "dispatch_attention_fn" in value.__code__.co_names:
            namespace[name] = _copy(value, namespace)
    return _copy(function, namespace)


def _copy(function: Any, namespace: dict[str, Any]) -> Callable[..., Any]:
    copied = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _dispatch_attention_fn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> Tensor:
    """Take the place of `dispatch_attention_fn`: query, key, value are (B, S, H, D)."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    refuse_parallel(parallel_config)

    def attend(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        return dispatch_attention_fn(
            q,
            k,
            value,
            attn_mask=mask,
            dropout_p=dropout_p,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            attention_kwargs=attention_kwargs,
            backend=backend,
        )

    return _attend(attend, query, key, attn_mask, scale, is_causal)


def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Take the place of PyTorch's function: query, key, value are (B, H, S, D)."""
    options: dict[str, Any] = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}

    def attend(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, value, attn_mask=mask, **options).transpose(1, 2)

    query, key = query.transpose(1, 2), key.transpose(1, 2)
    return _attend(attend, query, key, attn_mask, scale, is_causal).transpose(1, 2)


def _attend(
    attend: Attend, query: Tensor, key: Tensor, attn_mask: Tensor | None, scale: float | None, is_causal: bool
) -> Tensor:
    here = _THREADS.running
    attention: Attention | None = here.adjustment if here.layer is None else here.layer
    if attention is None:
        return attend(query, key, attn_mask)
    if is_causal:
        raise ParameterError("TACA: an attention that is causal by a flag has no queries that can be computed apart")
    return attention.joint_attention(attend, query, key, attn_mask, scale)


_FUNCTIONAL = types.ModuleType("functional_with_intercepted_attention")
_FUNCTIONAL.__dict__.update({name: value for name, value in vars(F).items() if not name.startswith("__")})
_FUNCTIONAL.scaled_dot_product_attention = _scaled_dot_product_attention  # type: ignore[attr-defined]
