"""What the report page shows of benchmarks/sweeps.py. The numbers are made up."""

import json
from pathlib import Path
from typing import Any

import pytest

from components.errors import DataError
from pipelines.reporting.formats import environment
from pipelines.reporting.sweep_costs import MEASURED, sweep_costs
from pipelines.workspace import Workspace

MACHINE = {"cores": 2, "machine": "x86_64", "python": "3.11.7"}
SIDE = {"best": 61.5, "trial": 3, "seconds": 1234.4, "steps": 7680, "counts": {"finished": 16}}
ASHA = {
    "full": SIDE,
    "asha": {**SIDE, "best": 60.25, "seconds": 432.1, "steps": 1440, "counts": {"finished": 2, "stopped": 14}},
    "share_of_seconds": 0.35,
    "share_of_steps": 0.1875,
    "seeds_of_the_best": [61.5, 59.0, 60.0],
    "seed_noise": 1.26,
    "behind_by": 1.25,
    "within_noise": True,
    **MACHINE,
}
OVERHEAD = {
    "bare_seconds": 1.0,
    "stage_seconds": 5.5,
    "process_seconds": 7.0,
    "sweep_seconds": 7.25,
    "once_seconds": 12.0,
    "trials": 6,
    **MACHINE,
}


def rendered(root: Path, measured: dict[str, Any]) -> str:
    file = root / MEASURED
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(measured))
    return environment(root).get_template("sweeps.html").render(sweeps=sweep_costs(Workspace(root, root)))


def test_both_sides_are_shown_with_what_stopping_early_saved(tmp_path):
    html = rendered(tmp_path, {"asha": ASHA, "overhead": OVERHEAD})
    for shown in (
        "61.5",
        "60.2",
        "1234",
        "432",
        "7680",
        "35 %",
        "19 %",
        "−1.2",
        "Seed noise is 1.3",
        "within it",
        "7.2 s",
    ):
        assert shown in html, shown


def test_what_was_not_measured_is_left_out(tmp_path):
    html = rendered(tmp_path, {"overhead": OVERHEAD})
    assert "12.0 s" in html
    assert "ASHA" not in html
    assert sweep_costs(Workspace(tmp_path / "none", tmp_path)) is None


def test_a_torn_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"benchmarks/results/sweeps\.json: cannot be shown .* benchmarks/sweeps\.py"):
        rendered(tmp_path, {"asha": {}})
