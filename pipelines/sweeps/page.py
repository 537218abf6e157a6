"""The page of a sweep, made from its `results.json` (schema in docs/sweeps.md): trials, results, importance of parameters."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError
from components.files import write_atomically
from pipelines.reporting.formats import data_uri, environment
from pipelines.sweeps.journal import COMPLETE, STOPPED
from pipelines.sweeps.population_page import draw_population
from pipelines.sweeps.spaces import Distribution
from pipelines.sweeps.suggesting import lies_in, optuna_distribution

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure

PAGE = "index.html"
Drawing = tuple[str, str, Callable[[], Any]]
"""Title, note, and a function that returns a matplotlib figure, or None."""


def write_sweep_page(results: Path) -> Path:
    """Write `index.html` beside a sweep's `results.json` and return its path. Raises DataError when there is no such file."""
    try:
        document = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{results}: no results of a sweep ({type(error).__name__}); run `python -m pipelines sweep`"
        ) from error
    templates = environment(results.parent)
    templates.filters["interval"] = interval_text
    page = templates.get_template("sweep.html").render(
        sweep=document,
        best=next((trial for trial in document["trials"] if trial["number"] == document["best"]), None),
        objectives=[objective["name"] for objective in document["objectives"]],
        paths=[parameter["path"] for parameter in document["parameters"]],
        figures=figures(document),
    )
    target = results.with_name(PAGE)
    write_atomically(target, page)
    return target


def figures(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the figures that this sweep has enough trials for, each with a title and a note."""
    import matplotlib

    matplotlib.use("agg")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    drawn = []
    for title, note, draw in _drawings(document):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # optuna's drawings are marked experimental
            figure = draw()
        if figure is not None:
            drawn.append({"title": title, "note": note, "picture": _picture(figure)})
    return drawn


def _drawings(document: Mapping[str, Any]) -> list[Drawing]:
    import optuna.visualization.matplotlib as plots

    names = [objective["name"] for objective in document["objectives"]]
    study = as_study(document)
    finished = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    found: list[Drawing] = [
        (
            "Cost to reach a value",
            "The best finished value so far, against the seconds that all trials until then have taken.",
            partial(_cost_to_reach, document),
        )
    ]
    if document["scheduler"] and document["scheduler"]["kind"] == "pbt":
        note = "Members are compared at the dotted lines; the worst resume from one of the best, with other rates. Bold: the best."
        found.insert(0, ("The population", note, partial(draw_population, document)))
    if len(names) == 2 and finished:
        note = "No other trial is better in both objectives than those on the front."
        found.append(("Pareto front", note, lambda: plots.plot_pareto_front(study, target_names=names).figure))
    for place, name in enumerate(names if finished else []):
        of = {"target": _target(place) if len(names) > 1 else None, "target_name": name}
        history = partial(plots.plot_optimization_history, study, **of)
        found.append((f"History: {name}", "Every trial, and the best until then.", partial(_figure, history)))
        if len(finished) > 2 and len(document["parameters"]) > 1:
            note = "Share of the variance over the space that each parameter explains (fANOVA); with few trials a hint, no more."
            found.append((f"What mattered: {name}", note, partial(_importance, study, place, name)))
            note = "A line is a trial, its colour is its value."
            lines = partial(plots.plot_parallel_coordinate, study, **of)
            found.append((f"Parallel coordinates: {name}", note, partial(_figure, lines)))
    return found


def _figure(draw: Callable[[], Any]) -> Any:
    return draw().figure


def as_study(document: Mapping[str, Any]) -> "optuna.Study":
    """Return the sweep as an Optuna study: finished trials with their mean objectives, stopped ones with their reports."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions: dict[str, Any] = {"max": "maximize", "min": "minimize"}
    study = optuna.create_study(directions=[directions[objective["mode"]] for objective in document["objectives"]])
    distributions = {parameter["path"]: _distribution(parameter) for parameter in document["parameters"]}
    last = _last_of_lineages(document)
    names = [objective["name"] for objective in document["objectives"]]
    for trial in document["trials"]:
        plain = {path: _plain(value) for path, value in trial["values"].items() if path in distributions}
        known = {path: value for path, value in plain.items() if lies_in(distributions[path], value)}
        facts: dict[str, Any] = {"params": known, "distributions": {path: distributions[path] for path in known}}
        means = [trial["objectives"].get(name, {}).get("mean") for name in names]
        if trial["state"] == COMPLETE and None not in means:
            study.add_trial(optuna.create_trial(values=means, **facts))
        elif trial["state"] == STOPPED and len(names) == 1 and trial["number"] in last:
            reports = {int(step): value for step, value in trial["reports"]}
            pruned = optuna.trial.TrialState.PRUNED
            study.add_trial(optuna.create_trial(state=pruned, intermediate_values=reports, **facts))
    return study


def _last_of_lineages(document: Mapping[str, Any]) -> set[int]:
    """Return the numbers of trials that no other resumed from: each member of a population counts once, with its whole curve."""
    resumed = {trial.get("origin") for trial in document["trials"]}
    return {trial["number"] for trial in document["trials"]} - resumed


def _distribution(parameter: Mapping[str, Any]) -> Any:
    fields = {key: value for key, value in parameter.items() if key in Distribution.model_fields}
    choices = [_plain(value) for value in parameter.get("choice", ())]
    return optuna_distribution(Distribution.model_validate(fields), choices)


def _plain(value: Any) -> Any:
    """Return a choice as Optuna accepts it: lists and mappings as JSON text."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _target(place: int) -> Callable[["optuna.trial.FrozenTrial"], float]:
    return lambda trial: trial.values[place]


def _importance(study: "optuna.Study", place: int, name: str) -> Any:
    import optuna.visualization.matplotlib as plots
    from optuna.importance import FanovaImportanceEvaluator

    try:
        return plots.plot_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), target=_target(place), target_name=name
        ).figure
    except (RuntimeError, ValueError):  # all values equal, or a parameter that only some trials have
        return None


def _cost_to_reach(document: Mapping[str, Any]) -> "Figure | None":
    """Draw the best value against seconds spent, for the first objective."""
    from matplotlib.figure import Figure

    objective = document["objectives"][0]
    sign = 1 if objective["mode"] == "max" else -1
    seconds, best, spent, reached = 0.0, None, [], []
    for trial in document["trials"]:
        seconds += trial["seconds"]
        value = trial["objectives"].get(objective["name"], {}).get("mean")
        if trial["state"] == COMPLETE and value is not None and (best is None or sign * value > sign * best):
            best = value
        if best is not None:
            spent.append(seconds)
            reached.append(best)
    if not reached:
        return None
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    axes.step(spent, reached, where="post", marker="o", markersize=3)
    axes.set_xlabel("trial seconds spent")
    axes.set_ylabel(f"best {objective['name']}")
    axes.grid(alpha=0.3)
    return figure


def _picture(figure: "Figure") -> str:
    import matplotlib.pyplot as plt

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return data_uri(stream.getvalue())


def interval_text(objective: Mapping[str, Any]) -> str:
    """Return `46.1 [44.0, 48.2]`, or only the value with one seed."""
    if "mean" not in objective:
        return "–"
    ends: Sequence[str] = [f"{objective[key]:.4g}" for key in ("low", "high") if key in objective]
    return f"{objective['mean']:.4g}" + (f" [{', '.join(ends)}]" if ends else "")
