"""`python -m pipelines doctor`: check that everything that a run needs is present, and how to get what is not.

A check returns findings; CHECKS names the checks, and `--<name>` runs one alone. A new check is a function and a line there.
Nothing is written or downloaded.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.markup import escape
from rich.table import Column, Table

from components.errors import DataError
from components.persons.published.inventory import Inventory, count_differences, take_inventory
from components.persons.published.layouts import LAYOUTS, Layout
from components.persons.published.readers import DatasetFiles, find_dataset
from pipelines import presets
from pipelines.health.cluster_check import check_cluster
from pipelines.health.findings import Finding, State
from pipelines.health.weights import check_weights
from pipelines.params import Parameters
from pipelines.terminal.console import TableConsole
from pipelines.workspace import Workspace

RAW = Path("data/raw")


def doctor(workspace: Workspace, checks: Iterable[str] = (), preset: str | None = None) -> None:
    """Print the findings of the named checks (default: all) for params.yaml, or for a preset applied to it.

    Raises:
        ParameterError: the parameters are not valid.
        DataError: something that they require is missing.
    """
    chosen = presets.resolve(workspace.root, preset)
    console, unmet = TableConsole(), []
    for name in list(checks) or list(CHECKS):
        findings = CHECKS[name](chosen, workspace)
        _show(name, findings, console)
        unmet += [found.subject for found in findings if found.asked_for and not found.state.is_there]
    asking = f"preset {preset}" if preset else "params.yaml"
    if unmet:
        raise DataError(f"doctor: {asking} asks for what is not there or not whole: {', '.join(unmet)} (see above)")
    console.print(f"Everything that {asking} asks for is there.", highlight=False)


def check_data(chosen: Parameters, workspace: Workspace) -> list[Finding]:
    """Check every published dataset, and the source that `prepare` reads."""
    source = chosen.prepare.source
    findings = []
    if source.lower() not in LAYOUTS:
        findings.append(
            Finding("drawn set", State.MADE, True, "drawn by the stage prepare")
            if source == "drawn"
            else _dataset(source, None, chosen, workspace)
        )
    return findings + [_dataset(name, layout, chosen, workspace) for name, layout in LAYOUTS.items()]


def _dataset(name: str, layout: Layout | None, chosen: Parameters, workspace: Workspace) -> Finding:
    asked_for = chosen.prepare.source.lower() == name.lower()
    root = workspace.path(str(RAW))
    try:
        found = find_dataset(name, root)
    except DataError as error:
        instructions = layout.instructions(RAW) if layout else _below(str(error), workspace)
        place = RAW / (layout.folders[0] if layout else name)
        return Finding(name, State.MISSING, asked_for, f"expected in {place}", (instructions,))
    try:
        seen = take_inventory(found)
    except DataError as error:
        return Finding(name, State.INCOMPLETE, asked_for, "cannot be read", (_below(str(error), workspace),))
    remarks = tuple(_remarks(seen, found, layout, workspace))
    if seen.bad_fraction > chosen.prepare.max_bad_fraction:
        state = State.INCOMPLETE
    else:
        state = State.DIFFERENT if remarks else State.WHOLE
    return Finding(name, state, asked_for, _counts(seen), remarks)


def _counts(seen: Inventory) -> str:
    return "\n".join(
        f"{split} {counts.images:,} pictures, {counts.captions:,} captions, {counts.identities:,} identities"
        for split, counts in seen.splits.items()
    )


def _remarks(seen: Inventory, found: DatasetFiles, layout: Layout | None, workspace: Workspace) -> list[str]:
    folder = _below(str(found.folder), workspace)
    lines = count_differences(seen, layout) if layout else []
    if seen.missing:
        listed = ", ".join(f"{place} {count:,}" for place, count in seen.missing.items())
        lines.append(f"{sum(seen.missing.values()):,} pictures are not in {folder}: {listed}; such as {seen.example}")
    if seen.shared:
        lines.append(f"{seen.shared:,} identities are in more than one split; prepare keeps each in one")
    if seen.bad_captions:
        lines.append(f"{seen.bad_captions:,} captions are empty or no text; prepare leaves them out")
    if seen.without_caption:
        lines.append(f"{seen.without_caption:,} pictures have no good caption; prepare leaves them out")
    if layout and lines:
        lines.append(f"{folder} is to hold {layout.contents}")
    return lines


def _below(text: str, workspace: Workspace) -> str:
    """Return `text` with paths relative to the workspace."""
    return text.replace(f"{workspace.root}{os.sep}", "")


Check = Callable[[Parameters, Workspace], list[Finding]]
CHECKS: dict[str, Check] = {"data": check_data, "weights": check_weights, "cluster": check_cluster}
"""By name, which is also the option."""


def _show(name: str, findings: list[Finding], console: TableConsole) -> None:
    colours = {State.INCOMPLETE: "yellow", State.DIFFERENT: "yellow", State.WHOLE: "green", State.MADE: "green"}
    table = Table("what", Column("state", no_wrap=True), "facts", title=name, title_justify="left")
    for found in findings:
        unmet = found.asked_for and not found.state.is_there
        style = "red" if unmet else colours.get(found.state, "dim")
        subject = f"{found.subject} (asked for)" if found.asked_for else found.subject
        table.add_row(escape(subject), f"[{style}]{found.state.value}[/]", escape(found.facts))
    console.print(table)
    for found in findings:
        for remark in found.remarks:
            line = f"{found.subject}: {remark}"
            console.print(line, markup=False, highlight=False, soft_wrap=True, style=None if found.asked_for else "dim")
    console.print()
