import json
import shutil

import pytest

from pipelines import presets
from pipelines.__main__ import main
from pipelines.identity.closure import ROOT


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A workspace with the results of one arm, on the drawn set."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "metrics/gadms_evaluate").mkdir(parents=True)
    results(tmp_path, dataset="drawn")
    monkeypatch.setenv("COLUMNS", "150")
    return tmp_path


def results(root, **stated):
    metrics = {"R@1": 76.54, "mAP": 60.0, "queries": 6156.0, "gallery": 3074, **stated}
    (root / "metrics/gadms_evaluate/gadms.json").write_text(json.dumps(metrics))


def board(root, capsys, *options):
    code = main(["--workspace", str(root), "leaderboard", *options])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_own_results_stand_among_those_of_the_set_they_were_made_on(root, capsys):
    results(root, dataset="CUHK-PEDES", left_out={"pictures": 0, "captions": 0})
    _, out, _ = board(root, capsys, "--dataset", "cuhk-pedes")
    lines = [line for line in out.splitlines() if "│" in line]
    (own,) = [i for i, line in enumerate(lines) if "here" in line]
    assert "gadms" in lines[own]
    assert "76.54" in lines[own]
    assert float(lines[own - 1].split("│")[2]) >= 76.54 >= float(lines[own + 1].split("│")[2])
    for options in (("--dataset", "rstpreid"), ("--dataset", "cuhk-pedes", "--setting", "direct transfer")):
        assert "76.54" not in board(root, capsys, *options)[1]


def test_a_test_split_that_is_not_whole_is_marked_in_the_table(root, capsys):
    results(root, dataset="cuhk-pedes", left_out={"pictures": 2, "captions": 4}, queries=6152.0, gallery=3072)
    _, out, _ = board(root, capsys, "--dataset", "cuhk-pedes")
    (own,) = [line for line in out.splitlines() if "76.54" in line]
    assert "here *" in own
    assert " *  gadms: computed here, on another test split, 6,152 captions (published 6,156)" in out


def test_results_stand_by_their_own_record_and_not_by_the_parameters_of_now(root, capsys):
    presets.edit(root / "params.yaml", {"prepare": {"source": "cuhk-pedes"}})  # as the preset does, and nothing is run
    for stated in ({"dataset": "drawn"}, {}):
        results(root, **stated)
        _, out, _ = board(root, capsys, "--dataset", "cuhk-pedes")
        assert "here" not in [cell.strip() for line in out.splitlines() for cell in line.split("│")]
    assert "do not state their data set are left out: R@1 gadms 76.5" in " ".join(out.split())


def test_results_on_drawn_people_are_said_to_compare_with_nothing(root, capsys):
    code, out, _ = board(root, capsys)
    assert code == 0
    assert [name in out for name in ("cuhk-pedes", "icfg-pedes", "rstpreid")] == [True] * 3
    assert "here" not in [cell.strip() for line in out.splitlines() for cell in line.split("│")]
    assert "on 'drawn' and cannot be compared with these: R@1 gadms 76.5" in " ".join(out.split())


def test_without_results_the_published_ones_are_shown_and_an_unknown_set_is_refused(root, capsys):
    shutil.rmtree(root / "metrics")
    code, out, _ = board(root, capsys, "--dataset", "icfg-pedes")
    assert (code, "This workspace has no results." in " ".join(out.split())) == (0, True)
    code, _, err = board(root, capsys, "--dataset", "market")
    assert (code, err.count("\n")) == (2, 1)
