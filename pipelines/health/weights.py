"""Checks of the base model that TACA adapts, and of the weights that retrieval starts from."""

import os
from dataclasses import replace
from pathlib import Path

from components.errors import DataError, ParameterError
from components.gadms.architecture import model_config, require_tag
from components.gadms.published import weights_digest
from components.gadms.tasks import RetrievalTask
from pipelines.health.findings import Finding, State
from pipelines.params import Parameters
from pipelines.stages.parts.retrieval_training import new_encoder
from pipelines.workspace import Workspace


def check_weights(chosen: Parameters, workspace: Workspace) -> list[Finding]:
    """Check the base model that TACA adapts, and the weights that retrieval starts from."""
    return [_base_model(chosen, workspace), _retrieval_weights(chosen, workspace)]


def _base_model(chosen: Parameters, workspace: Workspace) -> Finding:
    settings, subject = chosen.base_model, "base_model.source"
    if settings.source == "tiny":
        return Finding(subject, State.MADE, True, "trained by the stage base_model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    from components.taca.pipeline_folder import PipelineFolder

    if settings.folder is not None and (settings.sha256 is not None or workspace.path(settings.folder).is_dir()):
        return _base_folder(workspace.path(settings.folder), settings.sha256, subject)
    command = f"`hf download {settings.source} --revision {settings.revision or '<commit>'}`"
    try:
        revision = settings.pinned_revision()
        folder = Path(snapshot_download(settings.source, revision=revision, local_files_only=True))
        files = PipelineFolder(folder).files()
    except ParameterError as error:
        return Finding(subject, State.MISSING, True, settings.source, (str(error), command))
    except LocalEntryNotFoundError:
        return Finding(subject, State.MISSING, True, f"{settings.source}: not in the Hugging Face cache", (command,))
    except DataError as error:
        return Finding(subject, State.INCOMPLETE, True, settings.source, (str(error), command))
    return Finding(subject, State.WHOLE, True, f"{settings.source}: {len(files)} files in the Hugging Face cache")


def _base_folder(folder: Path, sha256: str | None, subject: str) -> Finding:
    """Check a pipeline folder of the workspace against its digest."""
    from components.taca.reference import require_folder

    try:
        require_folder(folder, sha256)
    except ParameterError as error:
        return Finding(subject, State.MISSING, True, str(folder), (str(error),))
    except DataError as error:
        return Finding(subject, State.INCOMPLETE, True, str(folder), (str(error),))
    return Finding(subject, State.WHOLE, True, f"{folder}: as its digest says")


def _retrieval_weights(chosen: Parameters, workspace: Workspace) -> Finding:
    """Check weights given by an open_clip tag, which are in the Hugging Face cache, or by a file or model folder."""
    settings, subject = chosen.retrieval, "retrieval.pretrained"
    if not settings.pretrained:
        return Finding(subject, State.MADE, True, "none: the towers are trained from scratch")
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    name, weights = settings.architecture, settings.pretrained
    if not isinstance(name, str) or not (published := open_clip.get_pretrained_cfg(name, weights)):
        found = workspace.path(weights)
        if found.exists():
            return _local(found, subject, chosen, workspace)
        if isinstance(name, str):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none: open_clip does not know the name"
            return Finding(subject, State.MISSING, True, weights, (f"no such file; tags of {name} are {tags}",))
        fix = "no such file; for a tag, name a published architecture in retrieval.architecture"
        return Finding(subject, State.MISSING, True, f"{weights} for an architecture of params.yaml", (fix,))
    try:
        require_tag(name, model_config(name), weights)
    except ParameterError as error:
        return Finding(subject, State.INCOMPLETE, True, weights, (str(error),))
    repository, file = os.path.split(published["hf_hub"])
    wanted = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]  # the first it tries
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in wanted):
        return Finding(subject, State.WHOLE, True, f"{weights}: {repository} in the Hugging Face cache")
    place = f"{weights}: {repository} is not in the Hugging Face cache"
    return Finding(subject, State.MISSING, True, place, (f"`hf download {repository} {wanted[0]}`",))


def _local(place: Path, subject: str, chosen: Parameters, workspace: Workspace) -> Finding:
    """Check weights that are present: their digest, and that they can be read and fit the parameters."""
    settings = chosen.retrieval
    weights = settings.pretrained or ""
    try:
        found = weights_digest(place)
        if settings.pretrained_sha256 != found:
            pinned = settings.pretrained_sha256 or "null"
            fix = f"retrieval.pretrained_sha256 is {pinned}: set it to {found} if this file is the right one"
            return Finding(subject, State.INCOMPLETE, True, f"{weights}, not pinned", (fix,))
        encoder = new_encoder(chosen, (), workspace.root)
        phase = chosen.gadms_finetune if chosen.gadms_pretrain.corpus == "none" else chosen.gadms_pretrain
        RetrievalTask(encoder, replace(phase.method, id_weight=0.0), captions=1)  # fits its decoder too
    except (DataError, ParameterError) as error:
        return Finding(subject, State.INCOMPLETE, True, weights, (str(error),))
    return Finding(subject, State.WHOLE, True, f"{weights}, a {'model folder' if place.is_dir() else 'file'}")
