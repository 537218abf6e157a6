"""Collects the record of a stage run (`pipelines.scratch.manifest.StageRecord`), and turns it into what its MLflow run shows: tags,
parameters, models."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from components.files import file_digest
from pipelines.dvc_files.dvc_lock import dvc_md5
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK, digest
from pipelines.params import ParameterFile
from pipelines.records.code_state import CodeState
from pipelines.scratch.manifest import CodeRecord, InputRecord, Manifest, StageRecord
from pipelines.threads.cores import usable_cores
from pipelines.tracking.models import TrackedModel
from pipelines.tracking.runs import flatten

PACKAGES = ("torch", "ray", "mlflow", "dvc", "diffusers", "open_clip_torch")
CHEAP_BYTES = 64 * 2**20
"""Up to this size DVC's md5 of a tree is computed as well."""


def stage_record(
    run: StageRun,
    own: Mapping[str, Any],
    params: ParameterFile,
    code: CodeState,
    inputs: Mapping[str, InputRecord],
    behind: Iterable[tuple[str, Mapping[str, Any]]] = (),
) -> StageRecord:
    """Return the record of a stage run about to start.

    `own` holds the parameters that it reads, `inputs` its inputs by path, `behind` what `upstream_parameters` reads.
    """
    return StageRecord(
        revision=CodeRecord(
            commit=code.revision, dirty=code.dirty, patch=code.patch_digest, left_out=list(code.left_out)
        ),
        parameters=dict(own),
        upstream=upstream_parameters(own, behind),
        inputs=dict(inputs),
        sources=sources_digest(run),
        lock=file_digest(ROOT / LOCK),
        threads=params.compute.threads,
        seed=params.seed,
        environment=environment(),
        hardware=hardware(),
        compute=params.compute.model_dump(include={"workers", "strategy", "device"}),
        ray=ray_ids(),
    )


def mlflow_tags(record: StageRecord) -> dict[str, str]:
    """Return the record as MLflow tags: short, flat, the same names for every stage."""
    revision = record.revision
    tags = {
        "git.revision": revision.commit,
        "git.dirty": str(revision.dirty).lower(),
        "git.patch": revision.patch,
        "git.left_out": ", ".join(revision.left_out)[:500],
        "env.lock": record.lock,
        **{f"env.{name}": version for name, version in record.environment.items()},
        **{f"host.{name}": str(value) for name, value in record.hardware.items()},
        **{f"ray.{name}": value for name, value in record.ray.items()},
    }
    for used in record.inputs.values():
        if used.stage and used.run:
            tags[f"upstream.{used.stage.replace('@', '.')}"] = used.run
    return {key: value for key, value in tags.items() if value or key.startswith("git.")}


def mlflow_parameters(record: StageRecord, arm: str | None) -> dict[str, Any]:
    """Return the parameters of a stage's MLflow run, flat: its own, those behind its inputs, and its arm."""
    if record.upstream is None:  # of older code
        return flatten(record.parameters)
    return {**record.upstream, **flatten(record.parameters), **({"arm": arm} if arm else {})}


def upstream_parameters(own: Mapping[str, Any], behind: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return, flat, the parameters behind the inputs of a stage that itself reads the parameters `own`.

    `behind` holds for each input the stage that made it, and the parameters behind its result, flat.

    They have the names that they have in params.yaml; where inputs were made with another value than `own` or one another's, the
    name of the stage is put before: `taca_train.lora/seed`.
    """
    mine = flatten(own)
    found: dict[str, Any] = {}
    for stage, parameters in behind:
        for key, value in parameters.items():
            if {**found, **mine}.get(key, value) != value:
                found[f"{stage.replace('@', '.')}/{key}"] = value
            elif key not in mine:
                found[key] = value
    return found


def tracked_models(run: StageRun, done: Manifest) -> list[TrackedModel]:
    """Return the models among the outputs of a finished stage run, as MLflow's model pages show them."""
    if done.provenance is None:
        return []
    data = {f"data.{path}": f"sha256 {used.sha256}" for path, used in done.inputs.items()}
    made_by = {
        f"upstream.{used.stage.replace('@', '.')}": used.run for used in done.inputs.values() if used.stage and used.run
    }
    known = {
        "pipelines.stage": run.stage.name,
        "pipelines.arm": run.arm or "",
        "pipelines.fingerprint": done.fingerprint,
    }
    read = next(((path, used.sha256[:32]) for path, used in done.inputs.items() if path.startswith("data/")), None)
    return [
        TrackedModel(
            path=path,
            tags={**known, "sha256": digest(files), "dvc.md5": done.md5.get(path) or "", **data, **made_by},
            parameters={key: str(value) for key, value in mlflow_parameters(done.provenance, run.arm).items()},
            dataset=read,
        )
        for path, files in done.outputs.items()
        if path.startswith(("models/", "pretraining/")) and "" not in files
    ]


def input_record(name: str, path: Path, digests: Mapping[str, str], made_by: Manifest | None) -> InputRecord:
    """Return the record of an input with these `tree_digests`; `made_by` is the manifest of the run that made it, if known."""
    made = {"stage": made_by.stage, "fingerprint": made_by.fingerprint, "run": made_by.run} if made_by else {}
    return InputRecord(name=name, sha256=digest(dict(digests)), md5=dvc_md5(path, CHEAP_BYTES), **made)


def sources_digest(run: StageRun) -> str:
    """Return the SHA-256 over the source files behind a stage."""
    return digest({source: file_digest(ROOT / source) for source in stage_sources(run.stage)})


def fingerprinted_now(run: StageRun, params: ParameterFile) -> dict[str, Any]:
    """Return `StageRecord.fingerprinted` of a run of this stage with the present code and packages."""
    return {
        "code": sources_digest(run),
        LOCK: file_digest(ROOT / LOCK),
        "parameters": params.only(run.stage.reads),
        "threads": params.compute.threads,
    }


def environment() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute, without importing them."""
    versions = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "none"
    return versions


@cache
def hardware() -> dict[str, Any]:
    """Return processor, usable cores, memory in GB, and GPUs ("none" without)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_gb": round(memory, 1),
        "gpu": ", ".join(_gpus()) or "none",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # not installed, or a driver that hangs
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()] if found.returncode == 0 else []


def ray_ids() -> dict[str, str]:
    """Return the ids of the Ray job that this process runs in; {} outside of one."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    submission = os.environ.get("RAY_JOB_SUBMISSION_ID") or config.get("metadata", {}).get("job_submission_id", "")
    known = {"submission": submission, "job": os.environ.get("RAY_JOB_ID", "")}
    return {name: value for name, value in known.items() if value}
