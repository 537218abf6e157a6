"""Evaluates every model on every data set, beside the published results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from components.errors import ParameterError
from components.files import write_atomically
from components.gadms.cross_domain import Transfer, cross_domain, published_transfers
from pipelines import params
from pipelines.reporting.tables import number_table
from pipelines.workspace import Workspace


def show_cross_domain(
    models: Sequence[Path], datasets: Sequence[Path], workspace: Workspace, split: str, output: Path
) -> None:
    """Print the matrix and the published one, and write `output` (JSON). Raises ParameterError for a folder listed twice."""
    import torch
    from rich.console import Console

    from pipelines.engine.ray_cluster import device_of

    compute = params.load(workspace.path("params.yaml")).compute
    torch.set_num_threads(compute.threads)
    named, data = _named(models, "model"), _named(datasets, "data set")
    found = cross_domain(named, data, split=split, device=device_of(compute))
    document = {
        "split": split,
        "models": {name: str(path) for name, path in named.items()},
        "data": {name: str(path) for name, path in data.items()},
        "results": found,
    }
    write_atomically(output, json.dumps(document, indent=1, sort_keys=True) + "\n")
    console = Console()
    own = [_cells(name, {d: (row[d]["R@1"], row[d]["mAP"]) for d in data}, list(data)) for name, row in found.items()]
    console.print(number_table(f"R@1 / mAP, split {split}", ("model", *data), own))
    console.print(published_table(published_transfers()))
    print(f"wrote {output}")


def published_table(transfers: Sequence[Transfer]) -> Table:
    """A table with a row per pre-training and source, and a column per target."""
    rows: dict[tuple[str | None, str], dict[str, tuple[float, float]]] = {}
    for one in transfers:
        row = rows.setdefault((one.pretraining, one.source), {})
        row[one.target] = (one.rank_1, one.mean_average_precision)
    targets = sorted({one.target for one in transfers})
    cells = [
        _cells(f"{source}, pre-trained on {pretraining or 'CLIP only'}", row, targets)
        for (pretraining, source), row in rows.items()
    ]
    title = "published: GA-DMS (arXiv 2509.09118), table 3, R@1 / mAP"
    return number_table(title, ("fine-tuned on", *targets), cells)


def _cells(name: str, row: Mapping[str, tuple[float, float]], columns: Sequence[str]) -> list[str]:
    return [name, *("{:.2f} / {:.2f}".format(*row[column]) if column in row else "" for column in columns)]


def _named(folders: Sequence[Path], what: str) -> dict[str, Path]:
    """Folders by their name, or by their whole path where two have the same name."""
    short = [folder.resolve().name for folder in folders]
    names = [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
    if len(set(names)) < len(names):
        raise ParameterError(f"cross-domain: a {what} is listed twice: {', '.join(names)}")
    return dict(zip(names, folders, strict=True))
