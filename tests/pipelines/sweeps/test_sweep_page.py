"""The page of a sweep, from a results file as sweeps write it."""

import json

import pytest

from components.errors import DataError
from pipelines.sweeps.journal import COMPLETE, STOPPED
from pipelines.sweeps.page import as_study, interval_text, write_sweep_page

PARAMETERS = [
    {"path": "gadms_finetune.training.learning_rate", "loguniform": [1e-4, 1e-2], "before": 0.001},
    {"path": "retrieval.layers", "int": [1, 4], "before": 2},
    {"path": "gadms_finetune.method.score", "choice": ["gradient", "path"], "before": "gradient"},
]


def document(objectives=("gadms_evaluate@gadms/R@1",)):
    """Nine trials, the sixth stopped early; the objective is best at the fifth."""
    trials = []
    for number in range(9):
        done = number != 5
        trials.append(
            {
                "number": number,
                "key": f"{number:010d}",
                "state": COMPLETE if done else STOPPED,
                "values": {
                    "gadms_finetune.training.learning_rate": 1e-4 * 1.6**number,
                    "retrieval.layers": 1 + number % 4,
                    "gadms_finetune.method.score": ["gradient", "path"][number % 2],
                },
                "objectives": {
                    name: {
                        "values": [40 - (number - 4) ** 2 + place * number],
                        "mean": 40 - (number - 4) ** 2 + place * number,
                    }
                    for place, name in enumerate(objectives)
                }
                if done
                else {},
                "reports": [[100, 20.0 + number]],
                "seconds": 30.0 if done else 10.0,
                "stages": [],
                "run": f"{number:032d}",
                "error": None,
            }
        )
    return {
        "schema": 1,
        "sweep": "gadms-12345678",
        "space": "gadms",
        "about": "Which learning rate?",
        "parameters": PARAMETERS,
        "objectives": [{"name": name, "mode": "max"} for name in objectives],
        "scheduler": {"kind": "asha", "grace": 100, "steps": 300},
        "counts": {COMPLETE: 8, STOPPED: 1, "failed": 0, "waiting": 0},
        "seconds": 250.0,
        "best": 4,
        "pareto": [4],
        "trials": trials,
    }


@pytest.mark.parametrize("objectives", [("R@1",), ("R@1", "cost/seconds")])
def test_every_drawing_that_the_trials_allow_is_on_the_page(tmp_path, objectives):
    (tmp_path / "results.json").write_text(json.dumps(document(objectives)))
    text = write_sweep_page(tmp_path / "results.json").read_text()
    titles = ["Cost to reach a value"]
    for name in objectives:
        titles += [f"History: {name}", f"What mattered: {name}", f"Parallel coordinates: {name}"]
    titles += ["Pareto front"] * (len(objectives) > 1)
    for title in titles:
        assert f"<h3>{title}</h3>" in text
    assert text.count("<img ") == len(titles)
    assert f"promote {4:032d}" in text
    assert '<tr class="best"><td class="n">4</td>' in text


def test_optuna_sees_the_trials_as_they_ended():
    study = as_study(document())
    assert study.best_trial.params["retrieval.layers"] == 1
    assert study.best_value == 40
    assert [trial.state.name for trial in study.trials].count("PRUNED") == 1
    assert study.trials[5].intermediate_values == {100: 25.0}


def test_values_outside_of_the_space_are_left_out_of_the_drawings(tmp_path):
    """Those of params.yaml, which a point tries first: beyond a bound, between two steps, or a rule in place of a number."""
    outside = document()
    outside["parameters"] = [*PARAMETERS[:2], {"path": "taca.threshold", "uniform": [0.5, 0.9], "before": {}}]
    outside["parameters"][1] = {"path": "retrieval.layers", "int": [100, 500], "step": 50, "before": 700}
    for trial, layers, rule in zip(outside["trials"], (700, 460, 150), ({"fraction": 0.1}, None, 0.6), strict=False):
        trial["values"] = {
            "gadms_finetune.training.learning_rate": 0.5,
            "retrieval.layers": layers,
            "taca.threshold": rule,
        }
    for trial in outside["trials"][3:]:
        trial["values"] = {"retrieval.layers": 200, "taca.threshold": 0.7}
    params = [trial.params for trial in as_study(outside).trials[:3]]
    assert params == [{}, {}, {"retrieval.layers": 150, "taca.threshold": 0.6}]
    (tmp_path / "results.json").write_text(json.dumps(outside))
    assert "<h3>History" in write_sweep_page(tmp_path / "results.json").read_text()


def test_a_sweep_without_a_finished_trial_has_a_page_too(tmp_path):
    empty = {**document(), "trials": [], "best": None}
    (tmp_path / "results.json").write_text(json.dumps(empty))
    assert "No trial has finished" in write_sweep_page(tmp_path / "results.json").read_text()


def test_no_results_is_one_line(tmp_path):
    with pytest.raises(DataError, match="no results of a sweep"):
        write_sweep_page(tmp_path / "results.json")


def test_intervals_are_told_where_there_are_seeds():
    assert interval_text({"values": [1, 3], "mean": 2.0, "low": 1.5, "high": 2.5}) == "2 [1.5, 2.5]"
    assert interval_text({"values": [2], "mean": 2.0}) == "2"
    assert interval_text({}) == "–"
