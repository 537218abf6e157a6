"""A search space as data: `pipelines/sweeps/<name>.yaml`.

Parameters are named by their path in params.yaml. A configuration is a mapping of such paths to values; a parameter whose condition
does not hold has no value in it and keeps the one of params.yaml.
"""

import ast
import copy
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from components.errors import ParameterError
from components.settings import Fraction, Positive
from pipelines.identity.fingerprint import digest
from pipelines.schema.reading import read
from pipelines.schema.section import Section

FOLDER = Path(__file__).resolve().parent
Values = Mapping[str, Any]
"""Path in params.yaml -> value."""
Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
WholeBounds = Annotated[list[int], Field(min_length=2, max_length=2)]


class Distribution(Section):
    """Where a parameter's values come from: exactly one of choice, uniform, loguniform and int. Both bounds are included.

    `step` is the distance of neighbouring values of uniform and int. `when` names other parameters and, for each, the values
    with which this one matters.
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
        """The values that can break a range: every choice, or both bounds."""
        return list(self.choice) if self.choice is not None else list(self.bounds or [])

    def grid(self) -> list[Any]:
        """Every value, of a parameter that has finitely many. Raises ParameterError for the others."""
        if self.choice is not None:
            return list(self.choice)
        if self.int:
            return list(range(self.int[0], self.int[1] + 1, round(self.step or 1)))
        if self.uniform and self.step:
            low, high = self.uniform
            return [float(f"{low + i * self.step:.6g}") for i in range(int((high - low) / self.step + 1e-9) + 1)]
        raise ParameterError("a grid needs choice, int, or uniform with a step")


class Objective(Section):
    """A number to make large or small: a metric of a stage's result, of its curve, or of its cost (`cost/seconds`).

    A metric that the stage reports over steps counts with its last value, or with its best one.
    """

    stage: str
    metric: str
    mode: Literal["max", "min"]
    pick: Literal["last", "best"] = "last"

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.metric}"


class Watched(Section):
    """A metric that a stage reports over its steps; `full` is the path of the parameter that says how many there are."""

    stage: str
    metric: str
    mode: Literal["max", "min"]
    full: str


class Scheduler(Watched):
    """Which trials are stopped early.

    asha: at `grace`, `grace` x `reduction`, ... steps a trial goes on if it is among the best 1 / `reduction` so far (Li et al.
    2020). median: from `grace` steps on, a trial goes on while its best value is not below the median of the others' means so far
    (Golovin et al. 2017).
    """

    kind: Literal["asha", "median"]
    grace: Positive
    reduction: Annotated[float, Field(gt=1)] = 3.0


class Population(Watched):
    """Trials that change their rates in mid-training (population.py).

    After every `every` steps each of the worst `share` of the members, one at least, goes on from one of the best `share`, with its
    rates multiplied by one of `factors`, or, with probability `resample`, drawn anew.
    """

    kind: Literal["pbt"]
    every: Positive
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    resample: Fraction = 0.25
    factors: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        default_factory=lambda: [0.8, 1.25]
    )

    changeable: ClassVar = ("learning_rate", "weight_decay")
    """What training can change in mid-way, below `training`."""

    @property
    def training(self) -> str:
        """Path of the training's section."""
        return self.full.rpartition(".")[0]

    @property
    def changes(self) -> str:
        """Path of what becomes of its rates."""
        return f"{self.training}.changes"


class Resources(Section):
    """What a trial takes of the machine: `cpus` cores (null: compute.threads), and a GPU or a part of one."""

    cpus: Annotated[float, Field(gt=0)] | None = None
    gpus: Annotated[float, Field(ge=0)] = 0.0


