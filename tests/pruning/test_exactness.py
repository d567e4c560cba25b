"""PyTorch's switches for less than float32: off inside, as found afterwards.

The newer names of the switches came with PyTorch 2.9; the tests run with the pinned version.
"""

import pytest
import torch
from networks import network
from torch import nn

import dgprune_lite as dg
from dgprune_lite.exactness import full_float32
from dgprune_lite.scores.ablation import ablated_losses


def switches():
    """All of them, as far as they can be read."""
    found = {}
    for name, read in {
        "matmul": torch.get_float32_matmul_precision,
        "cublas": lambda: torch.backends.cuda.matmul.allow_tf32,
        "cudnn": lambda: torch.backends.cudnn.allow_tf32,
    }.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "mixed"
    for place in ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv"):
        backend, operation = place.split(".")
        found[place] = getattr(getattr(torch.backends, backend), operation).fp32_precision
    return found


def by_default():
    torch.backends.cudnn.allow_tf32 = True


def tf32_everywhere():
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True


def medium():
    torch.set_float32_matmul_precision("medium")


def by_the_newer_names():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"


def for_all_backends():
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.fp32_precision = "tf32"


OLD = [by_default, tf32_everywhere, medium]
NEW = [by_the_newer_names, for_all_backends]


@pytest.fixture(params=OLD + NEW, ids=lambda setting: setting.__name__)
def setting(request):
    """A way to allow less than float32; torch's defaults are put back afterwards."""
    request.param()
    yield request.param
    torch.backends.fp32_precision = "none"
    for operation in ("matmul", "conv", "rnn"):
        getattr(torch.backends.mkldnn, operation).fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    assert switches()["cudnn"] is True


@pytest.mark.parametrize("error", [False, True])
def test_off_inside_and_as_found_afterwards(setting, error):
    before = switches()
    try:
        with full_float32():
            inside = switches()
            if error:
                raise KeyError("inside")
    except KeyError:
        assert error
    assert not {"tf32", "bf16", "high", "medium", True} & set(inside.values()), inside
    if setting in OLD:
        assert inside["matmul"] == "highest"
        assert inside["cublas"] is inside["cudnn"] is False
    assert switches() == before


def test_of_two_blocks_at_a_time_the_last_to_end_puts_back(setting):
    before = switches()
    one, other = full_float32(), full_float32()
    with one:
        inside = switches()
        other.__enter__()  # as another thread might
    assert switches() == inside
    other.__exit__(None, None, None)
    assert switches() == before


def test_what_followed_the_setting_for_all_backends_still_does():
    try:
        for_all_backends()
        with full_float32():
            pass
        torch.backends.fp32_precision = "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True


def test_networks_are_compared_and_ablated_without_tf32(monkeypatch):
    seen: list[bool] = []
    model, images = network("plain_cnn")
    graph = dg.trace_channels(model, images)
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    small = plan.apply(model)

    def asking(self, values):
        seen.append(torch.backends.cudnn.allow_tf32)
        return values

    monkeypatch.setattr(nn.SiLU, "forward", asking)
    model(images)
    assert seen == [True]  # the default
    dg.check_exact(model, small, plan, graph, images)
    compared = len(seen)
    assert compared > 2
    ablated_losses(model, graph, images, torch.arange(4))
    assert len(seen) > compared
    assert not any(seen[1:])
    assert torch.backends.cudnn.allow_tf32
