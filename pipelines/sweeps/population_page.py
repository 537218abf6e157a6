"""The figure of a population: each member's curve, and its rates over the steps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.sweeps.journal import COMPLETE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_population(document: Mapping[str, Any]) -> "Figure | None":
    """Draw the watched metric and one panel per rate over steps, with one line per finished member. None without any."""
    from matplotlib.figure import Figure

    members = [trial for trial in document["trials"] if trial["state"] == COMPLETE]
    if not members:
        return None
    scheduler = document["scheduler"]
    training = scheduler["full"].rpartition(".")[0]
    rates = [parameter for parameter in document["parameters"] if parameter["path"].rpartition(".")[0] == training]
    figure = Figure(figsize=(6.4, 2.4 + 1.6 * len(rates)), layout="constrained")
    above, *below = figure.subplots(1 + len(rates), 1, sharex=True, squeeze=False)[:, 0]
    for trial in sorted(members, key=lambda trial: bool(trial["number"] == document["best"])):
        style = {"color": "#1f77b4", "linewidth": 2.5} if trial["number"] == document["best"] else {"color": "#99a3ad"}
        above.plot(*zip(*trial["reports"], strict=True), **style)
        for axes, rate in zip(below, rates, strict=True):
            axes.step(*_over_steps(trial["values"], rate["path"], training, scheduler["steps"]), where="post", **style)
    above.set_ylabel(scheduler["metric"])
    for axes, rate in zip(below, rates, strict=True):
        axes.set_ylabel(rate["path"].rpartition(".")[2])
        axes.set_yscale("log" if "loguniform" in rate else "linear")
    for axes in (above, *below):
        _rounds(axes, scheduler["every"], scheduler["steps"])
    below[-1].set_xlabel("step")
    return figure


def _over_steps(values: Mapping[str, Any], path: str, training: str, steps: int) -> tuple[list[int], list[float]]:
    """Return the steps at which a rate changes, with both ends, and its value from each on."""
    at, rates = [0], [values[path]]
    for change in values[f"{training}.changes"]:
        new = change.get(path.rpartition(".")[2])
        at.append(change["step"])
        rates.append(rates[-1] if new is None else new)
    return [*at, steps], [*rates, rates[-1]]


def _rounds(axes: "Axes", every: int, steps: int) -> None:
    for step in range(every, steps, every):
        axes.axvline(step, color="#b0b0b0", linestyle=":", linewidth=0.8)
    axes.grid(alpha=0.2)
