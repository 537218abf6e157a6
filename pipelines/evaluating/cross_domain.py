"""Evaluates every model on every data set, beside the published results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from components.errors import ParameterError
from components.files import write_atomically
from components.gadms.cross_domain import Transfer, cross_domain, published_transfers
from components.persons.published.validation_report import recorded_splits
from components.persons.shards import PersonDataset
from pipelines import params
from pipelines.terminal.console import TableConsole
from pipelines.terminal.tables import number_table
from pipelines.threads.cores import warn_of_too_many_threads
from pipelines.workspace import Workspace


def show_cross_domain(
    models: Sequence[Path], datasets: Sequence[Path], workspace: Workspace, split: str, output: Path
) -> None:
    """Print the matrix and the published one, and write `output` (JSON).

    A data set has the name that its own records state. Raises ParameterError for a folder listed twice.
    """
    import torch

    from pipelines.engine.ray_cluster import device_of

    compute = params.load(workspace.path("params.yaml")).compute
    warn_of_too_many_threads(compute.threads)
    torch.set_num_threads(compute.threads)
    named = _named(models, [folder.resolve().name for folder in models], "model")
    data = _named(datasets, [dataset_name(folder, split) for folder in datasets], "data set")
    recorded = {name: recorded_splits(folder).get(split) for name, folder in data.items()}
    lacks = {name: counts.left_out for name, counts in recorded.items() if counts}
    found = cross_domain(named, data, split=split, device=device_of(compute))
    document = {
        "split": split,
        "models": {name: str(path) for name, path in named.items()},
        "data": {name: str(path) for name, path in data.items()},
        "left_out": lacks,
        "results": found,
    }
    write_atomically(output, json.dumps(document, indent=1, sort_keys=True) + "\n")
    console = TableConsole()
    own = [_cells(name, {d: (row[d]["R@1"], row[d]["mAP"]) for d in data}, list(data)) for name, row in found.items()]
    console.print(number_table(f"R@1 / mAP, split {split}", ("model", *data), own))
    for name, counts in lacks.items():
        if any(counts.values()):
            console.print(
                f"{name}: its {split} split lacks {counts['pictures']:,} pictures and {counts['captions']:,} captions"
            )
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


def dataset_name(folder: Path, split: str) -> str:
    """The data set that the pictures of a split are from, as their records state it; the folder's name where they state none."""
    return ", ".join(filter(None, PersonDataset(folder).sources(split))) or folder.resolve().name


def _named(folders: Sequence[Path], names: Sequence[str], what: str) -> dict[str, Path]:
    """Folders by name; where two have the same, their paths tell them apart."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ParameterError(f"cross-domain: a {what} is listed twice: {', '.join(map(str, folders))}")
    return {
        name if names.count(name) == 1 else f"{name} ({folder})": folder
        for name, folder in zip(names, folders, strict=True)
    }
