"""Search spaces: what may stand in one, what is refused before anything starts, and which stages a trial runs."""

import itertools

import pytest
import yaml

from components.errors import ParameterError
from pipelines import params
from pipelines.identity.closure import ROOT
from pipelines.sweeps.constraints import constraint_holds
from pipelines.sweeps.documents import with_values
from pipelines.sweeps.plan import make_plan
from pipelines.sweeps.spaces import Distribution, Space, configuration_key, read_space
from pipelines.sweeps.validation import base_document, validate, values_outside

RATE, DECAY = "probe.training.learning_rate", "probe.training.weight_decay"
FORM, THRESHOLD = "taca.form", "taca.threshold"


def space_of(**changes):
    plain = {
        "about": "a test",
        "stages": ["probe"],
        "parameters": {RATE: {"loguniform": [0.001, 0.01]}, DECAY: {"choice": [0.0, 0.1]}},
        "objectives": [{"stage": "probe", "metric": "balanced_accuracy", "mode": "max"}],
    }
    return {**plain, **changes}


@pytest.fixture(scope="module")
def own():
    return params.load(ROOT / "params.yaml")


def checked(own, **changes):
    space = Space.model_validate(space_of(**changes))
    document = base_document(space, "test", own)
    validate(space, "test", document)
    return space, document


@pytest.mark.parametrize("name", ["taca", "gadms", "chain"])
def test_the_spaces_of_this_project_are_valid_for_its_params(name, own):
    space = read_space(name)
    validate(space, name, base_document(space, name, own))


def test_sweeps_are_stages_of_dvc_too():
    stages = yaml.safe_load((ROOT / "pipelines/sweeps/dvc.yaml").read_text())["stages"]["sweep"]
    assert stages["do"]["wdir"] == "../.."
    assert "outs" not in stages["do"]  # `dvc checkout` would miss those of sweeps that never ran
    for name in stages["foreach"]:
        assert (ROOT / "pipelines/sweeps" / f"{name}.yaml").is_file()


def test_a_recipe_whose_own_rate_is_not_searched_is_told_of(own):
    rate = own.probe.training.learning_rate
    _, document = checked(own)
    space = Space.model_validate(space_of(parameters={RATE: {"loguniform": [rate * 2, rate * 4]}}))
    (line,) = values_outside(space, document)
    assert line.startswith(f"{RATE}: {rate:g} of params.yaml is not among")
    for bounds in ([rate, rate * 2], [rate / 2, rate]):
        assert not values_outside(Space.model_validate(space_of(parameters={RATE: {"loguniform": bounds}})), document)


