"""The attention processors of one transformer, replaced by TACA's and put back."""

from typing import Any

from components.errors import ParameterError
from components.taca.families import Family
from components.taca.processors import TemperatureProcessor, wrapped
from components.taca.schedule import TemperatureSchedule


class ReplacedProcessors:
    """Replaces the processors of a transformer's joint attention. All modules are checked before the first is changed.

    `joint` holds the processors of all joint attention layers, in the order of the forward pass. Raises `ParameterError` for
    processors other than the family's stock ones, a number of layers that is not the config's, and a selection without layers.
    """

    def __init__(self, transformer: Any, family: Family, schedule: TemperatureSchedule) -> None:
        self._family = family
        modules = dict(_joint_modules(transformer, family))
        for name, module in modules.items():
            found = type(module.processor).__name__
            if found not in family.stock_processors:
                raise ParameterError(
                    f"TACA: {name} of {family.transformer} uses {found}, which TACA does not know (IP-Adapter and fused "
                    f"processors are not supported); restore {' or '.join(family.stock_processors)} first"
                )
        selected = _selected(schedule, family, transformer.config, list(modules))
        self.joint = [wrapped(module.processor, name, selected=name in selected) for name, module in modules.items()]
        self._installed: list[tuple[Any, TemperatureProcessor]] = list(zip(modules.values(), self.joint, strict=True))
        for module, processor in self._installed:
            module.processor = processor

    def check(self) -> None:
        """Raise `ParameterError` if something replaced the processors (an IP-Adapter does) or fused projections under a LoRA."""
        for module, processor in self._installed:
            if module.processor is not processor:
                raise ParameterError(
                    f"TACA: attention processors of {self._family.transformer} were replaced by "
                    f"{type(module.processor).__name__} after enable_taca; call disable_taca, and enable_taca last"
                )
            if (
                getattr(module, "fused_projections", False)
                and getattr(module.to_q, "lora_A", None)
                and not module.to_q.merged
            ):
                raise ParameterError(
                    f"TACA: the projections of {self._family.transformer} were fused after a LoRA was loaded, which no longer acts "
                    "on them; call unfuse_qkv_projections() first"
                )

    def restore(self) -> None:
        """Put the original processors back, except where something else replaced ours."""
        for module, processor in self._installed:
            if module.processor is processor:
                module.processor = processor.original
        self._installed, self.joint = [], []


def _joint_modules(transformer: Any, family: Family) -> list[tuple[str, Any]]:
    """Return the joint attention modules by name, in the order of the forward pass."""
    found = []
    for blocks, expected in family.blocks(transformer.config):
        present = dict(transformer.get_submodule(blocks).named_children())
        names = [f"{number}.{family.attention}" for number in list(present)[:expected]]
        modules = [_submodule(transformer.get_submodule(blocks), name) for name in names]
        all_joint = isinstance(family.double.get(blocks, family.single.get(blocks)), str)
        if len(modules) != expected or None in modules or (all_joint and len(present) != expected):
            raise ParameterError(
                f"TACA: found {sum(module is not None for module in modules)} joint attention modules in {blocks} of "
                f"{family.transformer}, its config says {expected}; this version of diffusers is laid out differently"
            )
        found += [(f"{blocks}.{name}", module) for name, module in zip(names, modules, strict=True)]
    return found


def _submodule(blocks: Any, name: str) -> Any:
    """Return a module with an attention processor, by name; None if there is none."""
    for part in name.split("."):
        blocks = getattr(blocks, part, None)
    return blocks if hasattr(blocks, "processor") else None


def _selected(schedule: TemperatureSchedule, family: Family, config: Any, layers: list[str]) -> set[str]:
    """Return the joint attention layers that the schedule acts on, by module name."""
    wanted = range(len(layers)) if schedule.layers is None else schedule.layers
    if max(wanted) >= len(layers):
        raise ParameterError(
            f"TemperatureSchedule layers: {max(wanted)} does not exist, {family.transformer} has {len(layers)} (0 to "
            f"{len(layers) - 1})"
        )
    streams = [family.stream(layer, config) for layer in layers]
    chosen = {layers[index] for index in wanted if streams[index] in schedule.streams}
    if not chosen:
        present = " and ".join(f"{streams.count(stream)} {stream}" for stream in dict.fromkeys(streams))
        raise ParameterError(
            f"TemperatureSchedule streams = {list(schedule.streams)}, layers = {schedule.layers}: no layer of "
            f"{family.transformer} is in both; its layers, in order, are {present}"
        )
    return chosen
