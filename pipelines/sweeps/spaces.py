"""A search space as data: `pipelines/sweeps/<name>.yaml`.

Parameters are named by their path in params.yaml. A configuration maps such paths to values; it has no value for a parameter whose
condition does not hold, which keeps the value of params.yaml.
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from components.errors import ParameterError
from components.settings import Fraction, Positive
from pipelines.errors import did_you_mean
from pipelines.identity.fingerprint import digest
from pipelines.schema.reading import read, read_yaml
from pipelines.schema.section import Section
from pipelines.sweeps.constraints import constraint_holds
from pipelines.sweeps.documents import value_at, with_values

FOLDER = Path(__file__).resolve().parent
Values = Mapping[str, Any]
"""Path in params.yaml -> value."""
Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
WholeBounds = Annotated[list[int], Field(min_length=2, max_length=2)]


class Distribution(Section):
    """The distribution of a parameter: exactly one of choice, uniform, loguniform and int. Both bounds are included.

    `step` is the distance between neighbouring values of uniform and int. `when` maps other parameters to the values for which
    this one is active.
    """

    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    uniform: Bounds | None = None
    loguniform: Bounds | None = None
    int: WholeBounds | None = None
    step: Annotated[float, Field(gt=0)] | None = None
    when: dict[str, list[Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in ("choice", "uniform", "loguniform", "int") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of choice, uniform, loguniform, int; has {', '.join(given) or 'none'}")
        if self.bounds and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"{given[0]} needs two rising bounds, has {self.bounds}")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform needs bounds above 0, has {self.loguniform}")
        if self.step and given[0] not in ("uniform", "int"):
            raise ValueError(f"step belongs to uniform and int, not to {given[0]}")
        if self.step and given[0] == "int" and self.step != round(self.step):
            raise ValueError(f"step of int must be whole, is {self.step}")
        return self

    @property
    def bounds(self) -> list[Any] | None:
        return self.uniform or self.loguniform or self.int

    def corners(self) -> list[Any]:
        """Return the values that can be out of range: every choice, or both bounds."""
        return list(self.choice) if self.choice is not None else list(self.bounds or [])

    def grid(self) -> list[Any]:
        """Return every value of a parameter that has finitely many. Raises ParameterError for the others."""
        if self.choice is not None:
            return list(self.choice)
        if self.int:
            return list(range(self.int[0], self.int[1] + 1, round(self.step or 1)))
        if self.uniform and self.step:
            low, high = self.uniform
            return [float(f"{low + i * self.step:.6g}") for i in range(int((high - low) / self.step + 1e-9) + 1)]
        raise ParameterError("a grid needs choice, int, or uniform with a step")


class Objective(Section):
    """A metric to maximise or minimise: of a stage's result, of its curve, or of its cost (`cost/seconds`).

    `pick`: of a metric that the stage reports over steps, the last value or the best.
    """

    stage: str
    metric: str
    mode: Literal["max", "min"]
    pick: Literal["last", "best"] = "last"

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.metric}"


class Watched(Section):
    """A metric that a stage reports over its steps; `full` is the path of the parameter with the number of steps."""

    stage: str
    metric: str
    mode: Literal["max", "min"]
    full: str


class Scheduler(Watched):
    """A rule that stops trials early.

    asha: at `grace`, `grace` x `reduction`, ... steps a trial continues if it is among the best 1 / `reduction` so far (Li et al.
    2020). median: from `grace` steps on, a trial continues while its best value is not below the median of the others' means so
    far (Golovin et al. 2017).
    """

    kind: Literal["asha", "median"]
    grace: Positive
    reduction: Annotated[float, Field(gt=1)] = 3.0


class Population(Watched):
    """Population based training: trials change their rates in mid-training (population.py).

    After every `every` steps each of the worst `share` of the members (at least one) resumes from one of the best `share`, with its
    rates multiplied by one of `factors`, or resampled with probability `resample`.
    """

    kind: Literal["pbt"]
    every: Positive
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    resample: Fraction = 0.25
    factors: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        default_factory=lambda: [0.8, 1.25]
    )

    changeable: ClassVar = ("learning_rate", "weight_decay")
    """Parameters of the training that may change in mid-training."""

    @property
    def training(self) -> str:
        """Path of the training section."""
        return self.full.rpartition(".")[0]

    @property
    def changes(self) -> str:
        """Path of the schedule of rate changes."""
        return f"{self.training}.changes"


class Resources(Section):
    """Resources of a trial: `cpus` cores (null: compute.threads), and a GPU or a fraction of one."""

    cpus: Annotated[float, Field(gt=0)] | None = None
    gpus: Annotated[float, Field(ge=0)] = 0.0


class Space(Section):
    """A search space file. `stages` are run again for every seed; whatever they need is brought up to date."""

    about: str
    stages: Annotated[list[str], Field(min_length=1)]
    base: dict[str, Any] = Field(default_factory=dict)
    parameters: Annotated[dict[str, Distribution], Field(min_length=1)]
    constraints: list[str] = Field(default_factory=list)
    points: list[dict[str, Any]] = Field(default_factory=list)
    objectives: Annotated[list[Objective], Field(min_length=1)]
    searcher: Literal["tpe", "random", "grid"] = "tpe"
    scheduler: Annotated[Scheduler | Population, Field(discriminator="kind")] | None = None
    resources: Resources = Resources()

    @property
    def population(self) -> Population | None:
        """The scheduler if it is a population, else None."""
        return self.scheduler if isinstance(self.scheduler, Population) else None

    @field_validator("points")
    @classmethod
    def _of_this_space(cls, points: list[dict[str, Any]], info: Any) -> list[dict[str, Any]]:
        unknown = sorted({path for point in points for path in point} - set(info.data.get("parameters", {})))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: not among the parameters")
        return points

    @model_validator(mode="after")
    def _conditions_look_back(self) -> Self:
        for place, (path, distribution) in enumerate(self.parameters.items()):
            later = set(distribution.when) & set(list(self.parameters)[place:])
            if later:
                raise ValueError(f"{path}: depends on {', '.join(sorted(later))}, which must stand before it")
        return self

    def searched(self, values: Values) -> dict[str, Any]:
        """Return `values` without the rate changes that a population has added."""
        return {path: value for path, value in values.items() if path in self.parameters}

    def active(self, path: str, values: Values, document: Mapping[str, Any]) -> bool:
        """Return whether a parameter is active, given the values of those before it and params.yaml."""
        when = self.parameters[path].when
        return all(values.get(other, value_at(document, other)) in allowed for other, allowed in when.items())

    def allowed(self, values: Values, document: Mapping[str, Any]) -> bool:
        """Return whether a configuration satisfies every constraint."""
        whole = with_values(document, values)
        return all(constraint_holds(constraint, whole) for constraint in self.constraints)

    def grid(self, document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield every configuration that satisfies the constraints, once; the last parameter changes fastest."""
        seen: set[str] = set()
        for combination in itertools.product(*(d.grid() for d in self.parameters.values())):
            values: dict[str, Any] = {}
            for path, value in zip(self.parameters, combination, strict=True):
                if self.active(path, values, document):
                    values[path] = value
            if configuration_key(values) not in seen and self.allowed(values, document):
                seen.add(configuration_key(values))
                yield values


def read_space(name: str, folder: Path = FOLDER) -> Space:
    """Read the space in `<name>.yaml`. Raises ParameterError with one line."""
    files = _files(folder)
    if name not in files:
        raise ParameterError(
            f"search space {name!r} does not exist: one of {', '.join(files)}{did_you_mean(name, files)}"
        )
    return read(files[name], Space, files[name].name)


def known(folder: Path = FOLDER) -> dict[str, str]:
    """Return by name what each space is about. Raises ParameterError for a file that is not YAML."""
    return {name: str((read_yaml(file) or {}).get("about", "")) for name, file in _files(folder).items()}


def _files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem != "dvc"}


def configuration_key(values: Values) -> str:
    """Return 10 hexadecimal digits that identify a configuration by its values."""
    return digest(dict(values))[:10]