REFUSED = {
    "an unknown path": ({"parameters": {"probe.training.rate": {"choice": [1]}}}, "probe.training.rate: not a key"),
    "a value of the wrong type": ({"parameters": {RATE: {"choice": ["fast"]}}}, "valid number"),
    "a bound out of range": ({"parameters": {RATE: {"uniform": [0.1, 1.5]}}}, "1.5: input should be less than"),
    "no distribution": ({"parameters": {RATE: {"when": {}}}}, "needs one of choice"),
    "two distributions": ({"parameters": {RATE: {"choice": [1], "uniform": [0, 1]}}}, "needs one of choice"),
    "falling bounds": ({"parameters": {RATE: {"uniform": [0.2, 0.1]}}}, "rising bounds"),
    "where it runs": ({"parameters": {"compute.workers": {"choice": [1]}}}, "results do not depend on it"),
    "the seed": ({"parameters": {"seed": {"choice": [1]}}}, "--seeds"),
    "a parameter that no stage reads": ({"parameters": {"taca.gamma": {"choice": [1.2]}}}, "none of the stages"),
    "an unknown stage": ({"stages": ["sonde"]}, "test.yaml: stage 'sonde' does not exist"),
    "an objective of a stage that is not run": (
        {"objectives": [{"stage": "base_model", "metric": "vae_psnr", "mode": "max"}]},
        "add it to stages",
    ),
    "a base that is not in params.yaml": ({"base": {"prob": {}}}, "base: prob: not a key"),
    "a base out of range": ({"base": {"probe": {"training": {"steps": 0}}}}, "probe.training.steps = 0"),
    "a constraint that names nothing": (
        {"constraints": ["probe.training.stops < 3"]},
        "probe.training.stops: not a key",
    ),
    "a constraint that is code": (
        {"constraints": ["probe.training.steps < __import__('os')"]},
        "is not a path, a number or a comparison",
    ),
    "a constraint that compares nothing": (
        {"constraints": ["probe.training.steps"]},
        "constraint 'probe.training.steps': 'probe.training.steps' is not a comparison",
    ),
    "a constraint that compares nothing in a part": (
        {"constraints": ["probe.training.steps > 1 or not probe.training.warmup_steps"]},
        "'probe.training.warmup_steps' is not a comparison",
    ),
    "a condition on a value that never comes": (
        {"parameters": {DECAY: {"choice": [0.0]}, RATE: {"uniform": [0.1, 0.2], "when": {DECAY: [0.3]}}}},
        "is never one of",
    ),
    "a point outside of the parameters": ({"points": [{"probe.training.steps": 3}]}, "not among the parameters"),
    "a grid of a continuous parameter": ({"searcher": "grid"}, "a grid needs"),
    "a scheduler with nothing to look at": (
        {"scheduler": {"kind": "asha", "stage": "prepare", "metric": "x", "mode": "max", "full": "seed", "grace": 1}},
        "grace 1 must be below seed = 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_space_that_cannot_run_is_refused_in_one_line(case, own, tmp_path):
    changes, reason = REFUSED[case]
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(space_of(**changes), sort_keys=False))

    def read():
        space = read_space("test", tmp_path)
        validate(space, "test", base_document(space, "test", own))

    with pytest.raises(ParameterError) as refused:
        read()
    assert reason in str(refused.value)
    assert str(refused.value).startswith("test.yaml: ")
    assert "\n" not in str(refused.value)


FINETUNE = "gadms_finetune.training"


@pytest.mark.parametrize("name", ["gadms", "chain", "schedule"])
def test_metrics_of_validation_are_refused_where_nothing_is_validated(name, own):
    space = read_space(name)
    document = with_values(base_document(space, name, own), {f"{FINETUNE}.validate_every": None})
    with pytest.raises(ParameterError) as refused:
        validate(space, name, document)
    assert str(refused.value).startswith(
        f"{name}.yaml: gadms_finetune@gadms has no selected.val/R@1 with {FINETUNE}.validate_every = null: set that"
    )
    assert "\n" not in str(refused.value)


def test_a_watched_metric_of_validation_is_refused_too_and_any_other_is_not(own):
    space = read_space("gadms")
    validate_every = {f"{FINETUNE}.validate_every": None}
    document = with_values(base_document(space, "gadms", own), validate_every)
    (objective,) = space.objectives
    by_loss = [objective.model_copy(update={"metric": "train/loss", "mode": "min"})]
    with pytest.raises(ParameterError, match="has no val/R@1 with"):
        validate(space.model_copy(update={"objectives": by_loss}), "gadms", document)
    validate(space.model_copy(update={"objectives": by_loss, "scheduler": None}), "gadms", document)
    searched = {**space.parameters, f"{FINETUNE}.validate_every": Distribution(choice=[50, 100])}
    validate(space.model_copy(update={"parameters": searched}), "gadms", document)


def test_an_unknown_space_names_those_there_are(tmp_path):
    (tmp_path / "one.yaml").write_text("")
    with pytest.raises(ParameterError, match="'two' does not exist: one of one"):
        read_space("two", tmp_path)


def test_a_parameter_whose_condition_does_not_hold_has_no_value(own):
    parameters = {
        FORM: {"choice": ["constant", "linear"]},
        THRESHOLD: {"choice": [0.5, 0.9], "when": {FORM: ["linear"]}},
    }
    stages = ["taca_generate@taca"]
    objectives = [{"stage": "taca_generate@taca", "metric": "steps", "mode": "max"}]
    space, document = checked(own, parameters=parameters, stages=stages, objectives=objectives, searcher="grid")
    assert list(space.grid(document)) == [
        {FORM: "constant"},
        {FORM: "linear", THRESHOLD: 0.5},
        {FORM: "linear", THRESHOLD: 0.9},
    ]


def test_a_grid_holds_every_combination_that_the_constraints_allow(own):
    parameters = {
        "probe.training.steps": {"int": [10, 30], "step": 10},
        "probe.training.warmup_steps": {"choice": [5, 15, 25]},
    }
    rule = "probe.training.warmup_steps < probe.training.steps and probe.training.steps % 20 != 1"
    space, document = checked(own, parameters=parameters, constraints=[rule], searcher="grid")
    brute = [(steps, warm) for steps, warm in itertools.product((10, 20, 30), (5, 15, 25)) if warm < steps]
    assert [tuple(values.values()) for values in space.grid(document)] == brute


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        ("a.b < 3", True),
        ("a.b * 2 + 1 >= 6", False),
        ("1 < a.b <= 2", True),
        ("a.b == 2 and not a.c == 'x'", False),
        ("a.b / 4 > 1 or a.c == 'x'", True),
        ("-a.b < 0", True),
    ],
)
def test_a_constraint_compares_parameters(constraint, expected):
    assert constraint_holds(constraint, {"a": {"b": 2, "c": "x"}}) is expected


def test_values_are_set_without_touching_the_document(own):
    document = own.model_dump(mode="json")
    whole = with_values(document, {RATE: 0.5})
    assert whole["probe"]["training"]["learning_rate"] == 0.5
    assert document == own.model_dump(mode="json")


def test_a_configuration_is_known_by_its_values_and_not_by_their_order():
    assert (
        configuration_key({"a": 1, "b": [2]})
        == configuration_key({"b": [2], "a": 1})
        != configuration_key({"a": 1, "b": [3]})
    )


def names(runs):
    return [run.address for run in runs]


def test_only_what_a_parameter_reaches_is_run_in_a_trial():
    plan = make_plan(["gadms_finetune@gadms"], ["taca.gamma"])
    assert names(plan.shared) == ["prepare", "base_model", "taca_cache"]
    assert names(plan.upstream) == ["taca_train@taca", "taca_generate@taca_lora", "curate", "gadms_pretrain@gadms"]
    assert names(plan.repeated) == ["gadms_finetune@gadms"]
    assert plan.linked == ["data/people", "data/taca_cache", "models/base", "models/base.json"]
    assert plan.given == ["data/raw"]


def test_what_lies_between_two_repeated_stages_is_repeated():
    plan = make_plan(["curate", "gadms_finetune@gadms"], ["gadms_finetune.training.learning_rate"])
    assert names(plan.repeated) == ["curate", "gadms_pretrain@gadms", "gadms_finetune@gadms"]
    assert plan.upstream == ()
