"""`python -m pipelines doctor`: is everything there that a run needs, and how to get what is not.

A check looks at one kind of thing and gives findings; CHECKS names the checks, and `--<name>` runs one alone. A new check is a
function and a line there. Nothing is written and nothing is downloaded.
"""

import enum
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import DataError, ParameterError
from components.files import file_digest
from components.gadms.model import WEIGHTS_FILE
from components.persons.published.layouts import LAYOUTS, Layout
from components.persons.published.readers import Source, find_source
from components.persons.published.survey import Survey, differences, survey
from pipelines.health.dry_run import resolve
from pipelines.params import Parameters
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console

RAW = Path("data/raw")


class State(enum.Enum):
    """How a thing was found. What does not count as there, and is asked for, makes the doctor exit with 3."""

    WHOLE = "there"
    DIFFERENT = "there, but differs"
    INCOMPLETE = "incomplete"
    MISSING = "not there"
    MADE = "made here"

    @property
    def is_there(self) -> bool:
        return self not in (State.INCOMPLETE, State.MISSING)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        subject: what.
        asked_for: whether params.yaml asks for it.
        facts: a few words on what was found, or where it was expected.
        remarks: a line each: what is missing, how to get it.
    """

    subject: str
    state: State
    asked_for: bool
    facts: str
    remarks: tuple[str, ...] = ()


def doctor(workspace: Workspace, checks: Iterable[str] = (), preset: str | None = None) -> None:
    """Print what the chosen checks (all, when none is named) find for params.yaml, or for a preset laid over it.

    Raises:
        ParameterError: the parameters are not valid.
        DataError: something that they ask for is not there.
    """
    from rich.console import Console

    chosen = resolve(workspace.root, preset)
    console, unmet = Console(), []
    for name in list(checks) or list(CHECKS):
        findings = CHECKS[name](chosen, workspace)
        _show(name, findings, console)
        unmet += [found.subject for found in findings if found.asked_for and not found.state.is_there]
    asking = f"preset {preset}" if preset else "params.yaml"
    if unmet:
        raise DataError(f"doctor: {asking} asks for what is not there or not whole: {', '.join(unmet)} (see above)")
    console.print(f"Everything that {asking} asks for is there.", highlight=False)


def check_data(chosen: Parameters, workspace: Workspace) -> list[Finding]:
    """Every published dataset, and the source that `prepare` reads."""
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
        found = find_source(name, root)
    except DataError as error:
        instructions = layout.instructions(RAW) if layout else _below(str(error), workspace)
        place = RAW / (layout.folders[0] if layout else name)
        return Finding(name, State.MISSING, asked_for, f"expected in {place}", (instructions,))
    try:
        seen = survey(found)
    except DataError as error:
        return Finding(name, State.INCOMPLETE, asked_for, "cannot be read", (_below(str(error), workspace),))
    remarks = tuple(_remarks(seen, found, layout, workspace))
    if seen.missing_fraction > chosen.prepare.max_bad_fraction:
        state = State.INCOMPLETE
    else:
        state = State.DIFFERENT if remarks else State.WHOLE
    return Finding(name, state, asked_for, _counts(seen), remarks)


def _counts(seen: Survey) -> str:
    return "\n".join(
        f"{split} {counts.images:,} pictures, {counts.captions:,} captions, {counts.identities:,} identities"
        for split, counts in seen.splits.items()
    )


def _remarks(seen: Survey, found: Source, layout: Layout | None, workspace: Workspace) -> list[str]:
    folder = _below(str(found.folder), workspace)
    lines = differences(seen, layout) if layout else []
    if seen.missing:
        listed = ", ".join(f"{place} {count:,}" for place, count in seen.missing.items())
        lines.append(f"{sum(seen.missing.values()):,} pictures are not in {folder}: {listed}; such as {seen.example}")
    if seen.shared:
        lines.append(f"{seen.shared:,} identities are in more than one split; prepare keeps each in one")
    if seen.without_caption:
        lines.append(f"{seen.without_caption:,} pictures have an empty caption, or none; prepare leaves them out")
    if layout and lines:
        lines.append(f"{folder} is to hold {layout.contents}")
    return lines


def _below(text: str, workspace: Workspace) -> str:
    """`text` with paths as seen from the workspace."""
    return text.replace(f"{workspace.root}{os.sep}", "")


def check_weights(chosen: Parameters, workspace: Workspace) -> list[Finding]:
    """The base model that TACA adapts, and the weights that retrieval starts from."""
    return [_base_model(chosen), retrieval_weights(chosen, workspace)]


def _base_model(chosen: Parameters) -> Finding:
    settings, subject = chosen.base_model, "base_model.source"
    if settings.source == "tiny":
        return Finding(subject, State.MADE, True, "trained by the stage base_model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from components.taca.pipeline_folder import PipelineFolder

    command = f"`hf download {settings.source} --revision {settings.revision or '<commit>'}`"
    try:
        revision = settings.pinned_revision()
        folder = Path(snapshot_download(settings.source, revision=revision, local_files_only=True))
        files = PipelineFolder(folder).files()
    except ParameterError as error:
        return Finding(subject, State.MISSING, True, settings.source, (str(error), command))
    except LocalEntryNotFoundError:
        return Finding(subject, State.MISSING, True, f"{settings.source}: not in the Hugging Face cache", (command,))
    except DataError as error:
        return Finding(subject, State.INCOMPLETE, True, settings.source, (str(error), command))
    return Finding(subject, State.WHOLE, True, f"{settings.source}: {len(files)} files in the Hugging Face cache")


def retrieval_weights(chosen: Parameters, workspace: Workspace) -> Finding:
    """Weights by an open_clip tag, which open_clip keeps in the Hugging Face cache, or by a file or model folder."""
    settings, subject = chosen.retrieval, "retrieval.pretrained"
    if not settings.pretrained:
        return Finding(subject, State.MADE, True, "none: the towers are trained from scratch")
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    name, weights = settings.architecture, settings.pretrained
    published = open_clip.get_pretrained_cfg(name, weights) if isinstance(name, str) else None
    if not published:
        found = workspace.path(weights)
        found = found / WEIGHTS_FILE if found.is_dir() else found
        if found.is_file():
            return _pinned(found, subject, weights, settings.pretrained_sha256)
        if isinstance(name, str):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none: open_clip does not know the name"
            return Finding(subject, State.MISSING, True, weights, (f"no such file; tags of {name} are {tags}",))
        fix = "no such file; for a tag, name a published architecture in retrieval.architecture"
        return Finding(subject, State.MISSING, True, f"{weights} for an architecture of params.yaml", (fix,))
    repository, file = os.path.split(published["hf_hub"])
    wanted = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]  # the first it tries
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in wanted):
        return Finding(subject, State.WHOLE, True, f"{weights}: {repository} in the Hugging Face cache")
    place = f"{weights}: {repository} is not in the Hugging Face cache"
    return Finding(subject, State.MISSING, True, place, (f"`hf download {repository} {wanted[0]}`",))


def check_cluster(chosen: Parameters, workspace: Workspace) -> list[Finding]:
    """The Ray cluster of jobs."""
    from pipelines.health.cluster_check import check_cluster as look

    return look(chosen, workspace)


def _pinned(file: Path, subject: str, weights: str, sha256: str | None) -> Finding:
    """Weights that are there, if they are the ones that were meant."""
    found = file_digest(file)
    if sha256 == found:
        return Finding(subject, State.WHOLE, True, f"{weights}, a {'file' if file.name in weights else 'model folder'}")
    fix = f"retrieval.pretrained_sha256 is {sha256 or 'null'}: set it to {found} if this is the one you mean"
    return Finding(subject, State.INCOMPLETE, True, f"{weights}, not pinned", (fix,))


Check = Callable[[Parameters, Workspace], list[Finding]]
CHECKS: dict[str, Check] = {"data": check_data, "weights": check_weights, "cluster": check_cluster}
"""Name, which is also the option, -> check."""


def _show(name: str, findings: list[Finding], console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    colours = {State.INCOMPLETE: "yellow", State.DIFFERENT: "yellow", State.WHOLE: "green", State.MADE: "green"}
    table = Table(title=name, title_justify="left")
    table.add_column("what")
    table.add_column("state", no_wrap=True)
    table.add_column("facts", overflow="fold")
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
