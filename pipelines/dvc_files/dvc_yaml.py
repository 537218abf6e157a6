"""Writes `dvc.yaml` from the graph, and the list of outputs for `.gitignore`.

DVC's dependencies of a stage are its inputs and the source files that its fingerprint counts, so that DVC and the runner agree on
what is stale. A test fails when the file and the graph differ.
"""

from pathlib import Path
from typing import Any

import yaml

from pipelines.graph import Stage, all_runs, all_stages
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK

THREADS = "compute.threads"
HEADER = "# Written by `make dag` from pipelines/graph.py. Change that, not this.\n"


def dvc_document() -> dict[str, Any]:
    """Return the content of `dvc.yaml`."""
    curves = [run.curves for run in all_runs() if run.curves]
    return {
        "stages": {stage.name: _entry(stage) for stage in all_stages()},
        "plots": [{path: {"x": "step", "template": "linear", "title": _title(path)}} for path in curves],
    }


def render() -> str:
    """Return the text of `dvc.yaml`."""
    return HEADER + yaml.safe_dump(dvc_document(), sort_keys=False, width=120)


def write(root: Path = ROOT) -> Path:
    """Write `dvc.yaml` and return its path."""
    path = root / "dvc.yaml"
    path.write_text(render(), encoding="utf-8")
    return path


def _entry(stage: Stage) -> dict[str, Any]:
    if not stage.arms:
        return _body(stage, None, stage.inputs, suffix="")
    if not stage.arm_inputs:
        body = _body(stage, "${item.arm}", stage.inputs, suffix="@${item.arm}")
        return {"matrix": {"arm": list(stage.arms)}, **body}
    # DVC's lists cannot differ in length between arms, so each has as many paths as the longest; an arm with fewer repeats one of
    # its own, which DVC takes as the same dependency.
    longest = max(len(stage.arm_inputs.get(arm, {})) for arm in stage.arms)
    own = {arm: [path.format(arm=arm) for path in stage.arm_inputs.get(arm, {}).values()] for arm in stage.arms}
    spare = next(iter(stage.inputs.values()), None)
    items = {}
    for arm in stage.arms:
        paths = own[arm] + [spare or own[arm][-1]] * (longest - len(own[arm]))
        items[arm] = {f"input{i}": path for i, path in enumerate(paths)}
    inputs = {**stage.inputs, **{f"input{i}": f"${{item.input{i}}}" for i in range(longest)}}
    return {"foreach": items, "do": _body(stage, "${key}", inputs, suffix="@${key}")}


def _body(stage: Stage, arm: str | None, inputs: Any, suffix: str) -> dict[str, Any]:
    def fill(path: str) -> str:
        return path.replace("{arm}", arm or "")

    table = arm or "all"
    sources = [*stage_sources(stage), LOCK]
    body: dict[str, Any] = {
        "cmd": f"python -m pipelines run {stage.name}{suffix}",
        "deps": [*map(fill, inputs.values()), *sources],
        "params": [*stage.reads, THREADS],
        "outs": [fill(path) for path in stage.outputs.values()],
    }
    if stage.curves:
        body["outs"].append(f"curves/{stage.name}/{table}.csv")
    # Of DVC's `metrics`, each number is a column of `dvc exp show`.
    body["outs"].append({f"metrics/{stage.name}/{table}.json": {"cache": False}})
    if stage.headlines:
        body["metrics"] = [{f"metrics/{stage.name}/{table}.headlines.json": {"cache": False}}]
    return body


def _title(path: str) -> str:
    stage, arm = Path(path).parts[1:3]
    return stage + ("" if arm == "all.csv" else f" ({Path(arm).stem})")
