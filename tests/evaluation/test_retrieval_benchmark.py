"""The benchmark's dense form is a second implementation of the metrics: where there are no ties, both must agree."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from components.evaluation.retrieval import retrieval_metrics

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/retrieval.py"


@pytest.mark.parametrize("size", [40, 500])
def test_the_dense_form_and_ours_agree(size):
    benchmark = runpy.run_path(str(SCRIPT))
    queries, gallery, people = (t.double() if t.is_floating_point() else t for t in benchmark["embeddings"](size))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1))  # not all of one person in a row
    theirs = benchmark["dense"](queries, gallery[order], people, people[order])
    ours = retrieval_metrics(queries, gallery[order], people, people[order], chunk=64)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-10)


@pytest.mark.slow
@pytest.mark.heavy
def test_it_measures_each_method_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, SCRIPT, "--sizes", "300", "--json", tmp_path / "out.json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["largest_difference"] < 1e-6
    assert row["dense"]["peak_mb"] > row["dense"]["before_mb"] * 0.99 > 50
    assert "300" in done.stdout
