"""`python -m pipelines cross-domain MODEL... --data DATASET...`: every model on every data set, and what is published."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import ParameterError
from components.files import write_atomically
from components.gadms.cross_domain import Transfer, cross_domain, published_transfers
from pipelines import params
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from rich.table import Table


def show_cross_domain(
    models: Sequence[Path], datasets: Sequence[Path], workspace: Workspace, split: str, output: Path
) -> None:
    """Measure, print the matrix and the published ones, and write `output` (JSON). Raises ParameterError for two alike names."""
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
    columns = list(data)
    own = [(name, {d: (row[d]["R@1"], row[d]["mAP"]) for d in columns}) for name, row in found.items()]
    console.print(_table(f"R@1 / mAP, split {split}", "model", columns, own))
    console.print(published_table(published_transfers()))
    print(f"wrote {output}")


def published_table(transfers: Sequence[Transfer]) -> "Table":
    """A row for each pre-training and source, a column for each target."""
    rows: dict[tuple[str | None, str], dict[str, tuple[float, float]]] = {}
    for one in transfers:
        row = rows.setdefault((one.pretraining, one.source), {})
        row[one.target] = (one.rank_1, one.mean_average_precision)
    targets = sorted({one.target for one in transfers})
    named = [(f"{source}, pre-trained on {pre or 'nothing but CLIP'}", row) for (pre, source), row in rows.items()]
    title = "published: GA-DMS (arXiv 2509.09118), table 3, R@1 / mAP"
    return _table(title, "fine-tuned on", targets, named)


def _table(
    title: str, first: str, columns: Sequence[str], rows: Sequence[tuple[str, dict[str, tuple[float, float]]]]
) -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(escape(name), justify="right")
    for name, row in rows:
        table.add_row(escape(name), *("{:.2f} / {:.2f}".format(*row[c]) if c in row else "" for c in columns))
    return table


def _named(folders: Sequence[Path], what: str) -> dict[str, Path]:
    """Folders by their last part; by their whole path where two would be named alike."""
    short = [folder.resolve().name for folder in folders]
    names = [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
    if len(set(names)) < len(names):
        raise ParameterError(f"cross-domain: a {what} is listed twice: {', '.join(names)}")
    return dict(zip(names, folders, strict=True))
