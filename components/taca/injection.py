"""The forward pre-hook of a transformer with TACA: each call's timestep becomes the adjustment that its layers are given."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from components.errors import ParameterError
from components.taca.families import Family, named_arguments
from components.taca.processors import Adjustment
from components.taca.replacement import ReplacedProcessors
from components.taca.schedule import TemperatureSchedule

# Timesteps reach 1 + a rounding error, never 1.01: a larger one is in another unit.
_LARGEST_SIGMA = 1.01
_TEXT_MASK = "taca_text_mask"
_PASSES = "cache_context"


class Injection:
    """The forward pre-hook: timestep -> gamma -> attention keyword argument `taca`.

    parameters: the names of the forward's arguments. passes: None unless the schedule leaves out the unconditional half.
    """

    def __init__(
        self,
        family: Family,
        schedule: TemperatureSchedule,
        processors: ReplacedProcessors,
        parameters: tuple[str, ...],
        passes: "NamedPasses | None",
        pipe: "weakref.ref[Any] | None",
    ) -> None:
        self._family, self._schedule, self._processors = family, schedule, processors
        self._parameters, self._passes, self._pipe = parameters, passes, pipe
        self._checkpointing: Any = None

    def __call__(
        self, transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        family, schedule = self._family, self._schedule
        if not torch.compiler.is_compiling():
            self._processors.check()
        arguments = named_arguments(self._parameters, args, kwargs)
        # A copy: the dictionary is the caller's, and usually serves every step.
        attention = dict(arguments.get(family.attention_kwargs) or {})
        given_mask = attention.pop(_TEXT_MASK, None)
        sigma = family.sigma(arguments["timestep"])
        on = _is_on(schedule, sigma)
        observed = any(processor.observer is not None for processor in self._processors.joint)
        if on or observed:
            text = arguments["encoder_hidden_states"]
            attention["taca"] = Adjustment(
                gamma=self._gamma(arguments, sigma, given_mask) if on else None,
                text_length=text.shape[1] + family.prefix_tokens,
                effect=schedule.effect,
                queries=schedule.queries,
            )
        elif given_mask is None:
            return None
        arguments[family.attention_kwargs] = attention
        if family.checkpointed_kwargs and torch.is_grad_enabled() and transformer.gradient_checkpointing:
            self._checkpoint_with(transformer, {family.checkpointed_kwargs: attention})
        return (), arguments

    def after(self, transformer: Any, args: tuple[Any, ...], output: Any) -> None:
        """The forward hook: undo what `_checkpoint_with` did for this forward."""
        if self._checkpointing is not None:
            transformer._gradient_checkpointing_func, self._checkpointing = self._checkpointing, None

    def _gamma(self, arguments: dict[str, Any], sigma: Tensor, given_mask: Tensor | None) -> Tensor:
        """Return the temperature over text keys: (B, 1, 1, 1), or (B, T, 1, 1) where tokens differ; float32."""
        family, schedule = self._family, self._schedule
        gamma = schedule.gamma_at(sigma).view(-1, 1, 1, 1)
        if not schedule.unconditional:
            gamma = torch.where(self._unconditional(arguments, gamma), torch.ones_like(gamma), gamma)
        if schedule.queries == "text":
            return gamma  # over image keys, which have neither padding nor a prefix
        batch, length = arguments["encoder_hidden_states"].shape[:2]
        if not schedule.padding:
            mask = given_mask if given_mask is not None else arguments.get(family.text_mask or "")
            if mask is None:
                raise ParameterError(
                    f"TACA: padding=False needs a mask of the text; pass {family.attention_kwargs}="
                    f'{{"{_TEXT_MASK}": (batch, {length}) bool}} with each call'
                )
            if mask.shape[0] != batch or mask.shape[1] < length:
                raise ParameterError(
                    f"TACA: {_TEXT_MASK} has shape {tuple(mask.shape)}; give ({batch}, {length}), True where there is text"
                )
            words = mask[:, :length].bool().view(batch, length, 1, 1)
            gamma = torch.where(words, gamma, torch.ones_like(gamma))  # (B, T, 1, 1)
        if family.prefix_tokens:
            gamma = gamma.expand(-1, length, -1, -1)
            gamma = torch.cat([torch.ones_like(gamma[:, :1]).expand(-1, family.prefix_tokens, -1, -1), gamma], dim=1)
        return gamma

    def _unconditional(self, arguments: dict[str, Any], gamma: Tensor) -> Tensor:
        """Return which samples belong to the unconditional half of guidance: (B, 1, 1, 1) bool."""
        batch = arguments["encoder_hidden_states"].shape[0]
        rows = torch.zeros(batch, 1, 1, 1, dtype=torch.bool, device=gamma.device)
        if self._family.guidance_halves == "batch":
            # SD3's skip-layer guidance makes one more forward, of the conditional half alone.
            both = _guides(self._pipe and self._pipe()) and arguments.get("skip_layers") is None
            rows[: batch // 2 if both and not torch.is_grad_enabled() else 0] = True
        elif self._passes is not None and self._passes.current is not None:
            rows[:] = self._passes.current == "uncond"
        elif not torch.is_grad_enabled():
            raise ParameterError(
                "TACA: unconditional=False, but this pipeline does not name its unconditional forward; wrap "
                'its calls in transformer.cache_context("cond") and ("uncond"), or use unconditional=True'
            )
        return rows

    def _checkpoint_with(self, transformer: Any, arguments: dict[str, Any]) -> None:
        """Bind the arguments that this transformer's own checkpointing leaves out to the blocks of this forward.

        The recomputation then uses the temperature of its own forward, also if others ran in between.
        """
        self._checkpointing = checkpoint = transformer._gradient_checkpointing_func
        transformer._gradient_checkpointing_func = lambda block, *args: checkpoint(partial(block, **arguments), *args)


class NamedPasses:
    """Replaces a transformer's `cache_context`, by which pipelines name the half of guidance that a forward computes."""

    def __init__(self, original: Any) -> None:
        self.original = original
        self.current: str | None = None

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
        before, self.current = self.current, name
        try:
            with self.original(transformer, name, **where):
                yield
        finally:
            self.current = before


def _guides(pipe: Any) -> bool:
    """Whether the current call of a pipeline runs classifier-free guidance."""
    return float(getattr(pipe, "_guidance_scale", 1.0) or 1.0) > 1


def _is_on(schedule: TemperatureSchedule, sigma: Tensor) -> bool:
    """Whether any sample needs the temperature, where that is cheap to find out; True is always safe.

    Reading a timestep from an accelerator waits for it. Sampling reads: once per step, and steps with TACA off then run the stock
    kernel. Training on an accelerator and compiled models do not: a sample with gamma 1 costs and gives the same either way.
    """
    if schedule.gamma == 1:
        return False
    if torch.compiler.is_compiling() or (sigma.device.type != "cpu" and torch.is_grad_enabled()):
        return True
    largest = float(sigma.max())
    if not largest <= _LARGEST_SIGMA:
        raise ParameterError(f"TACA: the transformer was called at sigma {largest:g}; a noise level must lie in [0, 1]")
    return bool(schedule.is_active(sigma).any())
