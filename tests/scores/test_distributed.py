"""distributed.py: several processes measure what one does, and none waits for one that failed."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from networks import domains, network
from torch.utils.data import Subset, TensorDataset

import dgprune_lite as dg
from dgprune_lite.scores.distributed import checksum
from dgprune_lite.scores.risks import ORDERS

# What `torchrun` starts twice. Domain "one" has fewer images than there are processes.
SCRIPT = """
import os, sys, torch
import torch.distributed as dist
sys.path[:0] = ["tests", "tests/scores"]
import test_distributed as test

cuda = sys.argv[2] == "cuda"
if cuda:
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl" if cuda else "gloo")
torch.save(test.measure(dist.get_rank(), sys.argv[2]), f"{sys.argv[1]}/{dist.get_rank()}.pt")
dist.destroy_process_group()
"""
NAMES = ("images", "risk_sum", "gradient_sum", "fisher_sum", "ablation_sum")


def setting():
    model, example = network("digits_cnn", torch.float64)
    graph = dg.trace_channels(model, example)
    many, odd, one = domains(dtype=torch.float64).values()
    return model, graph, {"many": many, "odd": Subset(odd, range(7)), "one": Subset(one, [3])}


def told(function, *arguments):
    """What a process is told that should have been refused."""
    try:
        function(*arguments)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def measure(rank, device):
    """Everything that one of two processes does, in the same order as the other."""
    model, graph, data = setting()
    model = model.to(device)
    found = {}
    for order in ORDERS:
        stats = dg.distributed_statistics(model, graph, data, order=order, batch_size=5)
        found[order] = [getattr(stats, name) for name in NAMES]
    images, labels = (tensor.clone() for tensor in data["many"].tensors)
    images[3] = torch.nan  # an image of process 1
    broken = {**data, "many": TensorDataset(images, labels)}
    found["broken"] = told(dg.distributed_statistics, model, graph, broken)
    found["none"] = told(dg.distributed_statistics, model, graph, {})
    fewer = {**data, "many": Subset(data["many"], range(24 - rank))}
    found["fewer"] = told(dg.distributed_statistics, model, graph, fewer)
    model.fc.bias.data[0] += rank
    found["weights"] = told(dg.distributed_statistics, model, graph, data)
    return found


def in_two_processes(folder, device):
    (folder / "score.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(folder / "score.py"), str(folder), device],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def assert_as_one_process(results):
    model, graph, data = setting()
    for order in ORDERS:
        stats = dg.domain_statistics(model, graph, data, order=order)
        for name, *values in zip(NAMES, *(result[order] for result in results), strict=True):
            expected = getattr(stats, name)
            for value in values:
                if expected is None:
                    assert value is None
                else:
                    assert value.dtype == expected.dtype
                    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)


@pytest.fixture
def alone():
    """A group of one process, in this one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sums_do_not_go_where_the_network_is_not(alone, monkeypatch):
    """On a machine with a GPU, NCCL refuses the tensors of a network on the CPU."""

    def refused(*_, **__):
        raise RuntimeError("No backend type associated with device type cpu")

    monkeypatch.setattr(dist, "all_reduce", refused)
    monkeypatch.setattr(dist, "get_backend", lambda *_: "nccl")
    model, graph, data = setting()
    found = dg.distributed_statistics(model, graph, data)
    expected = dg.domain_statistics(model, graph, data)
    for name in NAMES[:4]:
        assert torch.equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


def test_what_makes_no_sense_is_named_among_processes_too(alone):
    model, graph, data = setting()
    with pytest.raises(TypeError, match="data is a Subset; expected a mapping"):
        dg.distributed_statistics(model, graph, data["odd"])
    with pytest.raises(TypeError, match="graph is 'digits', expected what trace_channels"):
        dg.distributed_statistics(model, "digits", data)
    with pytest.raises(TypeError, match=r"model is None, expected an nn\.Module"):
        dg.distributed_statistics(None, graph, data)


def test_a_torch_without_processes(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    monkeypatch.delattr(dist, "is_initialized")
    model, graph, data = setting()
    assert dg.distributed_statistics(model, graph, data).images.tolist() == [24, 7, 1]


def test_the_checksum_sees_order_names_and_types():
    linear = torch.nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.arange(6.0).view(2, 3))
    others = [copy.deepcopy(linear) for _ in range(3)]
    others[0].weight.data = linear.weight.data.flip(0)  # the same bytes in another order
    others[1].weight.data = linear.weight.data.view(3, 2)
    others[2] = torch.nn.Sequential(linear)
    sums = {checksum(model) for model in [linear, *others]}
    assert len(sums) == 4
    assert checksum(copy.deepcopy(linear)) in sums
    others[0].weight = torch.nn.Parameter(linear.weight.view(torch.int32), requires_grad=False)
    assert checksum(others[0]) != checksum(linear)  # the same bytes of another type
    rows = torch.nn.Conv2d(3, 8, 3)
    assert checksum(copy.deepcopy(rows).to(memory_format=torch.channels_last)) == checksum(rows)


@pytest.mark.slow
def test_two_processes_measure_what_one_does_and_fail_together(tmp_path):
    results = in_two_processes(tmp_path, "cpu")
    assert_as_one_process(results)
    first, second = results
    nan = "ValueError: the loss is nan in domain 'many', batch 0"
    assert second["broken"].startswith(nan)
    assert first["broken"].startswith(f"RuntimeError: scoring failed in process 1: {nan}")
    assert "'many', 24" in first["fewer"]
    assert "'many', 23" in first["fewer"]
    for result in results:
        assert "holds no domain" in result["none"]
        assert "expected the same in all" in result["fewer"]
        assert "expected the same in all" in result["weights"]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus(tmp_path):
    assert_as_one_process(in_two_processes(tmp_path, "cuda"))
