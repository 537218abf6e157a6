"""The attention processors of one transformer, replaced by TACA's and put back."""

from typing import Any

from components.errors import ParameterError
from components.taca.families import Family
from components.taca.processors import StockProcessor, TemperatureProcessor
from components.taca.schedule import TemperatureSchedule


class ReplacedProcessors:
    """Replaces the processors of a transformer. All modules are checked before the first is changed.

    `joint` holds the processors of all joint attention layers, in the order of the forward pass. Raises `ParameterError` for
    processors other than the family's stock ones, a number of layers that is not the config's, and a selection without layers.
    """

    def __init__(self, transformer: Any, family: Family, schedule: TemperatureSchedule) -> None:
        self._family = family
        joint: list[tuple[str, Any]] = []
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
            if name.rsplit(".", 1)[-1] == family.joint_attention:
                joint.append((name, module))
            else:
                other.append(module)
        expected = family.joint_layers(transformer.config)
        if len(joint) != expected:
            raise ParameterError(
                f"TACA: found {len(joint)} joint attention modules in {family.transformer}, its config says {expected}; "
                "this version of diffusers is laid out differently"
            )
        selected = _selected(schedule, family, [name for name, _ in joint])
        self.joint: list[TemperatureProcessor] = [
            family.processor(module.processor, name, selected=name in selected) for name, module in joint
        ]
        modules = [module for _, module in joint]
        self._installed: list[tuple[Any, TemperatureProcessor | StockProcessor]] = [
            *zip(modules, self.joint, strict=True),
            *((module, StockProcessor(module.processor)) for module in other),
        ]
        for module, processor in self._installed:
            module.set_processor(processor)

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
                module.set_processor(processor.original)
        self._installed, self.joint = [], []


def _selected(schedule: TemperatureSchedule, family: Family, layers: list[str]) -> set[str]:
    """Return the joint attention layers that the schedule acts on, by module name."""
    wanted = range(len(layers)) if schedule.layers is None else schedule.layers
    if max(wanted) >= len(layers):
        raise ParameterError(
            f"TemperatureSchedule layers: {max(wanted)} does not exist, {family.transformer} has {len(layers)} (0 to "
            f"{len(layers) - 1})"
        )
    chosen = {layers[index] for index in wanted if family.stream(layers[index]) in schedule.streams}
    if not chosen:
        raise ParameterError(
            f"TemperatureSchedule streams = {list(schedule.streams)}, layers = {schedule.layers}: no layer of "
            f"{family.transformer} is in both"
        )
    return chosen
