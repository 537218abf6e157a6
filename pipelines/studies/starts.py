"""Where a study begins: published models, named by a folder and its digest as in params.yaml, or training from nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from components.errors import DataError, ParameterError
from components.settings import Count, Fraction, Positive, Rate, Sha256
from pipelines.errors import REPRO_COMMAND
from pipelines.params import Parameters
from pipelines.schema.section import Section


class Schedule(Section):
    """The length and rates of one phase of training; everything else is gadms_finetune.training."""

    steps: Positive
    warmup_steps: Count
    learning_rate: Rate


class TrainedStart(Schedule):
    """Contrastive training from random weights on the first `people` of the training split, at its own `noise`."""

    noise: Fraction
    people: Positive


class PublishedModel(Section):
    """A model folder, relative to the workspace, and the digest of its weights. What is in it counts by content."""

    pretrained: str
    sha256: Sha256 | None = None

    def require(self, root: Path, where: str, digest: Callable[[Path], str]) -> None:
        """Require that the folder is the one of the digest; `where` is the key that names it.

        Raises ParameterError where no digest is given, naming it, and DataError where the folder is missing or another.
        """
        folder = root / self.pretrained
        if not folder.is_dir():
            raise DataError(
                f"{where}.pretrained = {self.pretrained}: no such folder; those of the repository are made by "
                "`python -m pipelines pretrain`"
            )
        try:
            found = digest(folder)
        except OSError as error:
            raise DataError(
                f"{where}.pretrained = {self.pretrained}: {error.filename} cannot be read ({error.strerror})"
            ) from error
        if self.sha256 is None:
            raise ParameterError(f"{where}.sha256 is null: set it to {found}, the digest of {self.pretrained}")
        if self.sha256 != found:
            raise DataError(f"{self.pretrained}: its digest is {found}; expected is {where}.sha256 = {self.sha256}")


def _which(value: Any) -> str:
    named = "pretrained" in value if isinstance(value, dict) else isinstance(value, PublishedModel)
    return "published" if named else "trained"


EncoderStart = Annotated[
    Annotated[PublishedModel, Tag("published")] | Annotated[TrainedStart, Tag("trained")], Discriminator(_which)
]
"""A published encoder, or the training of one."""


def require_encoder(start: PublishedModel | TrainedStart, params: Parameters, root: Path, where: str) -> None:
    """Require a published encoder to be there, and the test people to be ones that it cannot have seen.

    Raises ParameterError or DataError. Nothing is required of a start that is trained, on other people.
    """
    if not isinstance(start, PublishedModel):
        return
    from components.gadms.published import weights_digest

    start.require(root, where, weights_digest)
    require_reserved(params, where)


def require_reserved(params: Parameters, where: str) -> None:
    """Require drawn test people to be of combinations that pre-training never draws. Raises ParameterError."""
    if params.prepare.source == "drawn" and not params.prepare.reserve:
        raise ParameterError(
            f"{where} is pre-trained on drawn people, and prepare.reserve is false: set it to true, so that it has seen nobody of "
            f"the test split, and run `{REPRO_COMMAND} prepare`"
        )
