"""`python -m pipelines gc`: frees what no result needs any more in the scratch root.

Kept: what the present params.yaml and code would ask for, what `dvc.lock` says is the present result, and all that was touched
since a sweep began that is still open. Of a finished result that is kept, the checkpoints go: they are for a run that was killed. A
folder that somebody works in is left alone. The folder and its lock file stay, empty: whoever waits for that lock must find it.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from components.errors import DataError
from pipelines import graph, params
from pipelines.dvc_files.dvc_lock import dvc_md5, read_entries
from pipelines.identity.fingerprint import fingerprint
from pipelines.locks.file_lock import acquire
from pipelines.locks.lease import holder, machine
from pipelines.records.manifests import read_manifest
from pipelines.scratch.folder import folder_name, folder_stem
from pipelines.workspace import Workspace

STAYS = ("lock",)
"""Files of a scratch folder that are never removed."""


@dataclass(frozen=True)
class Freed:
    """A scratch folder, what of it goes, why, and how many bytes no other file holds."""

    folder: Path
    parts: tuple[str, ...]
    reason: str
    bytes: int


def collect(workspace: Workspace, *, dry: bool) -> list[Freed]:
    """Free what is not needed and say so, a line a folder; with `dry`, only say so."""
    wanted = _wanted(workspace)
    sweeps = open_sweeps(workspace.home)
    freed = []
    for folder in scratch_folders(workspace.home):
        with _held(folder) as ours:
            if not ours:
                print(f"kept    {folder.name}: somebody works in it")
                continue
            found = _judge(folder, folder.name in wanted, sweeps)
            if found is None:
                continue
            freed.append(found)
            print(f"{'would free' if dry else 'freed'} {_size(found.bytes):>10}  {folder.name}: {found.reason}")
            if not dry:
                _remove(found)
    total = sum(found.bytes for found in freed)
    print(f"{'would free' if dry else 'freed'} {_size(total)} in {len(freed)} folders")
    return freed


def scratch_folders(home: Path) -> list[Path]:
    """Folders of stage runs, named `<stage>-<arm>-<fingerprint>`; studies, sweeps and clones beside them are none of ours."""
    known = {folder_stem(run.address) for stage in graph.all_stages() for run in graph.runs_of(stage)}
    shape = re.compile(r"(.+)-[0-9a-f]{16}")
    found = [(path, shape.fullmatch(path.name)) for path in sorted(home.glob("*")) if path.is_dir()]
    return [path for path, match in found if match and match[1] in known]


def _wanted(workspace: Workspace) -> set[str]:
    """Names of the scratch folders that the present parameters or dvc.lock ask for."""
    settings = params.load(workspace.path("params.yaml"))
    wanted = set()
    for stage in graph.all_stages():
        for run in graph.runs_of(stage):
            inputs = {name: workspace.path(path) for name, path in run.inputs.items()}
            if all(path.exists() for path in inputs.values()):
                own = settings.only(run.stage.reads)
                wanted.add(folder_name(run.address, fingerprint(run, own, inputs, settings.compute.threads)))
    try:
        entries = read_entries(workspace.root)
    except DataError:
        return wanted  # no lock: only what is here now counts
    locked = {
        address: {out["path"]: out.get("md5") for out in entry.get("outs", [])} for address, entry in entries.items()
    }
    for folder in scratch_folders(workspace.home):
        done = read_manifest(folder / "DONE.json")
        if done and folder.name not in wanted and locked.get(done["stage"]) == _md5s(folder, done):
            wanted.add(folder.name)
    return wanted


def _md5s(folder: Path, done: dict[str, dict[str, str | None]]) -> dict[str, str | None]:
    """DVC's md5 of every output, from the manifest where it has it."""
    known = done.get("md5", {})
    return {path: known.get(path) or dvc_md5(folder / "outputs" / path) for path in done["outputs"]}


@dataclass(frozen=True)
class OpenSweeps:
    """What sweeps that have not finished need: results that their journals name, and all that was touched since the first began."""

    fingerprints: frozenset[str]
    since: float

    def need(self, folder: Path) -> bool:
        return folder.name[-16:] in self.fingerprints or _touched(folder) >= self.since


def open_sweeps(home: Path) -> OpenSweeps:
    """Of a scratch root; `pipelines.sweeps.journal` says how a sweep's folder looks."""
    found = [folder for folder in (home / "sweeps").glob("*") if folder.is_dir() and not _finished(folder)]
    named: set[str] = set()
    for folder in found:
        journal = folder / "journal.jsonl"
        text = journal.read_text(encoding="utf-8") if journal.is_file() else ""
        named |= {identity[:16] for identity in re.findall(r'"fingerprint": "([0-9a-f]{64})"', text)}
    began = [file.stat().st_mtime for folder in found for file in folder.glob("*") if file.is_file()]
    return OpenSweeps(frozenset(named), min(began, default=float("inf")))


def _finished(sweep: Path) -> bool:
    """Whether all its trials have ended and nobody drives it. Without a summary that says so, it is open."""
    try:
        summary = json.loads((sweep / "results.json").read_text(encoding="utf-8"))
        trials, waiting = len(summary["trials"]), summary["counts"]["waiting"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    with _held(sweep) as ours:
        return ours and waiting == 0 and trials >= summary.get("samples", trials)


def _judge(folder: Path, wanted: bool, sweeps: OpenSweeps) -> Freed | None:
    parts = tuple(sorted(path.name for path in folder.iterdir() if path.name not in STAYS))
    done = (folder / "DONE.json").is_file()
    if wanted or sweeps.need(folder):
        if not (done and (folder / "checkpoints").is_dir()):
            return None
        parts, reason = ("checkpoints",), "checkpoints of a finished result"
    elif done:
        reason = "nothing here asks for this result"
    else:
        reason = "unfinished, and nothing here would go on with it"
    return Freed(folder, parts, reason, sum(_bytes(folder / part) for part in parts)) if parts else None


def _touched(folder: Path) -> float:
    return max(path.stat().st_mtime for path in [folder, *folder.iterdir()])


def _bytes(path: Path) -> int:
    """What removing it gives back: a file that has another name elsewhere gives nothing."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.stat().st_nlink == 1)


def _remove(freed: Freed) -> None:
    # The manifest first: without it nobody takes what is left for a result.
    for part in sorted(freed.parts, key=lambda part: part != "DONE.json"):
        path = freed.folder / part
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, unless a process of this machine or a lease of another one has it; says whether."""
    lease = holder(folder / "lease.json")
    if lease is not None and lease.get("machine") != machine():
        yield False
        return
    with open(folder / "lock", "a+") as file:
        yield acquire(file.fileno(), 0) is not None


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
