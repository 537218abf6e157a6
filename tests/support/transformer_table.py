"""The table of all transformer classes in docs/transformers.md: `python tests/support/transformer_table.py` writes it again.

With each supported class is the largest difference, in float64, between TACA and the stock model with an explicit softmax, of
several models and control arms; it is measured when the table is written, and not compared by the test.
"""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")] if __name__ == "__main__" else []

from components.taca.families import Family  # noqa: E402
from components.taca.registry import FAMILIES  # noqa: E402
from components.taca.transformer_statuses import OTHERS  # noqa: E402

PAGE = ROOT / "docs/transformers.md"
COMMAND = "python tests/support/transformer_table.py"
_BEGIN, _END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def with_table(page: str, places: dict[str, str], measured: dict[str, float] | None = None) -> str:
    """The page with the table of the code in it. places: where text is, by class; measured: differences by class."""
    before, _, rest = page.partition(_BEGIN)
    return before + _BEGIN + _table(places, measured or {}) + _END + rest.partition(_END)[2]


def places_of_text() -> dict[str, str]:
    """Where text is among the keys of each class's joint attention, as an observer of its tiny models sees it."""
    from explicit_softmax import output
    from tiny_transformers import TINY

    from components.taca import observe_attention

    found: dict[str, dict[str, None]] = {}
    for tiny in TINY.values():
        places = found.setdefault(tiny.transformer, {})

        def observer(layer: str, query: Any, key: Any, text: Any, *_: Any, places: dict[str, None] = places) -> None:
            if not isinstance(text, slice):
                places["at places of its own in each sample"] = None
            elif text.start == 0 or text.stop == key.shape[1]:
                places["last" if text.start else "first"] = None
            else:
                places["inside"] = None

        model = tiny.build()
        with observe_attention(model, observer):
            output(model, tiny.inputs(list(tiny.levels)))
    return {name: " or ".join(places) for name, places in found.items()}


def without_measurements(page: str) -> str:
    """The page without the numbers that are measured."""
    return re.sub(r"\| \S+ \|\n", "|\n", page)


def _table(places: dict[str, str], measured: dict[str, float]) -> str:
    lines = ["| class | text and image meet in | text | difference |", "|---|---|---|---|"]
    for name, family in sorted(FAMILIES.items()):
        figure = f"{measured[name]:.0e}" if name in measured else "-"
        lines.append(f"| `{name}` | {_layers(family)} | {_status(family)}; {places[name]} | {figure} |")
    lines += ["", "| other class | TACA |", "|---|---|"]
    lines += [f"| `{name}` | {status}: {reason} |" for name, (status, reason) in sorted(OTHERS.items())]
    return "\n".join(lines) + "\n"


def _layers(family: Family) -> str:
    double = "double" if family.double_until is None else f"double, single from `{family.double_until}` on"
    parts = [f"`{blocks}.*.{family.attention}` ({double})" for blocks in family.double]
    return ", ".join([*parts, *(f"`{blocks}.*.{family.attention}` (single)" for blocks in family.single)])


def _status(family: Family) -> str:
    return "image queries only" if family.image_queries_only else "joint"


def _measure() -> dict[str, float]:
    """The largest difference of each class."""
    import torch
    from explicit_softmax import explicit_attention, float64_throughout, output
    from tiny_transformers import TINY

    from components.taca.install import enable_taca
    from components.taca.schedule import TemperatureSchedule

    found: dict[str, float] = {}
    for tiny in TINY.values():
        model, levels = tiny.build().double(), list(tiny.levels)
        call = tiny.call(levels, torch.float64)
        for arm in ({}, {"effect": "bias"}):
            with float64_throughout():
                with enable_taca(model, TemperatureSchedule(1.5, 0.9, **arm)):
                    got = output(model, call.arguments)
                with explicit_attention(tiny, model, call, [1.5, 1.0][: len(levels)], **arm):
                    difference = (got - output(model, call.arguments)).abs().max().item()
            found[tiny.transformer] = max(difference, found.get(tiny.transformer, 0.0))
    return found


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(), places_of_text(), _measure()))
