"""When gradients are exchanged, what is cut, what a checkpoint reads back. tests/taca/test_lora_training.py has two processes."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from components.training import loop
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.distribution import gathered, gradient_sync, repeated_blocks, replicate, shard, sharded_like
from components.training.task import PerSampleTask


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def several(strategy):
    """A context that says it is one of several, as `shard` and `replicate` do nothing for one."""
    context = LocalContext()
    context.world_size, context.strategy = 2, strategy
    return context


def test_ddp_exchanges_gradients_with_the_last_part_only(group):
    exchanges = []

    def count(state, bucket):
        exchanges.append(bucket.index())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    model = DistributedDataParallel(nn.Linear(2, 1))
    model.register_comm_hook(None, count)
    expected = nn.Linear(2, 1)
    expected.load_state_dict(model.module.state_dict())
    for wanted in (False, False, True):
        with gradient_sync(model, wanted):
            model(torch.ones(1, 2)).sum().backward()
        expected(torch.ones(1, 2)).sum().backward()
        assert len(exchanges) == int(wanted)
    torch.testing.assert_close(model.module.weight.grad, expected.weight.grad)


def test_fsdp_exchanges_gradients_with_the_last_part_only(group, monkeypatch):
    context = several("fsdp")
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    expected = copy.deepcopy(model)
    monkeypatch.setattr(
        "torch.distributed.device_mesh.init_device_mesh", lambda device, shape: one_process_mesh(device)
    )
    assert shard(model, list(model), context)
    for wanted in (False, False, True):
        with gradient_sync(model, wanted):
            model(torch.ones(1, 2)).sum().backward()
        expected(torch.ones(1, 2)).sum().backward()
        assert all((parameter.grad is not None) == wanted for parameter in model.parameters())
    for found, wanted_parameter in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(gathered(found.grad), wanted_parameter.grad)
        stored = sharded_like(wanted_parameter.grad, found)
        assert type(stored) is type(found.grad)
        torch.testing.assert_close(gathered(stored), wanted_parameter.grad)


def one_process_mesh(device):
    return dist.DeviceMesh(device, torch.tensor([0]))


def test_the_loop_asks_for_an_exchange_once_a_step(monkeypatch):
    class Plain(PerSampleTask):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, batch, step):
            return {"loss": self.linear(batch).sum()}

    asked = []

    def recorded(model, wanted):
        asked.append(wanted)
        return gradient_sync(model, wanted)

    monkeypatch.setattr(loop, "gradient_sync", recorded)
    config = LoopConfig(steps=2, learning_rate=0.1, accumulate=3)
    loop.fit(Plain(), [lambda step: torch.ones(1, 2)] * 3, config, LocalContext())
    assert asked == [False, False, True] * 2


def test_only_a_task_that_names_its_blocks_is_sharded_and_only_over_several_processes():
    model = nn.Sequential(nn.Linear(2, 2))
    assert not shard(model, list(model), several("ddp"))
    assert not shard(model, [], several("fsdp"))
    alone = LocalContext()
    alone.strategy = "fsdp"
    assert not shard(model, list(model), alone)
    assert replicate(model, alone) is model
    assert type(model) is nn.Sequential


def test_the_repeated_blocks_are_the_members_of_the_models_lists():
    model = nn.Module()
    model.first = nn.Linear(1, 1)
    model.blocks = nn.ModuleList([nn.Sequential(nn.ModuleList([nn.Linear(1, 1)])), nn.Linear(1, 1)])
    model.more = nn.ModuleList([nn.Linear(1, 1)])
    assert repeated_blocks(model) == [*model.blocks, *model.more]


def test_gathering_and_cutting_leave_what_is_not_sharded_as_it_is():
    tensor = torch.ones(2)
    state = {"a": [tensor, 1], "b": {"c": (1, 2)}}
    found = gathered(state)
    assert found["a"][0] is tensor
    assert found["b"] == {"c": (1, 2)}
    assert sharded_like(tensor, nn.Parameter(torch.zeros(2))) is tensor
