"""Putting TACA into a diffusers transformer and taking it out again.

Two things are installed: attention processors in every joint attention layer, and a forward pre-hook on the
transformer that turns this call's timestep into gamma (B, 1, 1, 1) and sends it down as an attention keyword
argument. Pipelines, training loops, two forwards of true classifier-free guidance and gradient checkpointing all go
through that one path; there is nothing to do per step.

The release of the paper finds modules by class name and silently patches none on newer diffusers; here the number of
patched modules is checked against the transformer's config and reported.
"""

import logging
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from components.errors import ParameterError
from components.taca.families import Family, family_of, forward_parameters, named_arguments
from components.taca.processors import StockProcessor
from components.taca.schedule import TemperatureSchedule

logger = logging.getLogger(__name__)

_HANDLE = "_taca_handle"
# Timesteps reach 1 + a rounding error, never 1.01: a larger one is in another unit.
_LARGEST_SIGMA = 1.01


class TacaHandle:
    """TACA as installed in one transformer; a context manager that removes it.

    `patched_modules` counts the attention layers, `schedule` may be replaced, `remove()` restores the original.
    """

    def __init__(self, transformer: nn.Module, family: Family, schedule: TemperatureSchedule) -> None:
        self.transformer = transformer
        self.family = family
        self.schedule = schedule
        self._installed = _install_processors(transformer, family)
        self._hook: RemovableHandle | None = transformer.register_forward_pre_hook(
            _GammaInjection(self, forward_parameters(transformer)), with_kwargs=True
        )

    @property
    def patched_modules(self) -> int:
        """How many attention modules apply the temperature."""
        return sum(not isinstance(processor, StockProcessor) for _, processor in self._installed)

    def check_installed(self) -> None:
        """Raise `ParameterError` if something replaced the processors since (an IP-Adapter does)."""
        for module, processor in self._installed:
            if module.processor is not processor:
                raise ParameterError(
                    f"TACA: attention processors of {self.family.transformer} were replaced by "
                    f"{type(module.processor).__name__} after enable_taca; call disable_taca, and enable_taca last"
                )

    def remove(self) -> None:
        """Put the original processors back, except where something else replaced ours. Safe to call twice."""
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        for module, processor in self._installed:
            if module.processor is processor:
                module.set_processor(processor.original)
        self._installed = []
        if getattr(self.transformer, _HANDLE, None) is self:
            delattr(self.transformer, _HANDLE)

    def __enter__(self) -> "TacaHandle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def enable_taca(transformer: nn.Module, schedule: TemperatureSchedule) -> TacaHandle:
    """Install temperature-adjusted attention into a FLUX or SD3 transformer of diffusers.

    Every joint attention layer (double- and single-stream; never SD3's attn2) uses `schedule`'s gamma for the
    timestep of each sample; the text length is read from each call's input. Weights, LoRA adapters, dtype and device
    are untouched. Enabling again replaces the schedule. For FLUX.1-Kontext, reference-image tokens count as image
    tokens. Install before compiling.

    Raises `ParameterError` for other transformers, fused projections, and attention processors other than the stock
    ones.
    """
    family = family_of(transformer)
    disable_taca(transformer)
    handle = TacaHandle(transformer, family, schedule)
    setattr(transformer, _HANDLE, handle)
    logger.info(
        "TACA: patched %d attention modules of %s, gamma %g at sigma >= %g",
        handle.patched_modules,
        family.transformer,
        schedule.gamma,
        schedule.threshold,
    )
    return handle


def disable_taca(transformer: nn.Module) -> bool:
    """Put the original processors back. Returns whether TACA was installed."""
    handle = taca_handle(transformer)
    if handle is None:
        return False
    handle.remove()
    return True


def taca_handle(transformer: nn.Module) -> TacaHandle | None:
    """The handle of the TACA installed in `transformer`, or None."""
    return transformer.__dict__.get(_HANDLE)


class _GammaInjection:
    """The forward pre-hook: timestep -> gamma -> attention keyword arguments."""

    def __init__(self, handle: TacaHandle, parameters: tuple[str, ...]) -> None:
        self.handle = handle
        self.parameters = parameters

    def __call__(
        self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        handle = self.handle
        if not torch.compiler.is_compiling():
            handle.check_installed()
        arguments = named_arguments(self.parameters, args, kwargs)
        sigma = handle.family.sigma(arguments["timestep"])
        if not _is_on(handle.schedule, sigma):
            return None
        # A copy: the dictionary is the caller's, and usually serves every step.
        attention = dict(arguments.get("joint_attention_kwargs") or {})
        attention["taca_gamma"] = handle.schedule.gamma_at(sigma).view(-1, 1, 1, 1)  # (B, 1, 1, 1) float32
        if handle.family.pass_text_length:
            attention["taca_text_length"] = arguments["encoder_hidden_states"].shape[1]
        arguments["joint_attention_kwargs"] = attention
        return (), arguments


def _is_on(schedule: TemperatureSchedule, sigma: Tensor) -> bool:
    """Whether any sample needs the temperature, where that can be known cheaply; True is always safe.

    Reading a timestep from an accelerator waits for it. Sampling reads: once per step, and steps with TACA off then
    run the stock kernel. Training on an accelerator and compiled models do not: a sample with gamma 1 costs and gives
    the same either way.
    """
    if torch.compiler.is_compiling() or (sigma.device.type != "cpu" and torch.is_grad_enabled()):
        return True
    largest = float(sigma.max())
    if not largest <= _LARGEST_SIGMA:
        raise ParameterError(f"TACA: the transformer was called at sigma {largest:g}; a noise level must lie in [0, 1]")
    return schedule.gamma != 1 and bool(schedule.is_active(sigma).any())


def _install_processors(transformer: Any, family: Family) -> list[tuple[Any, Any]]:
    """Replace the processors of one transformer; all modules are checked before the first is changed."""
    joint: list[Any] = []
    other: list[Any] = []
    for name, module in transformer.named_modules():
        if not hasattr(module, "set_processor"):
            continue
        found = type(module.processor).__name__
        if found != family.stock_processor:
            raise ParameterError(
                f"TACA: {name} of {family.transformer} uses {found}, which TACA would drop (IP-Adapter and fused "
                f"processors are not supported); restore {family.stock_processor} first"
            )
        if getattr(module, "fused_projections", False):
            raise ParameterError(f"TACA: {name} has fused projections; call unfuse_qkv_projections() first")
        (joint if name.rsplit(".", 1)[-1] == family.joint_attention else other).append(module)
    expected = family.layers(transformer.config)
    if len(joint) != expected:
        raise ParameterError(
            f"TACA: found {len(joint)} joint attention modules in {family.transformer}, its config says {expected}; "
            "this version of diffusers is laid out differently"
        )
    installed = [(module, family.processor(module.processor)) for module in joint]
    installed += [(module, StockProcessor(module.processor)) for module in other]
    for module, processor in installed:
        module.set_processor(processor)
    return installed
