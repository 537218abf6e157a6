"""Finds the manifest of a finished stage run: by fingerprint, by the bytes of an output, or by the MLflow run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError
from pipelines.dvc_files.dvc_lock import read_entries
from pipelines.graph import StageRun, producers
from pipelines.params import ParameterFile, Parameters
from pipelines.records.stage_record import fingerprinted_now
from pipelines.scratch.folder import folder_name, folder_stem
from pipelines.scratch.manifest import MANIFEST_FILE, InputRecord, Manifest
from pipelines.tracking.runs import MANIFEST_ARTIFACT, artifact_text, flatten
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def find_by_fingerprint(address: str, identity: str, home: Path) -> Manifest | None:
    """Return the manifest in the scratch folder of a stage with this fingerprint, if there is one."""
    return Manifest.read(home / folder_name(address, identity) / MANIFEST_FILE)


def find_by_content(
    path: str, digests: Mapping[str, str], workspace: Workspace, params: ParameterFile
) -> Manifest | None:
    """Return a manifest in the scratch root whose output `path` has these `tree_digests`; None for raw data, or when it is gone.

    Several runs may have made the same bytes, such as a trial with a number that params.yaml leaves to a default. The run of the
    present code and `params` comes first, then one of the parameters in dvc.lock, then the newest.
    """
    producer = producers().get(path)
    if producer is None:
        return None
    folders = f"{folder_stem(producer.address)}-*/{MANIFEST_FILE}"
    files = sorted(workspace.home.glob(folders), key=_modified, reverse=True)
    found = [done for done in map(Manifest.read, files) if done and done.outputs.get(path) == digests]
    if len(found) < 2:
        return found[0] if found else None
    present, locked = fingerprinted_now(producer, params), _locked_parameters(producer, workspace)

    def preference(done: Manifest) -> tuple[bool, bool]:
        record = done.provenance
        return (record.fingerprinted == present, record.parameters == locked) if record else (False, False)

    return max(found, key=preference)  # of equals the first, which is the newest


def _locked_parameters(run: StageRun, workspace: Workspace) -> dict[str, Any] | None:
    """Return the parameters that dvc.lock says the stage read, as a stage is given them; None where it does not tell."""
    try:
        values = read_entries(workspace.root)[run.address]["params"]["params.yaml"]
        return Parameters.partial({key: values[key] for key in run.stage.reads}).only(run.stage.reads)
    except (DataError, KeyError, ValueError):
        return None


def parameters_behind(path: str, made_by: Manifest | None, md5: str | None, workspace: Workspace) -> dict[str, Any]:
    """Return, flat, the parameters of the stages that made an input: by its manifest, or else by dvc.lock.

    dvc.lock counts for a stage only where it has recorded the bytes (`md5`) that are read of it.
    """
    if made_by and made_by.provenance:
        return {**(made_by.provenance.upstream or {}), **flatten(made_by.provenance.parameters)}
    try:
        entries = read_entries(workspace.root)
    except DataError:
        return {}
    found: dict[str, Any] = {}
    todo, seen = [(path, md5)], set()
    while todo:
        used = todo.pop()
        run = producers().get(used[0])
        entry = entries.get(run.address, {}) if run else {}
        if run is None or used in seen or used not in {(out["path"], out.get("md5")) for out in entry.get("outs", ())}:
            continue
        seen.add(used)
        found |= flatten(_locked_parameters(run, workspace) or {})
        todo += [(dep["path"], dep.get("md5")) for dep in entry.get("deps", ())]
    return found


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def find_by_run(run: "Run", client: "MlflowClient", home: Path) -> Manifest | None:
    """Return the manifest of an MLflow run: from its scratch folder, else the copy that the run holds, else None."""
    tags, run_id = run.data.tags, run.info.run_id
    address = "@".join(filter(None, (tags.get("pipelines.stage", ""), tags.get("pipelines.arm", ""))))
    stored = find_by_fingerprint(address, tags.get("pipelines.fingerprint", ""), home)
    return stored if stored and stored.run == run_id else download_manifest(run_id, client)


def find_maker(record: InputRecord, home: Path, client: "MlflowClient | None") -> Manifest | None:
    """Return the manifest of the stage run that made an input: from `home`, else the copy that its MLflow run holds."""
    if not record.stage or not record.fingerprint:
        return None
    stored = find_by_fingerprint(record.stage, record.fingerprint, home)
    if stored or client is None or not record.run:
        return stored
    return download_manifest(record.run, client)


def download_manifest(run_id: str, client: "MlflowClient") -> Manifest | None:
    """Return the copy that an MLflow run holds; None where it was made before copies were stored, or its artifacts are gone."""
    return Manifest.parse(artifact_text(run_id, MANIFEST_ARTIFACT, client))
