"""Jinja's environment for the pages, and how they write numbers, differences and pictures."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipelines.reporting import charts

TEMPLATES = Path(__file__).parent / "templates"
ARM_NAMES = {
    "base": "base",
    "lora": "LoRA, γ = 1",
    "taca": "TACA",
    "taca_lora": "TACA + LoRA",
    "gadms": "GA-DMS",
    "random": "random masking",
    "unmasked": "nothing masked",
    "contrastive": "contrastive",
    "sdm": "SDM",
    "nam": "NAM",
    "irra": "IRRA",
}


def environment(figures: Path) -> Environment:
    """Jinja with the filters of the templates; `picture` reads from the folder `figures`. A missing name is an error."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "signed": signed,
        "duration": duration,
        "words": lambda name: str(name).replace("_", " "),
        "arm": lambda name: ARM_NAMES.get(name, name),
        "picture": lambda name: data_uri((figures / name).read_bytes()),
        "shades": shades,
        "certain": certain,
        "code": code,
    }
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    made.globals |= {"interval_bar": charts.interval_bar, "style": style}
    return made


def number(value: Any) -> str:
    """A number with three digits or its integer part; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(int(value))
    if abs(value) < 1e-3:
        return "< 0.001" if value > 0 else "> −0.001"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def signed(value: float) -> str:
    """A difference with one decimal and its sign; what rounds to zero has none."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and seconds; a dash for None."""
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def certain(interval: Mapping[str, float]) -> str:
    """The CSS class of a difference: better or worse where its interval excludes 0."""
    return "better" if interval["low"] > 0 else "worse" if interval["high"] < 0 else "even"


def code(text: str) -> Markup:
    """A text with the words between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def shades(words: Sequence[Mapping[str, Any]], scores: Sequence[float | None]) -> list[dict[str, Any]]:
    """The words of a caption with their scores; "shade" is the score scaled to 0 (minimum of the caption) to 1."""
    values = [score or 0.0 for score in scores]
    low, high = min(values), max(values)
    scaled = [(value - low) / (high - low or 1) for value in values]
    return [{**word, "score": value, "shade": shade} for word, value, shade in zip(words, values, scaled, strict=True)]


def data_uri(png: bytes) -> str:
    """A PNG as the address of an `img` element, so that a page is one file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
