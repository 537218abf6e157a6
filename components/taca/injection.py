"""The forward hooks of a transformer with TACA: each call's timestep becomes the adjustment that its layers make."""

import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor

from components.errors import ParameterError
from components.taca.families import Family, named_arguments
from components.taca.guidance import NamedPasses, unconditional_samples
from components.taca.interception import running
from components.taca.placement import Contiguous
from components.taca.processors import Adjustment
from components.taca.replacement import ReplacedProcessors
from components.taca.sampler import LARGEST_SIGMA
from components.taca.schedule import TemperatureSchedule

logger = logging.getLogger(__name__)

_TEXT_MASK = "taca_text_mask"
_UNCONDITIONAL = "taca_unconditional"


class Injection:
    """The forward pre-hook and hook: timestep -> gamma -> the adjustment that is in force while the forward runs.

    config: the transformer's. parameters: the names of the forward's arguments. passes: None unless the schedule leaves out the
    unconditional half.
    """

    def __init__(
        self,
        family: Family,
        config: Any,
        schedule: TemperatureSchedule,
        processors: ReplacedProcessors,
        parameters: tuple[str, ...],
        passes: NamedPasses | None,
    ) -> None:
        self._family, self._config, self._schedule, self._processors = family, config, schedule, processors
        self._parameters, self._passes = parameters, passes
        self._checkpointing: Any = None
        self._warned = False

    def before(
        self, transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The forward pre-hook."""
        family, schedule = self._family, self._schedule
        if not torch.compiler.is_compiling():
            self._processors.check()
        arguments = named_arguments(self._parameters, args, kwargs)
        given: dict[str, Any] = {}
        if family.attention_kwargs is not None and arguments.get(family.attention_kwargs):
            # A copy: the dictionary is the caller's, and usually serves every step.
            attention = dict(arguments[family.attention_kwargs])
            given = {name: attention.pop(name) for name in (_TEXT_MASK, _UNCONDITIONAL) if name in attention}
        sigma = family.sigma(arguments[family.timestep_argument])
        on = _is_on(schedule, sigma)
        if on:
            self.warn_of_feature_cache(transformer)
        if on or any(processor.observer is not None for processor in self._processors.joint):
            adjustment = self._adjustment(arguments, sigma if on else None, given)
            running().adjustment = adjustment
            if torch.is_grad_enabled() and getattr(transformer, "gradient_checkpointing", False):
                self._checkpoint_with(transformer, adjustment)
        if not given:
            return None
        return (), {**arguments, str(family.attention_kwargs): attention}

    def after(self, transformer: Any, args: tuple[Any, ...], output: Any) -> None:
        """The forward hook."""
        running().adjustment = None
        if self._checkpointing is not None:
            transformer._gradient_checkpointing_func, self._checkpointing = self._checkpointing, None

    def warn_of_feature_cache(self, transformer: Any) -> None:
        """Warn, once, if a feature cache of diffusers is enabled and the temperature changes between steps."""
        if self._warned or self._schedule.form == "constant" or torch.compiler.is_compiling():
            return
        # Of diffusers' hooks the caches are those that keep a state; `is_cache_enabled` knows only `enable_cache`.
        registries = (module.__dict__.get("_diffusers_hook") for module in transformer.modules())
        if any(hook._is_stateful for registry in registries if registry for hook in registry.hooks.values()):
            self._warned = True
            logger.warning(
                "TACA: a feature cache is enabled on %s; it may reuse what was computed at another temperature. Enable it "
                "after the active steps, or not at all",
                self._family.transformer,
            )

    def _adjustment(self, arguments: dict[str, Any], sigma: Tensor | None, given: dict[str, Any]) -> Adjustment:
        """Return the adjustment of a forward.

        sigma: None for stock attention, which is only observed. given: the caller's arguments for TACA, by name.
        """
        family, schedule = self._family, self._schedule
        if family.placement is not None:
            if schedule.text_length is not None:
                raise ParameterError(f"TACA: text_length is not supported for {family.transformer}; leave it None")
            placement = family.placement(self._config, arguments, schedule.padding)
            length = placement.text_tokens
        else:
            tokens = family.text_tokens(arguments)
            length = min(tokens, schedule.text_length or tokens)
            start = 0 if family.text_first else -tokens
            stop = start + length + family.prefix_tokens
            placement = Contiguous(slice(start, stop or None))
        return Adjustment(
            gamma=None if sigma is None else self._gamma(arguments, sigma, length, given),
            placement=placement,
            effect=schedule.effect,
            queries=schedule.queries,
            by_sample=family.by_sample,
        )

    def _gamma(self, arguments: dict[str, Any], sigma: Tensor, length: int | None, given: dict[str, Any]) -> Tensor:
        """Return the temperature over text keys: (B, 1, 1, 1), or (B, T, 1, 1) where tokens differ; float32.

        length: the tokens that are text, None where the placement of the family says which are.
        """
        family, schedule = self._family, self._schedule
        gamma = schedule.gamma_at(sigma).view(-1, 1, 1, 1)
        batch = family.samples(arguments)
        if not schedule.unconditional:
            rows = self._unconditional(arguments, batch, gamma.device, given.get(_UNCONDITIONAL))
            gamma = torch.where(rows, torch.ones_like(gamma), gamma)
        if schedule.queries == "text" or length is None:
            return gamma  # over image keys, which have neither padding nor a prefix; or over text keys without either
        if not schedule.padding and not family.masks_padding:
            if family.text_mask is None and _TEXT_MASK not in given:
                way = (
                    f'pass {family.attention_kwargs}={{"{_TEXT_MASK}": ({batch}, {length}) bool}} with each call'
                    if family.attention_kwargs
                    else f"which {family.transformer} cannot be given; use padding=True"
                )
                raise ParameterError(f"TACA: padding=False needs a mask of the text; {way}")
            mask = given[_TEXT_MASK] if _TEXT_MASK in given else arguments.get(family.text_mask or "")
            if mask is not None:  # None, given or passed by the pipeline: nothing is padding
                gamma = torch.where(_words(mask, batch, length, gamma.device), gamma, torch.ones_like(gamma))
        if family.prefix_tokens:
            gamma = gamma.expand(-1, length, -1, -1)
            gamma = torch.cat([torch.ones_like(gamma[:, :1]).expand(-1, family.prefix_tokens, -1, -1), gamma], dim=1)
        return gamma

    def _unconditional(self, arguments: dict[str, Any], batch: int, device: torch.device, given: Any) -> Tensor:
        """Return which samples belong to the unconditional half of guidance: (B, 1, 1, 1) bool.

        given: the argument `taca_unconditional`, if any.
        """
        rows = torch.zeros(batch, dtype=torch.bool, device=device)
        if given is not None:
            given = torch.as_tensor(given, device=device).bool()
            if given.shape not in ((), rows.shape):
                raise ParameterError(
                    f"TACA: {_UNCONDITIONAL} has shape {tuple(given.shape)}; give one bool, or ({batch},)"
                )
            rows |= given
        elif self._passes is not None and self._passes.unconditional is not None:
            rows |= self._passes.unconditional
        elif (found := unconditional_samples(arguments[self._family.text[0]], self._family.negative)) is not None:
            rows[found] = True
        elif not torch.is_grad_enabled():  # training has no two halves
            kwargs = self._family.attention_kwargs
            way = (
                f'pass {kwargs}={{"{_UNCONDITIONAL}": True, False or (batch,) bool}} with each call, or '
                if kwargs
                else ""
            )
            raise ParameterError(
                "TACA: unconditional=False, but this call does not say which samples are unconditional; "
                f"{way}use unconditional=True"
            )
        return rows.view(-1, 1, 1, 1)

    def _checkpoint_with(self, transformer: Any, adjustment: Adjustment) -> None:
        """Bind this forward's adjustment to the blocks that it checkpoints.

        The recomputation then uses the temperature of its own forward, also if others ran in between.
        """
        self._checkpointing = checkpoint = transformer._gradient_checkpointing_func
        transformer._gradient_checkpointing_func = lambda block, *args, **kwargs: checkpoint(
            partial(_run_adjusted, adjustment, block), *args, **kwargs
        )


def _run_adjusted(adjustment: Adjustment, block: Any, *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():  # backward then runs what was traced, and no block again
        return block(*args, **kwargs)
    here = running()
    before, here.adjustment = here.adjustment, adjustment
    try:
        return block(*args, **kwargs)
    finally:
        here.adjustment = before


def _words(mask: Any, batch: int, length: int, device: torch.device) -> Tensor:
    """Return where a mask of text (a tensor, an array or lists; True where there is text) has text: (B, T, 1, 1) bool."""
    mask = torch.as_tensor(mask, device=device)
    if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] < length:
        raise ParameterError(
            f"TACA: {_TEXT_MASK} has shape {tuple(mask.shape)}; give ({batch}, {length}), True where there is text"
        )
    return mask[:, :length].bool().view(batch, length, 1, 1)


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
    if not largest <= LARGEST_SIGMA:
        raise ParameterError(f"TACA: the transformer was called at sigma {largest:g}; a noise level must lie in [0, 1]")
    return bool(schedule.is_active(sigma).any())
