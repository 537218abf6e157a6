"""`python -m pipelines gc`: removes from the scratch root what no result needs any more.

Kept are the folders that the current params.yaml and code use, those whose outputs are in `dvc.lock`, those that an unfinished
sweep names, and all that were modified since the first such sweep began. A finished result that is kept loses its checkpoints: they
are for resuming. A folder that a process holds is left alone. An emptied folder keeps its lock file, as others may wait for it.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError
from components.files import remove
from pipelines import graph, params
from pipelines.dvc_files.dvc_lock import dvc_md5, read_entries
from pipelines.identity.fingerprint import fingerprint
from pipelines.locks.file_lock import acquire
from pipelines.locks.lease import machine_id, read_lease
from pipelines.scratch.folder import LEASE_FILE, LOCK_FILE, folder_name, folder_stem
from pipelines.scratch.manifest import MANIFEST_FILE, Manifest
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Removal:
    """Which parts of a scratch folder are removed, why, and the bytes that this frees on the disk."""

    folder: Path
    parts: tuple[str, ...]
    reason: str
    bytes: int


def collect(workspace: Workspace, *, dry: bool) -> list[Removal]:
    """Remove what is not needed and print one line per folder; with `dry`, only print."""
    needed = _needed_folders(workspace)
    sweeps = open_sweeps(workspace.home)
    removals = []
    verb = "would free" if dry else "freed"
    for folder in scratch_folders(workspace.home):
        with _try_lock(folder) as locked:
            if not locked:
                print(f"kept    {folder.name}: in use by another process")
                continue
            removal = _removal(folder, folder.name in needed or sweeps.need(folder))
            if removal is None:
                continue
            removals.append(removal)
            print(f"{verb} {_size(removal.bytes):>10}  {folder.name}: {removal.reason}")
            if not dry:
                # The manifest first: without it, what is left is no result.
                for part in sorted(removal.parts, key=lambda part: part != MANIFEST_FILE):
                    remove(folder / part)
    print(f"{verb} {_size(sum(removal.bytes for removal in removals))} in {len(removals)} folders")
    return removals


def scratch_folders(home: Path) -> list[Path]:
    """Return the folders of stage runs, named `<stage>-<arm>-<fingerprint>`; not those of studies, sweeps and clones."""
    known = {folder_stem(run.address) for run in graph.all_runs()}
    shape = re.compile(r"(.+)-[0-9a-f]{16}")
    found = [(path, shape.fullmatch(path.name)) for path in sorted(home.glob("*")) if path.is_dir()]
    return [path for path, match in found if match and match[1] in known]


def _needed_folders(workspace: Workspace) -> set[str]:
    """Return the names of the scratch folders that the current parameters or dvc.lock use."""
    settings = params.load(workspace.path("params.yaml"))
    needed = set()
    for stage in graph.all_stages():
        for run in graph.runs_of(stage):
            inputs = {name: workspace.path(path) for name, path in run.inputs.items()}
            if all(path.exists() for path in inputs.values()):
                own = settings.only(run.stage.reads)
                needed.add(folder_name(run.address, fingerprint(run, own, inputs, settings.compute.threads)))
    try:
        entries = read_entries(workspace.root)
    except DataError:
        return needed  # without dvc.lock, only the current parameters count
    locked = {
        address: {out["path"]: out.get("md5") for out in entry.get("outs", [])} for address, entry in entries.items()
    }
    for folder in scratch_folders(workspace.home):
        done = Manifest.read(folder / MANIFEST_FILE)
        if done and folder.name not in needed and locked.get(done.stage) == _md5s(folder, done):
            needed.add(folder.name)
    return needed


def _md5s(folder: Path, done: Manifest) -> dict[str, str | None]:
    """Return DVC's md5 of every output, computed where the manifest has none."""
    return {path: done.md5.get(path) or dvc_md5(folder / "outputs" / path) for path in done.outputs}


@dataclass(frozen=True)
class OpenSweeps:
    """What unfinished sweeps need: the results that their journals name, and all that was modified since the first began."""

    fingerprints: frozenset[str]
    since: float

    def need(self, folder: Path) -> bool:
        modified = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
        return folder.name[-16:] in self.fingerprints or modified >= self.since


def open_sweeps(home: Path) -> OpenSweeps:
    """Return what the unfinished sweeps of a scratch root need; `pipelines.sweeps.journal` documents a sweep's folder."""
    found = [folder for folder in (home / "sweeps").glob("*") if folder.is_dir() and not _finished(folder)]
    named: set[str] = set()
    for folder in found:
        journal = folder / "journal.jsonl"
        text = journal.read_text(encoding="utf-8") if journal.is_file() else ""
        named |= {identity[:16] for identity in re.findall(r'"fingerprint": "([0-9a-f]{64})"', text)}
    began = [file.stat().st_mtime for folder in found for file in folder.glob("*") if file.is_file()]
    return OpenSweeps(frozenset(named), min(began, default=float("inf")))


def _finished(sweep: Path) -> bool:
    """Return whether all trials of a sweep have ended and no driver runs it; without a summary that says so, it is open."""
    try:
        summary = json.loads((sweep / "results.json").read_text(encoding="utf-8"))
        trials, waiting = len(summary["trials"]), summary["counts"]["waiting"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    with _try_lock(sweep) as locked:
        return locked and waiting == 0 and trials >= summary.get("samples", trials)


def _removal(folder: Path, needed: bool) -> Removal | None:
    parts = tuple(sorted(path.name for path in folder.iterdir() if path.name != LOCK_FILE))
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


@contextmanager
def _try_lock(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock if no process of this machine, and no lease of another one, has it; yield whether it is held."""
    lease = read_lease(folder / LEASE_FILE)
    if lease is not None and lease.machine != machine_id():
        yield False
        return
    with open(folder / LOCK_FILE, "a+") as file:
        yield acquire(file.fileno(), 0) is not None


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
