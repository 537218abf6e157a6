"""Sweeps: many configurations of the same stages, tried by Ray Tune, each trial a workspace in which stages are run as always.

spaces.py       what may be tried: pipelines/sweeps/<name>.yaml, and its schema
validation.py   is every value of a space one that params.yaml may hold? asked before anything starts
suggesting.py   the next configuration, a function of (space, seed, number, results so far)
journal.py      what is known of a sweep's trials, on disk: what a killed sweep goes on from
plan.py         which stages a trial runs, and which are the same for all
trial.py        one trial, in a process of its own
tuning.py       Ray Tune: when trials start, and which are stopped early
tracked.py      runs in MLflow: one a sweep, one a trial
results.py      the summary: best, Pareto front, what it cost
options.py      the options, checked
sweep.py        the whole of a sweep
"""
