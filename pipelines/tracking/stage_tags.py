"""The tags by which the run of a pipeline or of a trial names the runs of its stages, restored stages included."""

from collections.abc import Mapping

PREFIX = "stage."


def stage_tag(address: str) -> str:
    """Return the key of the tag for a stage, such as `stage.taca_train.lora`: MLflow allows no @ in a key."""
    return PREFIX + address.replace("@", ".")


def stage_runs(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the run ids in `tags` by stage address."""
    return {key[len(PREFIX) :].replace(".", "@"): run for key, run in tags.items() if key.startswith(PREFIX)}
