"""Sections on the machine, the report and the parity check."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from components.settings import Count, Positive
from components.taca.memory_options import Offload
from pipelines.schema.section import Section


class TrainParity(Section):
    """The same few training steps by Ray Train workers and by one process."""

    steps: Positive
    workers: Annotated[int, Field(ge=2)]


class Report(Section):
    """The number of examples in the report."""

    people: Positive
    queries: Positive
    heatmaps: Positive


class Compute(Section):
    """The machine. Results do not depend on it, except on `threads` (the order of floating-point sums)."""

    workers: Count = 0
    threads: Positive = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    offload: Offload = "none"
    max_failures: Count = 2
    min_workers: Positive | None = None
    backend: Literal["local", "job"] = "local"
    address: str | None = None
    storage: str | None = None
    patience: Positive = 120

    @field_validator("storage")
    @classmethod
    def _a_place_that_every_node_sees(cls, value: str | None) -> str | None:
        if value is None or value.startswith("/") or re.fullmatch(r"s3://[^/]+(/.*)?", value):
            return value
        raise ValueError("must be an absolute folder that every node sees, or s3://bucket/prefix")

    @model_validator(mode="after")
    def _jobs_have_a_storage(self) -> Self:
        if self.backend == "job" and not self.storage:
            raise ValueError(
                "compute.storage: a job needs an absolute folder that every node sees, or s3://bucket/prefix"
            )
        if self.min_workers is not None and self.min_workers > max(self.workers, 1):
            raise ValueError(f"compute.min_workers = {self.min_workers}: must not be above workers = {self.workers}")
        return self
