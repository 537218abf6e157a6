"""Contrasts named beforehand: screened with a few seeds, decided on fresh ones alone.

The status of a contrast is `planned` (nothing measured), `screened` (whatever the screen says, it decides nothing), `part` (some
fresh seeds are measured), or, once all are, `holds`, `contradicted` (the interval lies on the other side), or `open` (the interval
allows both). What has not been measured has no numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.evaluation.intervals import bootstrap_crossed
from pipelines.studies.plans import Contrast

Values = Callable[[str, str, int], NDArray[np.float64] | None]
"""(arm, condition, seed) -> its value for each item (person, prompt), (P,) in the same order for all; None where not measured."""
Status = Literal["planned", "screened", "holds", "open", "contradicted", "part"]
DECIDED = ("holds", "open", "contradicted")


def summarise_contrasts(
    contrasts: Sequence[Contrast],
    seeds: Mapping[Literal["screen", "confirm"], Sequence[int]],
    values: Values,
    bootstrap: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Return a row for each contrast and condition: its intervals over seeds and items by phase, and its status.

    A phase without a seed that both arms have is None. "planned" is the number of seeds of each phase that are not measured.
    """
    rows = []
    for contrast in contrasts:
        for condition in contrast.at:
            row: dict[str, Any] = {**contrast.model_dump(mode="json", exclude={"at"}), "condition": condition}
            row["planned"] = {}
            for phase, of_phase in seeds.items():
                row[phase] = difference(contrast.arm, contrast.minus, condition, of_phase, values, bootstrap)
                row["planned"][phase] = len(of_phase) - (len(row[phase]["seeds"]) if row[phase] else 0)
            row["status"] = status_of(row)
            rows.append(row)
    return rows


def difference(
    arm: str, minus: str, condition: str, seeds: Sequence[int], values: Values, bootstrap: Mapping[str, int]
) -> dict[str, Any] | None:
    """Return the paired difference over the seeds that both arms have, with seeds and items resampled; None without one."""
    pairs = {seed: (values(arm, condition, seed), values(minus, condition, seed)) for seed in seeds}
    both = {seed: own - other for seed, (own, other) in pairs.items() if own is not None and other is not None}
    return interval(both, bootstrap)


def interval(by_seed: Mapping[int, NDArray[np.float64]], bootstrap: Mapping[str, int]) -> dict[str, Any] | None:
    """Return mean, low and high over seeds and items, with the mean of each seed; None without seeds."""
    if not by_seed:
        return None
    table = np.stack(list(by_seed.values()))  # (S, P)
    found = bootstrap_crossed(table, **bootstrap).as_dict()
    return {**found, "by_seed": np.nanmean(table, axis=1).tolist(), "seeds": list(by_seed)}


def status_of(row: Mapping[str, Any]) -> Status:
    """Return the status of a contrast's row. One that claims nothing is at most `screened` or, when confirmed, `open`."""
    confirmed = row["confirm"]
    if confirmed is None:
        return "screened" if row["screen"] else "planned"
    if row["planned"]["confirm"]:
        return "part"
    low, high, margin = confirmed["low"], confirmed["high"], row["margin"]
    if row["expect"] == "less":
        low, high = -high, -low
    if row["expect"] in ("more", "less"):
        return "holds" if low > margin else "contradicted" if high < margin else "open"
    if row["expect"] == "level":
        inside = -margin < low and high < margin
        return "holds" if inside else "contradicted" if low > margin or high < -margin else "open"
    return "open"


def status_of_claim(rows: Sequence[Mapping[str, Any]]) -> Status:
    """Return the status of a study's claim, which needs every contrast that expects something: one against it is enough."""
    found = [row["status"] for row in rows if row["expect"]]
    if not found or set(found) == {"planned"}:
        return "planned"
    if "contradicted" in found:
        return "contradicted"
    if not set(found) & {*DECIDED, "part"}:
        return "screened"
    if set(found) - set(DECIDED):
        return "part"
    return "holds" if set(found) == {"holds"} else "open"
