"""Writes `pretraining/dvc.yaml`, the pipeline of pre-training, from the graph.

It is not part of the default `dvc repro`. Its outputs have no DVC cache, so that `dvc pull` and `dvc checkout` do not miss what
nobody has trained: the checkpoints are in git, and what they are made of is in the scratch root.
"""

from pathlib import Path
from typing import Any

import yaml

from pipelines.dvc_files.dvc_yaml import HEADER, THREADS
from pipelines.graph import PRETRAINING, RECIPE, Stage, StageRun
from pipelines.identity.closure import ROOT, stage_sources
from pipelines.identity.fingerprint import LOCK

FILE = "pretraining/dvc.yaml"


def render() -> str:
    """Return the text of `pretraining/dvc.yaml`."""
    document = {"stages": {stage.name.removeprefix("pretrain_"): _entry(stage) for stage in PRETRAINING}}
    return HEADER + yaml.safe_dump(document, sort_keys=False, width=120)


def write(root: Path = ROOT) -> Path:
    """Write `pretraining/dvc.yaml` and return its path."""
    path = root / FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text(render(), encoding="utf-8")
    return path


def _entry(stage: Stage) -> dict[str, Any]:
    return {
        "wdir": "..",
        "cmd": f"python -m pipelines pretrain {stage.name.removeprefix('pretrain_')}",
        "deps": [*stage.inputs.values(), *stage_sources(stage), LOCK],
        "params": [{RECIPE: [*stage.reads, THREADS]}],
        "outs": [{path: {"cache": False}} for path in StageRun(stage, None).all_outputs],
    }
