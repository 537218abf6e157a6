"""What two curves of one training are compared on."""

from types import SimpleNamespace

import pytest
import torch

from pipelines.stages.parts.parity import common_device


@pytest.mark.parametrize(("gpus", "expected"), [(1, "cpu"), (2, "cuda")])
def test_a_machine_with_one_gpu_compares_one_process_with_two_workers_on_the_cpu(monkeypatch, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert common_device(SimpleNamespace(device=torch.device("cuda")), 2).type == expected
    assert common_device(SimpleNamespace(device=torch.device("cpu")), 2).type == "cpu"
