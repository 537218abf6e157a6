"""The settings of TACA, before they meet a model."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from components.errors import ParameterError
from components.settings import AboveZero, Count, FromList, settings
from components.taca.transfer import resolve_threshold

Form = Literal["piecewise", "constant", "linear", "cosine"]
Effect = Literal["temperature", "bias"]
Queries = Literal["image", "text"]
Stream = Literal["double", "single"]


def _resolvable(threshold: Any) -> Any:
    """Refuse a threshold that means no sigma."""
    try:
        resolve_threshold(threshold, tokens=1, levels=lambda steps, shift: [1.0])
    except ParameterError as error:
        raise ValueError(str(error).rsplit(": ", 1)[-1]) from error
    return threshold


Resolvable = BeforeValidator(_resolvable)


@settings
class TacaConfig:
    """Temperature-adjusted attention: when it is on, how strong, and where. See `TemperatureSchedule`.

    `threshold` is a sigma, or a rule that follows the model and its sampler: {sigma, tokens}, {sigma, shift}, {fraction} or
    {fraction, steps}.
    """

    gamma: AboveZero = 1.2
    threshold: Annotated[float | dict[str, float], Resolvable] = 0.97
    form: Form = "piecewise"
    streams: Annotated[tuple[Stream, ...], FromList, Field(min_length=1)] = ("double", "single")
    layers: Annotated[tuple[Count, ...], FromList, Field(min_length=1)] | None = None
    padding: bool = True
    unconditional: bool = True
    effect: Effect = "temperature"
    queries: Queries = "image"