class Space(Section):
    """A whole file. `stages` are those that a repetition with another seed runs again; all they need is brought up to date."""

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
        """The scheduler, where it is one of these."""
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
        """`values` without what a population has added to them: the changes in mid-training."""
        return {path: value for path, value in values.items() if path in self.parameters}

    def active(self, path: str, values: Values, document: Mapping[str, Any]) -> bool:
        """Whether a parameter matters, given the values before it and params.yaml as it is."""
        when = self.parameters[path].when
        return all(values.get(other, value_at(document, other)) in allowed for other, allowed in when.items())

    def allowed(self, values: Values, document: Mapping[str, Any]) -> bool:
        """Whether a configuration keeps every constraint."""
        whole = filled(document, values)
        return all(holds(constraint, whole) for constraint in self.constraints)

    def grid(self, document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Every configuration that the constraints allow, once; the last parameter changes fastest."""
        seen: set[str] = set()
        for combination in itertools.product(*(d.grid() for d in self.parameters.values())):
            values: dict[str, Any] = {}
            for path, value in zip(self.parameters, combination, strict=True):
                if self.active(path, values, document):
                    values[path] = value
            if key_of(values) not in seen and self.allowed(values, document):
                seen.add(key_of(values))
                yield values


def read_space(name: str, folder: Path = FOLDER) -> Space:
    """The space in `<name>.yaml`. Raises ParameterError with one line."""
    file = folder / f"{name}.yaml"
    known = sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "dvc")
    if name not in known:
        raise ParameterError(f"search space {name!r} does not exist: one of {', '.join(known)}")
    return read(file, Space, file.name)


def key_of(values: Values) -> str:
    """What a configuration is known by: 10 hexadecimal digits, the same for the same values."""
    return digest(dict(values))[:10]


def value_at(document: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path. Raises ParameterError when there is none."""
    here: Any = document
    for key in path.split("."):
        if not isinstance(here, Mapping) or key not in here:
            raise ParameterError(f"{path}: not a key of params.yaml")
        here = here[key]
    return here


def filled(document: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """A copy of params.yaml's document with `values` in their places."""
    whole: dict[str, Any] = copy.deepcopy(dict(document))
    for path, value in values.items():
        *sections, last = path.split(".")
        here = whole
        for section in sections:
            here = here[section]
        here[last] = copy.deepcopy(value)
    return whole


def merged(document: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `document`, section by section. Raises ParameterError for a section that is not there."""
    whole = dict(document)
    for key, value in over.items():
        if key not in whole:
            raise ParameterError(f"{key}: not a key of params.yaml")
        both = isinstance(value, Mapping) and isinstance(whole[key], Mapping)
        whole[key] = merged(whole[key], value) if both else value
    return whole


OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def holds(constraint: str, document: Mapping[str, Any]) -> bool:
    """Whether a comparison of parameters and numbers holds: `gadms_finetune.method.warmup_steps < gadms_finetune.training.steps`.

    Knows paths, constants, + - * / %, comparisons, and/or/not; raises ParameterError for anything else.
    """
    try:
        return bool(_evaluate(ast.parse(constraint, mode="eval").body, document))
    except (SyntaxError, TypeError, ZeroDivisionError) as error:
        raise ParameterError(f"constraint {constraint!r}: {error}") from error


def _evaluate(node: ast.expr, document: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() | ast.Attribute():
            return value_at(document, ast.unparse(node))
        case ast.BinOp() if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](_evaluate(node.left, document), _evaluate(node.right, document))
        case ast.UnaryOp(op=ast.USub()):
            return -_evaluate(node.operand, document)
        case ast.UnaryOp(op=ast.Not()):
            return not _evaluate(node.operand, document)
        case ast.BoolOp():
            parts = (_evaluate(part, document) for part in node.values)
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        case ast.Compare() if all(type(op) in OPERATORS for op in node.ops):
            sides = [_evaluate(side, document) for side in (node.left, *node.comparators)]
            pairs = zip(node.ops, itertools.pairwise(sides), strict=True)
            return all(OPERATORS[type(op)](*pair) for op, pair in pairs)
    raise TypeError(f"{ast.unparse(node)!r} is not a path, a number or a comparison")
