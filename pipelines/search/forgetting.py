"""Forgets pictures of a gallery: removes every copy that this project made, and keeps their digests, so that none comes back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.errors import DataError, ParameterError
from components.search.encoders import Encoder, open_encoder
from components.search.gallery import layout
from components.search.gallery.reading import Gallery, current_version, is_pipeline_index
from components.search.gallery.removal import digests_of, purge, sweep_thumbnails
from components.search.gallery.tombstones import add_tombstones, tombstones
from pipelines.errors import one_line
from pipelines.search.gallery_folder import held
from pipelines.search.gallery_search import INDEX
from pipelines.search.gallery_update import index_builder
from pipelines.search.mlflow_copies import MlflowCopies, Wanted
from pipelines.workspace import Workspace

OF_THE_PIPELINE = (
    "is made by the pipeline, which would make it again: take the pictures out of the data set that `prepare` reads, run `make "
    "repro`, register the new index and delete the older versions, then `dvc gc --workspace` and `python -m pipelines gc`"
)


@dataclass(frozen=True)
class ForgetOptions:
    """Raises ParameterError where nothing is named."""

    gallery: Path
    picture: Sequence[str]
    identity: Sequence[str]
    skip_mlflow: bool
    dry_run: bool

    def __post_init__(self) -> None:
        if not self.picture and not self.identity:
            raise ParameterError("forget: give --picture ID or --identity ID")


def forget(options: ForgetOptions, workspace: Workspace) -> int:
    """Forget pictures by id, and all pictures of identities; print what was removed, and return how many pictures were.

    All or nothing: where a name is unknown, or MLflow does not answer, nothing is removed. The same command, and the next update,
    complete a forgetting that was killed.

    Raises DataError for an unknown picture or identity, and for the pipeline's own index, InfrastructureError while another process
    updates the gallery.
    """
    gallery = options.gallery
    if is_pipeline_index(gallery):
        raise DataError(f"{gallery}: {OF_THE_PIPELINE}")
    current_version(gallery)
    with held(gallery):
        digests = _digests(options)
        opened = Gallery.open(gallery)
        wanted, files = _wanted(opened, digests), _files(opened, digests)
        copies = MlflowCopies(workspace)
        found = [] if options.skip_mlflow else copies.find(wanted)
        if options.dry_run:
            print(f"{gallery}: {_pictures(len(digests))} would be forgotten")
            for copy in found:
                print(f"  would be deleted in MLflow: {copy}, which holds {_pictures(copy.pictures)} of them")
        else:
            copies.remove(found)
            add_tombstones(gallery, digests)
            purge(gallery, index_builder(lambda: _encoder(gallery, workspace)))
            sweep_thumbnails(gallery)
            version = current_version(gallery)
            print(f"{gallery}: {_pictures(len(digests))} forgotten; version {version} answers, older ones are removed")
            for copy in found:
                print(
                    f"  deleted in MLflow: {copy}, which held {_pictures(copy.pictures)} of them; register the gallery again"
                )
        _say_what_stays(opened.source["location"], files, wanted, copies.unchecked, options, workspace)
    return len(digests)


def _pictures(number: int) -> str:
    return f"{number:,} picture{'' if number == 1 else 's'}"


def _encoder(gallery: Path, workspace: Workspace) -> Encoder | None:
    """The model of a gallery; None where it is gone, without which a picture is forgotten all the same."""
    try:
        return open_encoder(Gallery.open(gallery).model, workspace.root)
    except (DataError, ParameterError) as error:
        print(f"  the recall of the approximate index is measured without sentences: {one_line(error)}")
        return None


def _digests(options: ForgetOptions) -> set[str]:
    """The digests of what is named; those that a killed forgetting has removed are among them."""
    gallery = options.gallery
    gone = tombstones(gallery)
    found: set[str] = set()
    unknown = []
    for option, values in (("picture", options.picture), ("identity", options.identity)):
        for value in dict.fromkeys(values):
            named = digests_of(gallery, [value], []) if option == "picture" else digests_of(gallery, [], [value])
            if option == "picture":
                named |= {digest for digest in gone if layout.picture_id(digest) == value}
            found |= named
            if not named:
                unknown.append(f"{option} {value}")
    if unknown:
        if not options.dry_run:
            purge(gallery, index_builder(lambda: None))
        raise DataError(
            f"{gallery}: has no {', no '.join(unknown)}; nothing is forgotten. The ids are in the results of `search`"
        )
    return found


def _wanted(opened: Gallery, digests: set[str]) -> Wanted:
    rows = [row for row, digest in enumerate(opened.table["sha256"].to_pylist()) if digest in digests]
    vectors = np.asarray(opened.vectors[rows], np.float32)
    return Wanted(frozenset(digests), vectors, str(opened.model["digest"]))


def _files(opened: Gallery, digests: set[str]) -> list[str]:
    columns = (opened.table[name].to_pylist() for name in ("sha256", "files"))
    return [file for digest, files in zip(*columns, strict=True) if digest in digests for file in files]


def _say_what_stays(
    source: str, files: list[str], wanted: Wanted, unchecked: list[str], options: ForgetOptions, workspace: Workspace
) -> None:
    """Say which copies this command does not remove."""
    if files:
        print(
            f"  the source keeps them, delete them there: {', '.join(files[:3])}{' ...' if len(files) > 3 else ''} of {source}"
        )
    if options.skip_mlflow:
        print("  copies in MLflow are not looked for (--skip-mlflow)")
    if unchecked:
        print(f"  in MLflow, not checked, as another model made their index: {', '.join(unchecked)}")
    index = workspace.path(INDEX)
    if is_pipeline_index(index) and (count := wanted.count_in_index(index)):
        print(f"  {INDEX} holds {count:,} of them, and {OF_THE_PIPELINE}")
