"""Suggestions: inside the space, never twice, and the same again for a sweep that was killed."""

import math

import pytest

from pipelines.sweeps.journal import BROKEN, COMPLETE, STOPPED, Trial
from pipelines.sweeps.spaces import Space
from pipelines.sweeps.suggesting import suggest

DOCUMENT = {"seed": 0, "x": 5.0, "rate": 0.5, "kind": "round", "corners": 4, "steps": 1}


def space_of(**changes):
    plain = {
        "about": "a test",
        "stages": ["probe"],
        "parameters": {
            "x": {"uniform": [0.0, 10.0]},
            "rate": {"loguniform": [0.001, 1.0]},
            "kind": {"choice": ["round", "square"]},
            "corners": {"int": [2, 10], "step": 2, "when": {"kind": ["square"]}},
        },
        "objectives": [{"stage": "probe", "metric": "m", "mode": "min"}],
    }
    return Space.model_validate({**plain, **changes})


def value(values):
    return (values["x"] - 3) ** 2 + math.log10(values["rate"] / 0.1) ** 2 + (values["kind"] == "square")


def sweep(space, count, judge=value, seed=0, earlier=()):
    trials = []
    for number in range(count):
        values = suggest(space, DOCUMENT, seed, number, trials, earlier)
        assert values is not None
        trials.append(Trial(number, values, state=COMPLETE, objectives=[[judge(values)]]))
    return trials


@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_suggestions_stay_in_the_space_keep_constraints_and_never_repeat(searcher):
    space = space_of(searcher=searcher, constraints=["x + corners > 4"])
    trials = sweep(space, 20)
    assert len({trial.key for trial in trials}) == 20
    for trial in trials:
        values = trial.values
        assert 0 <= values["x"] <= 10
        assert 0.001 <= values["rate"] <= 1
        assert ("corners" in values) == (values["kind"] == "square")
        assert values.get("corners", 4) in (2, 4, 6, 8, 10)
        assert values["x"] + values.get("corners", DOCUMENT["corners"]) > 4
        assert float(f"{values['rate']:.6g}") == values["rate"]


def test_a_suggestion_depends_on_its_number_and_on_results_and_on_nothing_else():
    space = space_of()
    first = sweep(space, 14)
    again = [suggest(space, DOCUMENT, 0, number, first[:number]) for number in reversed(range(14))]
    assert again[::-1] == [trial.values for trial in first]
    assert suggest(space, DOCUMENT, 1, 0, []) != first[0].values


def test_random_suggestions_do_not_look_at_results():
    space = space_of(searcher="random")
    assert [t.values for t in sweep(space, 12)] == [t.values for t in sweep(space, 12, lambda values: -value(values))]


def test_tpe_comes_closer_than_random_draws():
    """The best of 30, added up over 3 seeds; the optimum is 0."""
    best = {
        searcher: [min(t.means()[0] for t in sweep(space_of(searcher=searcher), 30, seed=seed)) for seed in range(3)]
        for searcher in ("tpe", "random")
    }
    assert sum(best["tpe"]) < 0.5 * sum(best["random"])


def test_points_come_first_and_take_the_rest_from_params():
    space = space_of(points=[{}, {"x": 1.0, "kind": "square"}])
    known = []
    for number in range(2):
        known.append(Trial(number, suggest(space, DOCUMENT, 0, number, known)))
    assert known[0].values == {"x": 5.0, "rate": 0.5, "kind": "round"}
    assert known[1].values == {"x": 1.0, "rate": 0.5, "kind": "square", "corners": 4}


@pytest.mark.parametrize("own", [{"fraction": 0.1}, None, 70.0, True])
def test_a_point_of_params_yaml_may_lie_outside_of_the_space(own):
    space = space_of(points=[{}])
    first = suggest(space, DOCUMENT | {"x": own}, 0, 0, [])
    assert first["x"] == own
    known = [Trial(0, first, state=COMPLETE, objectives=[[1.0]])]
    assert 0 <= suggest(space, DOCUMENT | {"x": own}, 0, 1, known)["x"] <= 10


def test_a_grid_ends_and_so_does_a_small_space():
    parameters = {"steps": {"int": [1, 3]}, "kind": {"choice": ["round", "square"]}}
    for searcher in ("grid", "random", "tpe"):
        space, known = space_of(searcher=searcher, parameters=parameters), []
        while (values := suggest(space, DOCUMENT, 0, len(known), known)) is not None:
            known.append(Trial(len(known), values, state=COMPLETE, objectives=[[1.0]]))
        assert {tuple(t.values.values()) for t in known} == {(s, k) for s in (1, 2, 3) for k in ("round", "square")}


def test_trials_that_failed_were_stopped_or_still_run_are_learned_from_without_harm():
    space = space_of(
        scheduler={"kind": "asha", "stage": "probe", "metric": "m", "mode": "min", "full": "steps", "grace": 1}
    )
    known = sweep(space, 10)
    for number, state in enumerate((BROKEN, STOPPED, "waiting"), start=10):
        known.append(Trial(number, suggest(space, DOCUMENT, 0, number, known), state=state, reports={5: 1.0}))
    assert suggest(space, DOCUMENT, 0, 13, known) is not None


def test_an_earlier_sweep_helps_from_the_first_trial_on():
    space = space_of()
    earlier = sweep(space, 30)
    cold = [suggest(space, DOCUMENT, seed, 0, []) for seed in range(20, 30)]
    warm = [suggest(space, DOCUMENT, seed, 0, [], earlier) for seed in range(20, 30)]
    assert sum(map(value, warm)) < 0.3 * sum(map(value, cold))


def test_two_objectives_are_searched_together():
    objectives = [
        {"stage": "probe", "metric": "m", "mode": "min"},
        {"stage": "probe", "metric": "cost/seconds", "mode": "min"},
    ]
    space, known = space_of(objectives=objectives), []
    for number in range(12):
        values = suggest(space, DOCUMENT, 0, number, known)
        known.append(Trial(number, values, state=COMPLETE, objectives=[[value(values)], [values["x"]]]))
    assert len({trial.key for trial in known}) == 12
