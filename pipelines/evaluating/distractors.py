"""The verb `distractors`: retrieval in both directions, as strangers join the gallery."""

import json
from collections.abc import Sequence
from pathlib import Path

from components.errors import ParameterError
from components.files import write_atomically
from components.persons.records import SPLITS
from components.persons.shards import PersonDataset
from components.search.distractors import embed_people, with_strangers
from components.search.encoders import open_encoder
from pipelines import params
from pipelines.terminal.console import TableConsole
from pipelines.terminal.tables import number_table
from pipelines.workspace import Workspace

DIRECTIONS = {"text_to_image": "sentence → picture", "image_to_text": "picture → sentence"}
METRICS = ("R@1", "R@5", "R@10", "mAP")


def show_distractors(
    workspace: Workspace,
    model: str,
    people: Path,
    split: str,
    strangers: Path | None,
    counts: Sequence[int] | None,
    output: Path,
) -> None:
    """Print a table per direction, a row per number of strangers, and write `output` (JSON).

    strangers: another prepared set, all of which are strangers; None takes the other splits' people who are not in this one.
    counts: of strangers' pictures; None takes none, and a quarter, a half and all of those there are.
    """
    import torch

    from pipelines.engine.ray_cluster import device_of

    parameters = params.load(workspace.path("params.yaml"))
    torch.set_num_threads(parameters.compute.threads)
    dataset = PersonDataset(people)
    encoder = open_encoder(model, workspace.root, device=device_of(parameters.compute))
    known = embed_people(encoder, dataset, [split])
    if strangers is None:
        others = [name for name in SPLITS if name != split]
        unknown = embed_people(encoder, dataset, others, frozenset(known.image_ids.tolist()))
    elif strangers.resolve() == people.resolve():
        raise ParameterError(f"distractors: --strangers {strangers} is --people; leave it out to take its other splits")
    else:
        unknown = embed_people(encoder, PersonDataset(strangers), SPLITS)
    available = len(unknown.images)
    chosen = sorted(set(counts)) if counts else [0, available // 4, available // 2, available]
    found = dict(with_strangers(known, unknown, chosen, seed=parameters.seed))
    document = {
        "model": {"name": encoder.name, "digest": encoder.digest},
        "people": str(people),
        "split": split,
        "strangers": str(strangers or f"{people}, other splits"),
        "gallery": len(known.images),
        "results": {str(count): metrics for count, metrics in found.items()},
    }
    write_atomically(output, json.dumps(document, indent=1, sort_keys=True) + "\n")
    console = TableConsole()
    for direction, title in DIRECTIONS.items():
        rows = [
            [f"{count:,}", *(f"{metrics[direction][name]:.2f}" for name in METRICS)] for count, metrics in found.items()
        ]
        gallery = f"{len(known.images):,} pictures and {len(known.texts):,} captions of people who are sought"
        console.print(number_table(f"{title}, {gallery}", ("strangers' pictures", *METRICS), rows))
    print(f"wrote {output}")
