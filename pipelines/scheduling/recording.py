"""Saves a finished stage run with DVC's functions, after a check that what DVC saved is what the manifest says."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from components.errors import ParameterError
from pipelines.errors import one_line
from pipelines.graph import StageRun
from pipelines.identity.fingerprint import digest, present_fingerprint, stage_inputs, tree_digests
from pipelines.identity.known_digests import KnownDigests
from pipelines.params import Parameters
from pipelines.records.stage_record import sources_digest
from pipelines.scheduling.differences import recorded_md5
from pipelines.scratch.folder import folder_name
from pipelines.scratch.manifest import MANIFEST_FILE, Manifest
from pipelines.workspace import Workspace

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage


class Recorder:
    """Saves and commits stages of one repository.

    expected: by address the entry of dvc.lock or of the run cache that was checked out; a stage that is not here has a manifest.
    fingerprints: by address that of the stage's inputs when it was decided what it needs.
    """

    def __init__(self, repo: "Repo", workspace: Workspace, known: KnownDigests) -> None:
        self._repo = repo
        self._workspace = workspace
        self._known = known
        self.expected: dict[str, Mapping[str, Any]] = {}
        self.fingerprints: dict[str, str] = {}

    def save(self, run: StageRun, stage: "PipelineStage", read_params: Callable[[], Parameters]) -> str | None:
        """Fill `stage` with what is in the workspace, put its outs into DVC's cache and an entry into its run cache.

        Returns why that was not done, or None. DVC hashes first and the check reads after it, so that what was edited before is
        noticed; what is edited later is not what is recorded.
        """
        from dvc.exceptions import DvcException

        try:
            stage.save(run_cache=False)
            problem = self._difference(run, stage, read_params)
            if problem is None:
                # Also of a stage with outs that git keeps and that are no metrics, of which `dvc repro` keeps none: so that a
                # parameter that is set back needs no run.
                self._repo.stage_cache.save(stage)
                stage.commit()
                problem = None if stage.outs_cached() else "its outputs were changed while they were recorded"
        except (DvcException, ParameterError, OSError) as error:
            return one_line(error)
        return problem

    def _difference(self, run: StageRun, stage: "PipelineStage", read_params: Callable[[], Parameters]) -> str | None:
        if run.address in self.expected:
            return self._from_entry(stage, self.expected[run.address])
        params, root = read_params(), self._workspace.root
        identity = present_fingerprint(run, params, root, self._known)
        done = self._manifest(run, identity)
        if done is None:
            return f"{self._changed_since(run, params)} changed since it ran: run again"
        edited = [path for path in run.all_outputs if tree_digests(root / path, self._known) != done.outputs.get(path)]
        return f"{', '.join(edited)}: not what the stage has written: run again" if edited else None

    def _from_entry(self, stage: "PipelineStage", entry: Mapping[str, Any]) -> str | None:
        from dvc.stage.serialize import to_single_stage_lockfile

        saved = to_single_stage_lockfile(stage)
        differing = [
            path for path, md5 in recorded_md5(entry, "outs").items() if recorded_md5(saved, "outs").get(path) != md5
        ]
        own = recorded_md5(saved, "deps")
        # An entry may name dependencies that dvc.yaml no longer has; DVC does not mind either.
        differing += [path for path, md5 in own.items() if recorded_md5(entry, "deps").get(path) != md5]
        differing += ["params.yaml"] if dict(saved.get("params", {})) != dict(entry.get("params", {})) else []
        return f"{', '.join(differing)} changed since it was checked out: run again" if differing else None

    def _changed_since(self, run: StageRun, params: Parameters) -> str:
        """Return what is not as it was when the stage began, as well as its manifest tells."""
        began = self._manifest(run, self.fingerprints.get(run.address, ""))
        if began is None or began.provenance is None:
            return "its parameters, inputs or code"
        then, root = began.provenance, self._workspace.root
        changed = ["its parameters"] if then.parameters != params.only(run.stage.reads) else []
        changed += ["its code"] if then.sources != sources_digest(run) else []
        for path in stage_inputs(run, params, root).values():
            now = digest(tree_digests(root / path, self._known))
            changed += [path] if path not in then.inputs or then.inputs[path].sha256 != now else []
        return ", ".join(changed) or "its packages or threads"

    def _manifest(self, run: StageRun, identity: str) -> Manifest | None:
        return Manifest.read(self._workspace.home / folder_name(run.address, identity) / MANIFEST_FILE)
