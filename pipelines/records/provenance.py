"""Where a result comes from: all that is written beside it, so that it can be traced, checked and made again.

Two forms of one record. MLflow shows and compares its tags (`tags_of`); whole, it goes into the DONE manifest under "provenance",
and with that as an artifact into the run:

    revision      git commit, whether the tree differed, digest of the stored patch, files that are not in the patch
    parameters    the keys of params.yaml that the stage read, as it read them
    inputs        by path: SHA-256 of the tree, DVC's md5 where that is cheap, and stage, fingerprint and run that made it
    sources       SHA-256 over the source files behind the stage
    lock          SHA-256 of requirements.lock
    threads, seed
    environment   versions of Python and of the packages that compute
    hardware      of the machine of the runner
    ray           job and submission ids, where it runs in a Ray job
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from components.files import file_digest
from pipelines.dvc_files.dvc_lock import dvc_md5
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK, digest
from pipelines.params import Parameters
from pipelines.records.code_state import CodeState

PACKAGES = ("torch", "ray", "mlflow", "dvc", "diffusers", "open_clip_torch")
CHEAP_BYTES = 64 * 2**20
"""Up to this size DVC's md5 of a tree is computed as well."""


def record_of(
    run: StageRun, own: Mapping[str, Any], params: Parameters, code: CodeState, inputs: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The record of a stage run about to start. `own` holds the parameters that it reads, `inputs` an `input_record` by path."""
    return {
        "revision": {
            "commit": code.revision,
            "dirty": code.dirty,
            "patch": code.patch_digest,
            "left_out": list(code.left_out),
        },
        "parameters": dict(own),
        "inputs": {path: dict(known) for path, known in inputs.items()},
        "sources": sources_digest(run),
        "lock": file_digest(ROOT / LOCK),
        "threads": params.compute.threads,
        "seed": params.seed,
        "environment": environment(),
        "hardware": hardware(),
        "ray": ray_ids(),
    }


def tags_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The record as MLflow tags: short, flat, the same names for every stage."""
    revision, machine = record["revision"], record["hardware"]
    tags = {
        "git.revision": revision["commit"],
        "git.dirty": str(revision["dirty"]).lower(),
        "git.patch": revision["patch"],
        "git.left_out": ", ".join(revision["left_out"])[:500],
        "env.lock": record["lock"],
        **{f"env.{name}": version for name, version in record["environment"].items()},
        **{f"host.{name}": str(value) for name, value in machine.items()},
        **{f"ray.{name}": value for name, value in record["ray"].items()},
        **{
            f"upstream.{made['stage'].replace('@', '.')}": made["run"]
            for made in record["inputs"].values()
            if made.get("run")
        },
    }
    return {key: value for key, value in tags.items() if value or key.startswith("git.")}


def input_record(path: Path, digests: Mapping[str, str], made_by: Mapping[str, Any] | None) -> dict[str, Any]:
    """One input: its SHA-256 (over `tree_digests`), DVC's md5, and the manifest of the stage that made it, where one is known."""
    known: dict[str, Any] = {"sha256": digest(dict(digests)), "md5": dvc_md5(path, CHEAP_BYTES)}
    if made_by:
        known |= {"stage": made_by["stage"], "fingerprint": made_by["fingerprint"], "run": made_by.get("run")}
    return known


def sources_digest(run: StageRun) -> str:
    return digest({source: file_digest(ROOT / source) for source in stage_sources(run.stage)})


def environment() -> dict[str, str]:
    """Versions of Python and of the packages that compute, read without importing them."""
    versions = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "none"
    return versions


@cache
def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory in GB, and graphics cards ("none" without)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": _cpu_model(), "cores": cores, "memory_gb": round(memory, 1), "gpu": ", ".join(_gpus()) or "none"}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()] if found.returncode == 0 else []


def ray_ids() -> dict[str, str]:
    """Of the Ray job that this process runs in, as Ray tells it; nothing elsewhere."""
    job = (
        json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
        .get("metadata", {})
        .get("job_submission_id", "")
    )
    known = {"submission": os.environ.get("RAY_JOB_SUBMISSION_ID") or job, "job": os.environ.get("RAY_JOB_ID", "")}
    return {name: value for name, value in known.items() if value}
