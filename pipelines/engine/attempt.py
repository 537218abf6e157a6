"""One attempt at a stage: what it reads, its fingerprint, its scratch folder, and its record for MLflow and the manifest."""

from dataclasses import dataclass
from typing import Any

from components.errors import DataError, ParameterError
from pipelines import graph
from pipelines.errors import InfrastructureError
from pipelines.graph import StageRun
from pipelines.identity.closure import ROOT
from pipelines.identity.fingerprint import present_fingerprint, stage_inputs, tree_digests
from pipelines.identity.known_digests import KnownDigests
from pipelines.params import ParameterFile, load_for
from pipelines.records.code_state import code_state
from pipelines.records.manifests import find_by_content, parameters_behind
from pipelines.records.stage_record import input_record, mlflow_parameters, mlflow_tags, stage_record
from pipelines.scratch.folder import Scratch, folder_name
from pipelines.scratch.manifest import InputRecord, StageRecord
from pipelines.tracking.runs import RunFacts
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Attempt:
    """A stage with its parameters, its inputs by name, and the scratch folder of its fingerprint."""

    run: StageRun
    params: ParameterFile
    inputs: dict[str, str]
    """By name, relative to the workspace."""
    fingerprint: str
    scratch: Scratch
    workspace: Workspace

    @classmethod
    def at(cls, address: str, workspace: Workspace) -> "Attempt":
        """Read parameters and inputs as they are now. Raises ParameterError, or DataError for a missing input."""
        run = graph.find(address)
        params = load_for(run.stage, workspace.root)
        inputs = stage_inputs(run, params, workspace.root)
        if missing := [path for path in inputs.values() if not workspace.path(path).exists()]:
            raise DataError(
                f"{address}: {', '.join(missing)} not there: run `{graph.command_for(run)}`, or `dvc pull` it"
            )
        identity = present_fingerprint(run, params, workspace.root, KnownDigests(workspace.home))
        scratch = Scratch(workspace.home / folder_name(run.address, identity))
        return cls(run, params, inputs, identity, scratch, workspace)

    @property
    def own(self) -> dict[str, Any]:
        """The parameters that the stage reads."""
        return self.params.only(self.run.stage.reads)

    def require_unchanged(self) -> None:
        """Raise InfrastructureError when parameters, inputs or code have changed since the start.

        DVC records what they are at the end of a stage, which must be what the stage read.
        """
        try:
            params = load_for(self.run.stage, self.workspace.root)
            now = present_fingerprint(self.run, params, self.workspace.root, KnownDigests(self.workspace.home))
        except (ParameterError, OSError):
            now = ""
        if now != self.fingerprint:
            raise InfrastructureError(
                f"{self.run.address}: its parameters, inputs or code were changed while it ran: its result is kept for what it "
                "read, and not put in place; run again"
            )

    def facts(self) -> tuple[RunFacts, StageRecord]:
        """Return what MLflow shows of this attempt, and the record of its origin for the manifest."""
        run, params, identity = self.run, self.params, self.fingerprint
        code = code_state(ROOT)  # of the code that runs; the workspace of a trial is no checkout
        inputs: dict[str, InputRecord] = {}
        behind: list[tuple[str, dict[str, Any]]] = []
        known = KnownDigests(self.workspace.home)
        for name, path in self.inputs.items():
            digests = tree_digests(self.workspace.path(path), known)
            made_by = find_by_content(path, digests, self.workspace, params)
            inputs[path] = input_record(name, self.workspace.path(path), digests, made_by)
            if maker := graph.producers().get(path):
                behind.append((maker.address, parameters_behind(path, made_by, inputs[path].md5, self.workspace)))
        record = stage_record(run, self.own, params, code, inputs, behind)
        tags = {
            "pipelines.stage": run.stage.name,
            "pipelines.arm": run.arm or "",
            "pipelines.fingerprint": identity,
            "pipelines.seed": str(params.seed),
            "pipelines.workers": str(params.compute.workers),
            "pipelines.threads": str(params.compute.threads),
            "pipelines.device": params.compute.device,
            **mlflow_tags(record),
        }
        return RunFacts(
            f"{run.address}/{identity[:8]}", tags, mlflow_parameters(record, run.arm), inputs, code.patch
        ), record
