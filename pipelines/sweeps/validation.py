"""Checks of a search space before anything starts, so that a typing error costs a second and not a night."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from components.errors import ParameterError
from pipelines import graph
from pipelines.params import Parameters, from_document
from pipelines.schema.overrides import with_overrides
from pipelines.sweeps.documents import value_at, with_values
from pipelines.sweeps.population import rates
from pipelines.sweeps.spaces import Distribution, Objective, Population, Space, Watched

VALIDATION = ("val/", "selected.")
"""Begin the names of metrics that a stage has only if it validates its weights while it trains."""


def base_document(space: Space, name: str, params: Parameters) -> dict[str, Any]:
    """Return params.yaml with every default and the space's `base`, as plain values. Raises ParameterError."""
    with _mistakes_in(f"{name}.yaml: base"):
        document = with_overrides(params.model_dump(mode="json"), space.base)
        return validated(document).model_dump(mode="json")


def validated(document: Mapping[str, Any]) -> Parameters:
    """Return the document as parameters. Raises ParameterError as for a params.yaml."""
    try:
        return from_document(document, "params.yaml")
    except ParameterError as error:
        raise ParameterError(str(error).removeprefix("params.yaml: ")) from error


def validate(space: Space, name: str, document: Mapping[str, Any]) -> None:
    """Check stages, metrics, paths, types, ranges, conditions and constraints. Raises ParameterError with one line.

    Every choice, every bound and every point of the space is checked against the schema of params.yaml.
    """
    with _mistakes_in(f"{name}.yaml"):
        runs = graph.with_upstream(map(graph.find_default, space.stages))
        for read in [*space.objectives, *([space.scheduler] if space.scheduler else [])]:
            if graph.find_default(read.stage) not in runs:
                raise ParameterError(f"{read.stage}: is not run for {', '.join(space.stages)}; add it to stages")
            _check_metric(read, space, document)
        sections = {key for run in runs for key in run.stage.reads}
        for path, distribution in space.parameters.items():
            _check_parameter(path, distribution, space, sections, document)
        for place, point in enumerate(space.points):
            with _mistakes_in(f"points[{place}]"):
                validated(with_values(document, point))
                if not space.allowed(point, document):
                    raise ParameterError("a constraint does not hold")
        space.allowed({}, document)
        if space.searcher == "grid" and next(space.grid(document), None) is None:
            raise ParameterError("no point of the grid keeps every constraint")
        if space.scheduler:
            _check_scheduler(space, document)


def values_outside(space: Space, document: Mapping[str, Any]) -> list[str]:
    """Return a line for each searched number whose value in params.yaml the space leaves out, as a recipe's own rate may be."""
    lines = []
    for path, distribution in space.parameters.items():
        value, bounds = value_at(document, path), distribution.bounds
        if bounds and isinstance(value, (int, float)) and not bounds[0] <= value <= bounds[1]:
            lines.append(
                f"{path}: {value:g} of params.yaml is not among what is searched, {bounds[0]:g} to {bounds[1]:g}"
            )
    return lines


def _check_parameter(
    path: str, distribution: Distribution, space: Space, sections: set[str], document: Mapping[str, Any]
) -> None:
    section = path.split(".")[0]
    if section in ("compute", "seed"):
        hint = "results do not depend on it" if section == "compute" else "use --seeds"
        raise ParameterError(f"{path}: cannot be searched over: {hint}")
    value_at(document, path)
    if section not in sections:
        raise ParameterError(f"{path}: none of the stages of this space reads {section}")
    for other, allowed in distribution.when.items():
        value_at(document, other)
        known = space.parameters[other].choice if other in space.parameters else None
        if known is not None and not any(value in known for value in allowed):
            raise ParameterError(f"{path}: when: {other} is never one of {allowed}")
    if space.searcher == "grid":
        with _mistakes_in(path):
            distribution.grid()
    for value in distribution.corners():
        validated(with_values(document, {path: value}))


def _check_metric(read: Objective | Watched, space: Space, document: Mapping[str, Any]) -> None:
    """A stage reports metrics of validation only if it validates."""
    section = graph.find_default(read.stage).stage.name
    path = f"{section}.training.validate_every"
    validates = document.get(section, {}).get("training", {}).get("validate_every", True)
    if read.metric.startswith(VALIDATION) and validates is None and path not in space.parameters:
        raise ParameterError(
            f"{read.stage} has no {read.metric} with {path} = null: set that, in params.yaml or the space's base, to a number of "
            "steps (the data set needs a val split), or name another metric"
        )


def _check_scheduler(space: Space, document: Mapping[str, Any]) -> None:
    scheduler = space.scheduler
    assert scheduler
    full = value_at(document, scheduler.full)
    name, first = ("every", scheduler.every) if isinstance(scheduler, Population) else ("grace", scheduler.grace)
    if not isinstance(full, int) or first >= full:
        raise ParameterError(f"scheduler: {name} {first} must be below {scheduler.full} = {full}")
    if scheduler.full in space.parameters:
        raise ParameterError(f"scheduler: {scheduler.full} must be the same in every trial: leave it out of parameters")
    if not graph.find_default(scheduler.stage).stage.curves:
        raise ParameterError(f"scheduler: {scheduler.stage} reports nothing over steps")
    if isinstance(scheduler, Population):
        _check_population(space, scheduler, document)


def _check_population(space: Space, population: Population, document: Mapping[str, Any]) -> None:
    """A round must end at a report with a checkpoint, and at least one rate must be searched."""
    value_at(document, population.changes)
    if not rates(space, population):
        allowed = " and ".join(f"{population.training}.{name}" for name in population.changeable)
        raise ParameterError(f"scheduler: a population changes {allowed}, and the parameters have neither")
    for rate in rates(space, population):
        if space.parameters[f"{population.training}.{rate}"].when:
            raise ParameterError(f"{population.training}.{rate}: changes in mid-training, and so can have no `when`")
    training = value_at(document, population.training)
    for key in ("checkpoint_every", "report_every", "validate_every"):
        if population.every % (training.get(key) or 1):
            raise ParameterError(
                f"scheduler: every {population.every} must be a multiple of {population.training}.{key} = {training[key]}"
            )
    if value_at(document, "compute.backend") == "job":
        raise ParameterError("scheduler: a population's checkpoints are kept here: set compute.backend to local")


@contextmanager
def _mistakes_in(place: str) -> Iterator[None]:
    """Prefix every ParameterError inside the block with `place`."""
    try:
        yield
    except ParameterError as error:
        raise ParameterError(f"{place}: {error}") from error
