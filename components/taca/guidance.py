"""Which samples of a transformer's forward belong to the unconditional half of classifier-free guidance.

The call that is running says so, in one of three ways, tried in this order:

- an attention argument `taca_unconditional`: a bool, or bool (B,);
- the name that it gives to its forward with diffusers' `cache_context`: "cond" or "uncond";
- the text of its negative prompt, which nearly every pipeline of diffusers holds in a variable `negative_prompt_embeds`, and every
  modular one in its block state: samples with that text are unconditional. The variable is found among those of the functions
  that are being called, as a profiler finds them; it is that of the running pipeline whichever shares the transformer.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

Text = Tensor | list[Tensor]

_PASSES = "cache_context"
_NAMES = {"cond": False, "pred_cond": False, "uncond": True, "pred_uncond": True}
NEGATIVE, _POSITIVE = "negative_prompt_embeds", "prompt_embeds"
_PIPELINES = ("diffusers.pipelines.", "diffusers.modular_pipelines.")
_NOTHING, _ALL = slice(0), slice(None)


class NamedPasses:
    """Replaces a transformer's `cache_context`, by which pipelines name the half of guidance that a forward computes."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.unconditional: bool | None = None
        """Whether the forward that is running is the unconditional one; None if it has no name, or its name does not say."""

    @classmethod
    def install(cls, transformer: nn.Module) -> "NamedPasses | None":
        """Install it in a transformer; None for one without named passes."""
        if not hasattr(transformer, _PASSES):
            return None
        passes = cls(getattr(type(transformer), _PASSES))
        transformer.__dict__[_PASSES] = partial(passes, transformer)
        return passes

    def remove(self, transformer: nn.Module) -> None:
        """Put the original back."""
        transformer.__dict__.pop(_PASSES, None)

    @contextmanager
    def __call__(self, transformer: nn.Module, name: str, **where: Any) -> Iterator[None]:
        before, self.unconditional = self.unconditional, _NAMES.get(name)
        try:
            with self.original(transformer, name, **where):
                yield
        finally:
            self.unconditional = before


@torch.compiler.disable(reason="TACA with unconditional=False looks for the negative prompt of the running pipeline")
def unconditional_samples(text: Text, negative: str = NEGATIVE) -> slice | None:
    """Return which samples of the text (B, T, C), or list of (T, C), have the negative prompt of the pipeline call that is running.

    negative: the variable that holds that prompt, or the number of unconditional blocks behind the first one of the batch. None if
    no function that is being called is a pipeline, or where it is not clear which samples those are.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        variables = frame.f_locals
        for holder in (variables, vars(variables["block_state"]) if "block_state" in variables else {}):
            if negative in holder:
                return _with_text(text, holder[negative], holder.get(_POSITIVE))
        if frame.f_code.co_name == "__call__" and frame.f_globals.get("__name__", "").startswith(_PIPELINES):
            # A pipeline of diffusers without a negative prompt (FLUX Fill, Control) guides by an input of the model.
            guides = getattr(variables.get("self"), "do_classifier_free_guidance", False)
            return None if guides else _NOTHING
        frame = frame.f_back
    return None


def _with_text(text: Text, negative: Any, positive: Any) -> slice | None:
    """Return the samples whose text is the negative prompt, which may be one block of a batch with both prompts."""
    if negative is None:
        return _NOTHING
    if isinstance(negative, int):
        return slice(len(text) // (negative + 1), None)
    if text is negative:
        return _ALL
    samples = len(negative)
    if samples == 0 or (text is positive and len(text) == samples):
        return _NOTHING  # also if both prompts are the same words
    if isinstance(negative, Tensor) and isinstance(text, Tensor) and text.shape[2:] != negative.shape[2:]:
        return _NOTHING if len(text) == samples else None
    for start in range(0, len(text) - samples + 1, samples):
        if all(_begins_with(text[start + i], negative[i]) for i in range(samples)):
            return slice(start, start + samples)
    return _NOTHING if len(text) == samples else None


def _begins_with(text: Tensor, prompt: Tensor) -> bool:
    """Whether a sample's text is a prompt's, but for padding behind it."""
    length = len(prompt)
    return length <= len(text) and torch.equal(text[:length], prompt.to(text)) and not text[length:].any()
