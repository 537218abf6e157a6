"""The life of a stage: runner, worker process, Ray Train, context, cost.

No stage's own work, and nothing about many stages.
"""
