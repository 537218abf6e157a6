"""A second implementation of TACA for every transformer: the stock model with its attention as one explicit softmax.

What TACA's families say about a class is stated a second time in a `Tiny`, by hand and in another form: `joint` names the modules
whose softmax holds text and image, and a call's `block` is the matrix of image queries x text keys in them. The tiny models are in
`tiny_transformers`.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

WIDTH = 24  # of the text
HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
Block = Callable[[int, int], Tensor]
"""(number of queries, number of keys) -> bool (B or 1, queries, keys): the image queries x text keys of an attention call."""


@dataclass(frozen=True)
class Call:
    """One call of a tiny model: its arguments, and the block of image queries x text keys in its joint attention.

    Tokens that are not text count as image. reverse: text queries x image keys, where these are not the transpose of `block`.
    """

    arguments: dict[str, Any]
    block: Block
    reverse: Block | None = None


@dataclass(frozen=True)
class Tiny:
    """A transformer class, its smallest useful configuration, a call, and which of its modules are joint.

    - `joint`: a regular expression of their names. `layers`: their number.
    - `one_sample`: joint attention is called for one sample after the other (Mochi).
    - `text_queries`: False where text does not see the drawn image.
    - `levels`: the noise levels of the samples of a call.
    - `prepare`: what is done to the model after it is built, e.g. setting other processors of diffusers.
    """

    transformer: str
    config: dict[str, Any]
    call: Callable[[list[float], torch.dtype], Call]
    layers: int
    joint: str = r"(single_)?transformer_blocks\.\d+\.attn"
    one_sample: bool = False
    text_queries: bool = True
    levels: tuple[float, ...] = (1.0, 0.5)
    prepare: Callable[[Any], None] = field(default=lambda model: None)

    def build(self, seed: int = 0) -> Any:
        """Random weights, large enough that attention is far from uniform; none of them zero, as some are when training begins."""
        cls = getattr(importlib.import_module("diffusers"), self.transformer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = cls(**self.config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.normal_(std=2.0 * parameter[0].numel() ** -0.5)
                    else:
                        parameter.add_(torch.randn_like(parameter), alpha=0.2)
        self.prepare(model)
        return model.eval()

    def inputs(self, sigma: list[float], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """The arguments of one call."""
        return self.call(sigma, dtype).arguments


def text_first(text: int | list[int], image: int) -> Block:
    """Text, then image; with a number for each sample, padding follows the image."""
    lengths = text if isinstance(text, list) else [text]

    def block(queries: int, keys: int) -> Tensor:
        q, k = torch.arange(queries)[:, None], torch.arange(keys)[None]
        return torch.stack([(q >= length) & (q < length + image) & (k < length) for length in lengths])

    return block


def text_last(image: int, text: int | list[int], *, pictures: int = 0) -> Block:
    """Image, then embeddings of a picture, then text; with a number for each sample, padding follows."""
    lengths, start = text if isinstance(text, list) else [text], image + pictures

    def block(queries: int, keys: int) -> Tensor:
        q, k = torch.arange(queries)[:, None], torch.arange(keys)[None]
        return torch.stack([(q < start) & (k >= start) & (k < start + length) for length in lengths])

    return block


@contextmanager
def explicit_attention(tiny: Tiny, model: nn.Module, call: Call, gamma: list[float], **arm: str) -> Iterator[list[int]]:
    """All attention is one softmax over the whole matrix of logits; in joint modules a block of it is changed by each sample's
    gamma: by default, image queries x text keys are multiplied. Yields a list that holds, at the end, a number for each call that
    was changed.

    arm: `effect="bias"` adds log(gamma) instead; `queries="text"` changes text queries x image keys.
    """
    factor = torch.tensor(gamma, dtype=torch.float64).view(-1, 1, 1, 1)
    inside: list[int] = []  # calls of the joint module that is running
    changed: list[int] = []

    def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):  # type: ignore[no-untyped-def]
        logits = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)  # (B, H, Q, K)
        if inside:
            queries, keys = query.shape[2], key.shape[2]
            block = call.block(queries, keys)
            if arm.get("queries") == "text":
                block = call.reverse(queries, keys) if call.reverse else call.block(keys, queries).transpose(-1, -2)
            block = block[:, None]
            sample = slice(inside[0], inside[0] + 1) if tiny.one_sample else slice(None)
            block, scales = (block[sample] if len(block) > 1 else block), factor[sample].to(logits)
            inside[0] += 1
            changed.append(int(block.sum()))
            other = logits + scales.log() if arm.get("effect") == "bias" else logits * scales
            logits = torch.where(block, other, logits)
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        return (
            logits.softmax(-1).nan_to_num(0) @ value
        )  # a row of padding that sees no key: zero, as in PyTorch's kernels

    modules = [module for name, module in model.named_modules() if re.fullmatch(tiny.joint, name)]
    assert len(modules) == tiny.layers
    hooks = [module.register_forward_pre_hook(lambda *_: inside.append(0)) for module in modules]
    hooks += [module.register_forward_hook(lambda *_: inside.clear()) for module in modules]
    try:
        with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attend):
            yield changed
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def float64_throughout() -> Iterator[None]:
    """Switch off the models' own casts to float32, so that two computations in float64 can be compared to its precision."""
    to, to_float, type_as = Tensor.to, Tensor.float, Tensor.type_as

    def wide(tensor: Tensor) -> bool:
        return tensor.dtype in (torch.float64, torch.complex128)

    def kept_to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if (
            wide(self)
            and not isinstance(self, nn.Parameter)
            and (torch.float32 in args or kwargs.get("dtype") == torch.float32)
        ):
            args, kwargs = tuple(arg for arg in args if arg is not torch.float32), {**kwargs}
            kwargs.pop("dtype", None)
            return to(self, *args, **kwargs) if args or kwargs else self
        return to(self, *args, **kwargs)

    with (
        mock.patch.object(Tensor, "to", kept_to),
        mock.patch.object(Tensor, "float", lambda self: self if wide(self) else to_float(self)),
        mock.patch.object(Tensor, "type_as", lambda self, other: self if wide(self) else type_as(self, other)),
    ):
        yield


def output(model: Any, arguments: dict[str, Any]) -> Tensor:
    """The model's prediction, without gradients."""
    with torch.no_grad():
        predicted = model(**arguments, return_dict=False)[0]
    return torch.stack(list(predicted)) if isinstance(predicted, list) else predicted


class Source:
    """Random inputs of one call: the same for the same noise levels."""

    def __init__(self, sigma: list[float], dtype: torch.dtype) -> None:
        self.batch, self.dtype = len(sigma), dtype
        self.sigma = torch.tensor(sigma).to(dtype)
        self._generator = torch.Generator().manual_seed(1)

    def __call__(self, *shape: int) -> Tensor:
        """Standard normal numbers for each sample: (B, *shape)."""
        return torch.randn(self.batch, *shape, generator=self._generator).to(self.dtype)

    def mask(self, length: int, missing: int = 2, dtype: torch.dtype = torch.bool) -> Tensor:
        """(B, length): the last `missing` tokens of the first sample are padding."""
        mask = torch.ones(self.batch, length, dtype=dtype)
        mask[0, length - missing :] = 0
        return mask


def positions(side: int, axes: int = 3) -> Tensor:
    """Positions of a square of image tokens: (side * side, axes), the last two of which are row and column."""
    ids = torch.zeros(side, side, axes)
    ids[..., -2], ids[..., -1] = torch.arange(side)[:, None], torch.arange(side)[None]
    return ids.reshape(side * side, axes)
