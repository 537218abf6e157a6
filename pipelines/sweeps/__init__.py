"""Sweeps: many configurations of the same stages, run as trials by Ray Tune. Nothing that a single run of the pipeline needs.

spaces.py       search spaces, pipelines/sweeps/<name>.yaml; constraints.py and documents.py evaluate and edit paths of params.yaml
validation.py   checks of a space before anything starts
suggesting.py   the next configuration, a function of (space, seed, number, results so far); population.py for a population
journal.py      the journal of trials on disk, from which a killed sweep resumes
plan.py         the stages that all trials share, and those that each runs
driver.py       chooses the next trial and records outcomes
trial.py        one trial, in a process of its own; rounds.py trains one round of a population
tuning.py       Ray Tune: starts trials, stops some early
resources.py    what a trial takes of a cluster, and how many fit
sweep_runs.py   runs in MLflow: one per sweep, one per trial
results.py      the summary: best trial, Pareto front, cost; page.py draws it
options.py      the checked options
sweep.py        the command, from start to end
promotion.py    `promote`: a trial's parameters into params.yaml
"""
