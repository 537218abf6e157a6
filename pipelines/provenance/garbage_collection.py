"""`python -m pipelines gc`: removes from the scratch root what no result needs any more.

Kept are the folders that the current params.yaml and code of this checkout use, those whose outputs are in the `dvc.lock` of a
worktree, those that another checkout has used (`gc` there gives them up), and those of trials that can still be promoted: of sweeps
that have not ended, or of which no trial was promoted. A finished result that is kept loses its checkpoints: they are for resuming.
A folder that a process holds, here or on another machine, is left alone. An emptied folder keeps its lock file, as others may wait
for it.
"""

import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError
from components.files import remove
from pipelines import graph, params
from pipelines.dvc_files.dvc_lock import LOCK_FILE as DVC_LOCK
from pipelines.dvc_files.dvc_lock import dvc_md5, read_entries
from pipelines.errors import InfrastructureError
from pipelines.identity.fingerprint import present_fingerprint
from pipelines.provenance.sweep_claims import SWEEPS, sweep_needs
from pipelines.scratch.claims import CLAIMS_FILE, claims, give_up
from pipelines.scratch.folder import LEASE_FILE, LOCK_FILE, Scratch, folder_name, folder_stem
from pipelines.scratch.manifest import MANIFEST_FILE, Manifest
from pipelines.workspace import Workspace, worktrees


@dataclass(frozen=True)
class Removal:
    """Which parts of a scratch folder are removed, why, and the bytes that this frees on the disk."""

    folder: Path
    parts: tuple[str, ...]
    reason: str
    bytes: int


def collect(workspace: Workspace, *, dry: bool, sweeps: bool = False) -> list[Removal]:
    """Remove what is not needed and print one line per folder; with `dry`, only print.

    `sweeps`: also what only sweeps need that have ended. Raises DataError, before anything is removed, when the dvc.lock of a
    worktree cannot be read.
    """
    needed = _needed_folders(workspace)
    removals = []
    kept: Counter[str] = Counter()
    verb = "would free" if dry else "freed"
    for folder in scratch_folders(workspace.home):
        with ExitStack() as held:
            try:
                held.enter_context(Scratch(folder).lock(timeout=0.0))
            except InfrastructureError:
                print(f"kept    {folder.name}: in use by another process")
                continue
            try:
                user = None if folder.name in needed else _user(folder, workspace, sweeps)
            except DataError as error:
                print(f"kept    {folder.name}: {error}")
                continue
            if user:
                kept[user] += 1
            removal = _removal(folder, folder.name in needed or user is not None)
            if removal is not None:
                removals.append(removal)
                print(f"{verb} {_size(removal.bytes):>10}  {folder.name}: {removal.reason}")
            if dry:
                continue
            # The manifest first: without it, what is left is no result.
            for part in sorted(removal.parts if removal else (), key=lambda part: part != MANIFEST_FILE):
                remove(folder / part)
            if folder.name not in needed:
                give_up(folder, workspace.root)
    for user, count in sorted(kept.items()):
        print(f"kept    {count} folder{'s' if count > 1 else ''} that {user}")
    print(f"{verb} {_size(sum(removal.bytes for removal in removals))} in {len(removals)} folders")
    return removals


def _user(folder: Path, workspace: Workspace, ended_sweeps: bool) -> str | None:
    """Return which other workspace uses a folder, with how it gives it up; None without any."""
    for claim in claims(folder):
        root = Path(claim.root)
        if root.is_relative_to(workspace.home / SWEEPS):
            sweep = workspace.home / SWEEPS / root.relative_to(workspace.home / SWEEPS).parts[0]
            if reason := sweep_needs(sweep, root, freed=ended_sweeps):
                return reason
        elif not claim.is_of(workspace.root) and claim.holds():
            there = f"{root} on {claim.host}" if root == workspace.root else str(root)
            return f"{there} has used: `gc` there frees them"
    return None


def scratch_folders(home: Path) -> list[Path]:
    """Return the folders of stage runs, named `<stage>-<arm>-<fingerprint>`; not those of studies, sweeps and clones."""
    known = {folder_stem(run.address) for run in graph.all_runs()} | {stage.name for stage in graph.PRETRAINING}
    shape = re.compile(r"(.+)-[0-9a-f]{16}")
    found = [(path, shape.fullmatch(path.name)) for path in sorted(home.glob("*")) if path.is_dir()]
    return [path for path, match in found if match and match[1] in known]


def _needed_folders(workspace: Workspace) -> set[str]:
    """Return the names of the scratch folders that the current parameters use, or the dvc.lock of a worktree."""
    stages = [*graph.all_stages()]
    if workspace.path(graph.RECIPE).is_file():
        stages += graph.PRETRAINING
    needed = set()
    for stage in stages:
        settings = params.load_for(stage, workspace.root)
        for run in graph.runs_of(stage):
            if all(workspace.path(path).exists() for path in run.inputs.values()):
                needed.add(folder_name(run.address, present_fingerprint(run, settings, workspace.root)))
    locked = [_locked_outputs(root) for root in worktrees(workspace.root)]
    for folder in scratch_folders(workspace.home):
        done = Manifest.read(folder / MANIFEST_FILE)
        if done and folder.name not in needed and any(outputs.get(done.stage) for outputs in locked):
            found = _md5s(folder, done)
            needed |= {folder.name} if any(outputs.get(done.stage) == found for outputs in locked) else set()
    return needed


def _locked_outputs(root: Path) -> dict[str, dict[str, str | None]]:
    """Return the md5 of the outputs of each stage in the dvc.lock of a checkout; {} without one.

    Raises DataError for one that cannot be read: nobody knows which results it names.
    """
    file = root / DVC_LOCK
    if not file.exists():
        return {}
    entries = read_entries(root)
    try:
        return {
            stage: {out["path"]: out.get("md5") for out in entry.get("outs", [])} for stage, entry in entries.items()
        }
    except (AttributeError, KeyError, TypeError):
        raise DataError(
            f"{file} cannot be read: its stages are not as DVC writes them: `git checkout dvc.lock`"
        ) from None


def _md5s(folder: Path, done: Manifest) -> dict[str, str | None]:
    """Return DVC's md5 of every output, computed where the manifest has none."""
    return {path: done.md5.get(path) or dvc_md5(folder / "outputs" / path) for path in done.outputs}


def _removal(folder: Path, needed: bool) -> Removal | None:
    own = (LOCK_FILE, LEASE_FILE, CLAIMS_FILE)
    parts = tuple(sorted(path.name for path in folder.iterdir() if path.name not in own))
    done = (folder / MANIFEST_FILE).is_file()
    if needed:
        if not (done and (folder / "checkpoints").is_dir()):
            return None
        parts, reason = ("checkpoints",), "checkpoints of a finished result"
    elif done:
        reason = "the result is not used"
    else:
        reason = "unfinished, and not used"
    return Removal(folder, parts, reason, sum(_freed_bytes(folder / part) for part in parts)) if parts else None


def _freed_bytes(path: Path) -> int:
    """Return the bytes on the disk that removing `path` frees: none for a file that has another hard link."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
