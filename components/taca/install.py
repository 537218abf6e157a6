"""Install TACA in a diffusers transformer, and remove it.

Two things are installed: attention processors in every joint attention layer (`replacement.py`), and forward hooks on the
transformer (`injection.py`) that turn each call's timestep into the adjustment of those layers. Pipelines, training loops,
the two forwards of classifier-free guidance and gradient checkpointing all use that one path; nothing is done per step.

The release of the paper finds modules by class name and silently patches none on newer diffusers; here the number of
patched modules is checked against the transformer's config and reported.
"""

import logging
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from components.errors import ParameterError
from components.taca.families import Family, forward_parameters
from components.taca.guidance import NamedPasses
from components.taca.injection import Injection
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

    def __init__(self, transformer: nn.Module, family: Family, schedule: TemperatureSchedule) -> None:
        self.transformer, self.family, self.schedule = transformer, family, schedule
        if family.image_queries_only and schedule.queries == "text":
            raise ParameterError(
                f"TACA: queries = text has no meaning in {family.transformer}, whose text does not see the image"
            )
        self._processors = ReplacedProcessors(transformer, family, schedule)
        self._passes = NamedPasses.install(transformer) if not schedule.unconditional else None
        parameters = forward_parameters(transformer)
        injection = Injection(family, transformer.config, schedule, self._processors, parameters, self._passes)
        injection.warn_of_feature_cache(transformer)
        self._hooks: list[RemovableHandle] = [
            transformer.register_forward_pre_hook(injection.before, with_kwargs=True),
            transformer.register_forward_hook(injection.after, always_call=True),
        ]

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
    as image tokens. Compile before or after. Every pipeline with this transformer draws with TACA, those of `from_pipe` included.
    Warns, also later, if a feature cache of diffusers (first-block cache, ...) is enabled, which reuses results across the
    threshold.

    Raises `ParameterError` for other transformers, layers that are not there, and attention processors other than the stock ones.
    """
    transformer = transformer_of(transformer)
    family = family_of(transformer)
    disable_taca(transformer)
    handle = TacaHandle(transformer, family, schedule)
    setattr(transformer, _HANDLE, handle)
    logger.info(
        "TACA: patched %d attention modules of %s, gamma %g at sigma >= %g",
        handle.patched_modules,
        family.transformer,
        schedule.gamma,
        schedule.active_from,
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
    return transformer_of(transformer).__dict__.get(_HANDLE)


def transformer_of(pipe_or_transformer: Any) -> Any:
    """Return a pipeline's transformer, or the one given, without the wrapper of `torch.compile`."""
    found = pipe_or_transformer
    if not isinstance(found, nn.Module):
        found = getattr(found, "transformer", None)
        if found is None:
            raise ParameterError(f"TACA: {type(pipe_or_transformer).__name__} has no transformer")
    return getattr(found, "_orig_mod", found)
