"""The supported transformer families and pipelines, by class name; `transformer_statuses.py` names all other classes."""

from typing import Any

from torch import nn

from components.errors import ParameterError
from components.taca.families import Conventions, Family
from components.taca.models import (
    auraflow,
    bria,
    chroma,
    cogvideox,
    cogview3_plus,
    cogview4,
    consisid,
    easyanimate,
    ernie_image,
    flux,
    flux2,
    flux3,
    glm_image,
    hidream,
    hunyuan_video,
    ideogram4,
    joyimage,
    krea2,
    longcat_image,
    lumina2,
    mochi,
    motif_video,
    nucleusmoe_image,
    omnigen,
    ovis_image,
    prx,
    qwen_image,
    qwen_image21,
    sd3,
    z_image,
)
from components.taca.transformer_statuses import OTHERS

# Imported by name, since the sources of a stage are found by reading import statements.
_MODULES = (
    flux,
    sd3,
    chroma,
    qwen_image,
    auraflow,
    bria,
    cogvideox,
    cogview3_plus,
    cogview4,
    consisid,
    easyanimate,
    ernie_image,
    flux2,
    flux3,
    glm_image,
    hidream,
    hunyuan_video,
    ideogram4,
    joyimage,
    krea2,
    longcat_image,
    lumina2,
    mochi,
    motif_video,
    nucleusmoe_image,
    omnigen,
    ovis_image,
    prx,
    qwen_image21,
    z_image,
)
_FAMILIES = [value for module in _MODULES for value in vars(module).values() if isinstance(value, Family)]
FAMILIES: dict[str, Family] = {family.transformer: family for family in _FAMILIES}
_NAMED = [value for module in _MODULES for value in vars(module).values() if isinstance(value, Conventions)]
_CONVENTIONS = (*(family.conventions for family in _FAMILIES if family.conventions), *_NAMED)
CONVENTIONS: dict[str, Conventions] = {conventions.pipeline: conventions for conventions in _CONVENTIONS}


def register_family(family: Family) -> None:
    """Add another transformer class, and its pipeline if it has one; those of the same names are replaced."""
    FAMILIES[family.transformer] = family
    if family.conventions:
        CONVENTIONS[family.conventions.pipeline] = family.conventions


def family_of(transformer: nn.Module) -> Family:
    """The family a transformer belongs to, by its class or a base class. `ParameterError` for any other module."""
    for cls in type(transformer).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
        if cls.__name__ in OTHERS:
            status, reason = OTHERS[cls.__name__]
            if status == "not supported":
                raise ParameterError(f"TACA does not support {cls.__name__}: {reason}")
            raise ParameterError(
                f"TACA has no meaning for {cls.__name__}: {reason}, and TACA balances text against image inside one joint softmax"
            )
    name = type(transformer).__name__
    wrapped = any(hasattr(transformer, attribute) for attribute in ("_orig_mod", "module", "base_model"))
    hint = "; pass the transformer itself, before compiling or wrapping it" if wrapped else "; see register_family"
    raise ParameterError(f"TACA does not support {name}; supported are {', '.join(FAMILIES)}{hint}")


def conventions_of(pipe: Any) -> Conventions:
    """The conventions of a pipeline, by its class or a base class, else those of its transformer's family (FLUX.1 Fill, and classes
    that start from a picture). `ParameterError` for any other."""
    for cls in type(pipe).__mro__:
        if cls.__name__ in CONVENTIONS:
            return CONVENTIONS[cls.__name__]
    for cls in type(getattr(pipe, "transformer", None)).__mro__:
        if cls.__name__ in FAMILIES and (found := FAMILIES[cls.__name__].conventions):
            return found
    raise ParameterError(f"{type(pipe).__name__}: not supported; supported are {', '.join(CONVENTIONS)}")
