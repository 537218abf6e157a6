"""Is a space one that can run? Asked before anything starts, so that a typing error costs a second and not a night."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from components.errors import ParameterError
from pipelines import graph
from pipelines.params import Parameters, load
from pipelines.sweeps.plan import ordered
from pipelines.sweeps.population import rates
from pipelines.sweeps.spaces import Distribution, Population, Space, filled, merged, value_at


def base_document(space: Space, name: str, params: Parameters) -> dict[str, Any]:
    """params.yaml with every default filled in and the space's `base` laid over it, as plain values. Raises ParameterError."""
    with _of(f"{name}.yaml: base"):
        document = merged(params.model_dump(mode="json"), space.base)
        return validated(document).model_dump(mode="json")


def validated(document: Mapping[str, Any]) -> Parameters:
    """The document as parameters. Raises ParameterError as for a params.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "params.yaml")
        file.write_text(yaml.safe_dump(dict(document)), encoding="utf-8")
        try:
            return load(file)
        except ParameterError as error:
            raise ParameterError(str(error).removeprefix("params.yaml: ")) from error


def validate(space: Space, name: str, document: Mapping[str, Any]) -> None:
    """Check stages, paths, types, ranges, conditions and constraints. Raises ParameterError with one line.

    Every choice and every bound is tried in params.yaml's schema, one parameter at a time, and every point that the space names.
    """
    with _of(f"{name}.yaml"):
        runs = ordered([graph.find(stage).address for stage in space.stages])
        for stage in [*(o.stage for o in space.objectives), *([space.scheduler.stage] if space.scheduler else [])]:
            if graph.find(stage) not in runs:
                raise ParameterError(f"{stage}: is not run for {', '.join(space.stages)}; add it to stages")
        sections = {key for run in runs for key in run.stage.reads}
        for path, distribution in space.parameters.items():
            _check_parameter(path, distribution, space, sections, document)
        for place, point in enumerate(space.points):
            with _of(f"points[{place}]"):
                validated(filled(document, point))
                if not space.allowed(point, document):
                    raise ParameterError("a constraint does not hold")
        space.allowed({}, document)
        if space.searcher == "grid" and next(space.grid(document), None) is None:
            raise ParameterError("no point of the grid keeps every constraint")
        if space.scheduler:
            _check_scheduler(space, document)


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
        with _of(path):
            distribution.grid()
    for value in distribution.corners():
        validated(filled(document, {path: value}))


def _check_scheduler(space: Space, document: Mapping[str, Any]) -> None:
    scheduler = space.scheduler
    assert scheduler
    full = value_at(document, scheduler.full)
    name, first = ("every", scheduler.every) if isinstance(scheduler, Population) else ("grace", scheduler.grace)
    if not isinstance(full, int) or first >= full:
        raise ParameterError(f"scheduler: {name} {first} must be below {scheduler.full} = {full}")
    if scheduler.full in space.parameters:
        raise ParameterError(f"scheduler: {scheduler.full} must be the same in every trial: leave it out of parameters")
    if not graph.find(scheduler.stage).stage.curves:
        raise ParameterError(f"scheduler: {scheduler.stage} reports nothing over steps")
    if isinstance(scheduler, Population):
        _check_population(space, scheduler, document)


def _check_population(space: Space, population: Population, document: Mapping[str, Any]) -> None:
    """A round must end at a report with a checkpoint, and there must be something that changes."""
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
def _of(place: str) -> Iterator[None]:
    """Mistakes in here are mistakes of `place`."""
    try:
        yield
    except ParameterError as error:
        raise ParameterError(f"{place}: {error}") from error
