"""The next configuration, as a function of the space, the seed, its number and the results so far.

The sampler of a search library has state that is lost when its process is killed. Here each suggestion comes from a new Optuna
sampler, seeded by the suggestion's number and given all results again. That costs milliseconds, and a killed sweep resumes with the
same suggestions.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.training.randomness import stream_seed
from pipelines.sweeps.documents import value_at
from pipelines.sweeps.journal import BROKEN, COMPLETE, STOPPED, WAITING, Trial
from pipelines.sweeps.spaces import Distribution, Space, configuration_key

if TYPE_CHECKING:
    import optuna

STARTUP = 8
"""Random trials before TPE is used."""
TRIES = 200
"""Draws for one suggestion, when earlier ones are known already or violate a constraint."""


def suggest(
    space: Space,
    document: Mapping[str, Any],
    seed: int,
    number: int,
    known: Sequence[Trial],
    earlier: Sequence[Trial] = (),
) -> dict[str, Any] | None:
    """Return the values of trial `number` (0-based), or None when the space has no new configuration.

    `known` are all trials suggested before, by number; those without a result count as running. `earlier` are trials of other
    sweeps to learn from; their configurations may be suggested again. Random and grid search ignore results.
    """
    taken = {configuration_key(space.searched(trial.values)) for trial in known}
    for point in space.points:
        whole = _whole_point(space, document, point)
        if configuration_key(whole) not in taken:
            return whole
    if space.searcher == "grid":
        return next((values for values in space.grid(document) if configuration_key(values) not in taken), None)
    study = _study(space, seed, number, [*earlier, *known])
    for _ in range(TRIES):
        trial = study.ask()
        values = _draw(space, document, trial)
        if configuration_key(values) not in taken and space.allowed(values, document):
            return values
        study.tell(trial, state=_states().FAIL)
    return None


def _whole_point(space: Space, document: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a point with the values of params.yaml for the active parameters that it leaves out."""
    values: dict[str, Any] = {}
    for path in space.parameters:
        if space.active(path, values, document):
            values[path] = point.get(path, value_at(document, path))
    return values


def _study(space: Space, seed: int, number: int, known: Sequence[Trial]) -> "optuna.study.Study":
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    number_seed = stream_seed(seed, "sweep", number) % 2**32
    sampler: optuna.samplers.BaseSampler
    if space.searcher == "random":
        sampler = optuna.samplers.RandomSampler(seed=number_seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=number_seed, n_startup_trials=STARTUP, constant_liar=True)
    ways = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    study = optuna.create_study(directions=[ways[objective.mode] for objective in space.objectives], sampler=sampler)
    if space.searcher == "tpe":
        for trial in known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # a point may lie outside of the distributions
                study.add_trial(_frozen_trial(space, trial))
    return study


def _frozen_trial(space: Space, trial: Trial) -> "optuna.trial.FrozenTrial":
    """Return the trial for Optuna."""
    import optuna

    states = _states()
    values = space.searched(trial.values)
    distributions = {path: _index_distribution(space.parameters[path]) for path in values}
    converted = {path: _optuna_value(space.parameters[path], value) for path, value in values.items()}
    known = {path: value for path, value in converted.items() if lies_in(distributions[path], value)}
    facts: dict[str, Any] = {"params": known, "distributions": {path: distributions[path] for path in known}}
    if trial.state == COMPLETE:
        return optuna.trial.create_trial(state=states.COMPLETE, values=trial.means(), **facts)
    if trial.state == STOPPED and trial.reports and _watches_its_objective(space):
        return optuna.trial.create_trial(state=states.PRUNED, intermediate_values=trial.reports, **facts)
    if trial.state == WAITING:
        return optuna.trial.create_trial(state=states.RUNNING, **facts)
    assert trial.state in (STOPPED, BROKEN)
    return optuna.trial.create_trial(state=states.FAIL, **facts)


def _watches_its_objective(space: Space) -> bool:
    """Return whether the scheduler watches the only objective, so that a stopped trial's reports are early values of it."""
    if len(space.objectives) != 1 or space.scheduler is None:
        return False
    objective, watched = space.objectives[0], space.scheduler
    return (objective.stage, objective.metric, objective.mode) == (watched.stage, watched.metric, watched.mode)


def _draw(space: Space, document: Mapping[str, Any], trial: "optuna.trial.Trial") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, distribution in space.parameters.items():
        if not space.active(path, values, document):
            continue
        if distribution.choice is not None:
            values[path] = distribution.choice[trial.suggest_categorical(path, range(len(distribution.choice)))]
        elif distribution.int:
            low, high = distribution.int
            values[path] = trial.suggest_int(path, low, high, step=round(distribution.step or 1))
        else:
            low, high = distribution.bounds or [0.0, 0.0]
            log = distribution.loguniform is not None
            drawn = trial.suggest_float(path, low, high, step=distribution.step, log=log)
            values[path] = float(f"{drawn:.6g}")  # as one would write it in params.yaml
    return values


def optuna_distribution(of: Distribution, choices: Sequence[Any]) -> "optuna.distributions.BaseDistribution":
    """Return Optuna's form of a distribution; `choices` stand for the values of a choice, which Optuna may not accept itself."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if of.choice is not None:
        return CategoricalDistribution(choices)
    if of.int:
        return IntDistribution(of.int[0], of.int[1], step=round(of.step or 1))
    low, high = of.bounds or [0.0, 0.0]
    return FloatDistribution(low, high, step=of.step, log=of.loguniform is not None)


def lies_in(distribution: "optuna.distributions.BaseDistribution", value: Any) -> bool:
    """Return whether a value is one of a distribution. That of a named point, or of params.yaml, may be another, or no number."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    return isinstance(value, int | float) and not isinstance(value, bool) and distribution._contains(value)


def _index_distribution(of: Distribution) -> "optuna.distributions.BaseDistribution":
    return optuna_distribution(of, range(len(of.choice or ())))


def _optuna_value(of: Distribution, value: Any) -> Any:
    """Return the value that Optuna uses: for a choice its index, or None for a value that is not among them."""
    if of.choice is None:
        return value
    return of.choice.index(value) if value in of.choice else None


def _states() -> Any:
    import optuna

    return optuna.trial.TrialState
