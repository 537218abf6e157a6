"""Install TACA in a diffusers transformer, and remove it.

Two things are installed: attention processors in every joint attention layer (`replacement.py`), and a forward pre-hook on the
transformer (`injection.py`) that turns each call's timestep into the arguments of those processors. Pipelines, training loops,
the two forwards of classifier-free guidance and gradient checkpointing all use that one path; nothing is done per step.

The release of the paper finds modules by class name and silently patches none on newer diffusers; here the number of
patched modules is checked against the transformer's config and reported.
"""

import logging
import weakref
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from components.errors import ParameterError
from components.taca.families import Family, forward_parameters
from components.taca.injection import Injection, NamedPasses
from components.taca.processors import TemperatureProcessor
from components.taca.registry import family_of
from components.taca.replacement import ReplacedProcessors
from components.taca.schedule import TemperatureSchedule

logger = logging.getLogger(__name__)

_HANDLE = "_taca_handle"


class TacaHandle:
    """TACA as installed in one transformer; as a context manager, removes it at the end.

    `patched_modules` counts the attention layers it acts on, `schedule` is the one in use, `remove()` restores the original.
    """

    def __init__(self, transformer: nn.Module, family: Family, schedule: TemperatureSchedule, pipe: Any = None) -> None:
        self.transformer, self.family, self.schedule = transformer, family, schedule
        self._pipe = weakref.ref(pipe) if pipe is not None else None  # weak: copying the transformer copies no pipeline
        self._processors = ReplacedProcessors(transformer, family, schedule)
        self._passes = NamedPasses.install(transformer) if not schedule.unconditional else None
        parameters = forward_parameters(transformer)
        injection = Injection(family, schedule, self._processors, parameters, self._passes, self._pipe)
        self._hooks: list[RemovableHandle] = [transformer.register_forward_pre_hook(injection, with_kwargs=True)]
        if family.checkpointed_kwargs:
            self._hooks.append(transformer.register_forward_hook(injection.after, always_call=True))

    @property
    def pipe(self) -> Any:
        """The pipeline given to `enable_taca`, if any."""
        return self._pipe() if self._pipe is not None else None

    @property
    def joint_processors(self) -> list[TemperatureProcessor]:
        """The processors of all joint attention layers, in the order of the forward pass."""
        return self._processors.joint

    @property
    def patched_modules(self) -> int:
        """The number of attention modules that apply the temperature."""
        return sum(processor.selected for processor in self.joint_processors)

    def remove(self) -> None:
        """Put the original processors back, except where something else replaced ours. Safe to call twice."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._passes is not None:
            self._passes.remove(self.transformer)
        self._processors.restore()
        if getattr(self.transformer, _HANDLE, None) is self:
            delattr(self.transformer, _HANDLE)

    def __enter__(self) -> "TacaHandle":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def enable_taca(transformer: Any, schedule: TemperatureSchedule) -> TacaHandle:
    """Install temperature-adjusted attention into a diffusers transformer, or the one of a pipeline.

    Every joint attention layer that the schedule selects (double- and single-stream; never SD3's attn2) uses the gamma of
    each sample's timestep; the text length is read from each call's input. Weights, LoRA adapters, dtype and device
    are untouched. Enabling again replaces the schedule. Reference-image tokens (FLUX.1-Kontext, Qwen-Image-Edit) count
    as image tokens. Install before compiling. Warns if a feature cache
    of diffusers (first-block cache, ...) is enabled, which reuses results across the threshold.

    `unconditional=False` needs the pipeline for models that run both halves of guidance in one batch (SD3, AuraFlow): only it
    says whether there are two.

    Raises `ParameterError` for other transformers, layers that are not there, and attention processors other than the stock ones.
    """
    pipe = None if isinstance(transformer, nn.Module) else transformer
    if pipe is not None:
        transformer = getattr(pipe, "transformer", None)
        if transformer is None:
            raise ParameterError(f"TACA: {type(pipe).__name__} has no transformer")
    family = family_of(transformer)
    if not schedule.unconditional and family.guidance_halves == "batch" and pipe is None:
        raise ParameterError(
            f"TACA: unconditional=False on {family.transformer} needs the pipeline, enable_taca(pipe, ...): both halves "
            "of guidance run in one batch"
        )
    disable_taca(transformer)
    handle = TacaHandle(transformer, family, schedule, pipe)
    setattr(transformer, _HANDLE, handle)
    logger.info(
        "TACA: patched %d attention modules of %s, gamma %g at sigma >= %g",
        handle.patched_modules,
        family.transformer,
        schedule.gamma,
        schedule.active_from,
    )
    if getattr(transformer, "is_cache_enabled", False) and schedule.form != "constant":
        logger.warning(
            "TACA: a feature cache is enabled on %s; it may reuse what was computed at another temperature. Enable it after "
            "the active steps, or not at all",
            family.transformer,
        )
    return handle


def disable_taca(transformer: Any) -> bool:
    """Put the original processors back. Returns whether TACA was installed."""
    handle = taca_handle(transformer)
    if handle is None:
        return False
    handle.remove()
    return True


def taca_handle(transformer: Any) -> TacaHandle | None:
    """Return the handle of TACA in a transformer, or in that of a pipeline; None if it is not installed."""
    if not isinstance(transformer, nn.Module):
        transformer = transformer.transformer
    return transformer.__dict__.get(_HANDLE)
