"""What CUDA refuses and allows, so that the pretended GPU is held to it where there is a real one.

The last test is the purpose: the tests of a GPU, on a machine without one.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
TWO_DEVICES = "[Ee]xpected all tensors to be on the same device"


@pytest.mark.gpu
@pytest.mark.parametrize(
    "act",
    [
        lambda there, here: there + here,
        lambda there, here: here + there,
        lambda there, here: here.add_(there),
        lambda there, here: torch.stack([there, here]),
        lambda there, here: torch.nn.functional.linear(there[None], here[None]),
        lambda there, here: torch.where(there > 0, there, here),
    ],
)
def test_two_devices_do_not_meet(gpu, act):
    with pytest.raises(RuntimeError, match=TWO_DEVICES):
        act(torch.ones(3, device=gpu), torch.ones(3))


@pytest.mark.gpu
def test_numbers_there_are_no_arrays_here(gpu):
    there = torch.ones(3, device=gpu)
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        there.numpy()
    assert there.cpu().numpy().tolist() == there.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.gpu
def test_a_generator_here_draws_nothing_there(gpu):
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=gpu, generator=torch.Generator().manual_seed(0))


@pytest.mark.gpu
def test_indices_there_take_nothing_here(gpu):
    with pytest.raises(RuntimeError, match=f"indices should be|{TWO_DEVICES}"):
        torch.arange(3)[torch.tensor([2, 0], device=gpu)]


@pytest.mark.gpu
def test_single_numbers_and_indices_may_be_here(gpu):
    there = torch.arange(3.0, device=gpu)
    assert (there * torch.tensor(2.0))[torch.tensor([2, 1])].tolist() == [4.0, 2.0]
    there[torch.tensor([0])] = 5.0
    assert there.copy_(torch.ones(3)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.gpu
def test_gradients_stay_there(gpu):
    there = torch.arange(4.0, device=gpu, requires_grad=True)
    here = torch.arange(4.0, requires_grad=True)
    for values in (there, here):
        (values.view(2, 2).t()[0] ** 3).sum().backward()
    assert there.grad.device == there.device
    assert there.grad.tolist() == here.grad.tolist() == [0.0, 0.0, 12.0, 0.0]


def test_the_tests_of_a_gpu_pass_on_a_pretended_one():
    """Those that need no CUDA of its own; in another process: see `pretended.py`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pretended-gpu"]
    run = subprocess.run(
        [*command, "-m", "gpu", TESTS], cwd=TESTS.parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", run.stdout)[1])
    assert passed > 30, run.stdout
