"""One function at a time between two convolutions: it keeps what is exact, or says why not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dgprune_lite as dg

IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.slopes, self.step = nn.Parameter(torch.rand(8)), step

    def forward(self, x):
        h = self.step(self, F.relu(self.a(x)))
        return self.out(F.relu(self.b(h)).mean((2, 3)))


def per_channel(weights):
    """Of (batch, channels), so that it multiplies images."""
    return weights[..., None, None]


EXACT = {
    "abs": lambda net, h: h.abs() + torch.sin(h) + torch.log1p(h) + torch.expm1(h),
    "addcmul": lambda net, h: torch.addcmul(h, h, h, value=0.5),
    "cumsum": lambda net, h: h.cumsum(-1),
    "div": lambda net, h: h / 2 - 3 * h / 4.0,
    "einsum as a mean": lambda net, h: h * per_channel(h.flatten(2).sum(-1)),
    "expand": lambda net, h: h * h.mean((2, 3), keepdim=True).expand(-1, -1, h.size(2), h.size(3)),
    "flatten": lambda net, h: h.flatten(2).view(h.shape),
    "flip": lambda net, h: h.flip(-1) + h.flip(1).flip(1),
    "functional instance norm": lambda net, h: F.instance_norm(h),
    "functional prelu": lambda net, h: F.prelu(h, torch.tensor([0.2], dtype=h.dtype)),
    "getitem": lambda net, h: h[:, :, ::2, 1:-1][..., 0:4] + h[..., :1, :1],
    "grid_sample": lambda net, h: F.grid_sample(h, torch.zeros(2, 6, 6, 2, dtype=h.dtype)),
    "index_select": lambda net, h: h.index_select(2, torch.tensor([0, 3, 4, 5])),
    "interpolate": lambda net, h: F.interpolate(h, scale_factor=2, mode="bilinear"),
    "logsumexp": lambda net, h: h * torch.logsumexp(h, (2, 3), keepdim=True),
    "lp_pool": lambda net, h: F.lp_pool2d(h, 2, 2),
    "masked": lambda net, h: h * (h > 0.1) + h.masked_fill(h < 0.2, 0.0),
    "max of two": lambda net, h: torch.max(h, h * 0.5) + torch.minimum(h, 2 * h),
    "max over space": lambda net, h: h * per_channel(h.flatten(2).max(2)[0]),
    "narrow": lambda net, h: h.narrow(2, 1, 5),
    "neg": lambda net, h: torch.neg(-h),
    "new_zeros": lambda net, h: h + h.new_zeros(h.shape) + torch.zeros_like(h) * 3,
    "norm": lambda net, h: h * h.norm(dim=(2, 3), keepdim=True),
    "ones": lambda net, h: h * torch.ones(1, h.shape[1], 1, 1, dtype=h.dtype),
    "pad": lambda net, h: F.pad(h, (1, 1, 2, 0), mode="reflect"),
    "parameter": lambda net, h: h * net.slopes[:, None, None],
    "prelu by a parameter": lambda net, h: F.prelu(h, net.slopes),
    "repeat": lambda net, h: h.repeat(1, 1, 2, 1),
    "roll": lambda net, h: h.roll(1, 3),
    "softmax of two": lambda net, h: (
        h * torch.stack([h, h * 2], 1).mean((3, 4)).softmax(1)[:, 0, :, None, None]
    ),
    "split": lambda net, h: sum(h.split(h.shape[1] // 2, 1)).repeat(1, 2, 1, 1),
    "squeeze": lambda net, h: h * per_channel(F.adaptive_avg_pool2d(h, 1).squeeze()),
    "stack and sum": lambda net, h: torch.stack([h, h.tanh()], 1).sum(1),
    "std": lambda net, h: h * h.std((2, 3), keepdim=True).sigmoid() * per_channel(h.var((2, 3))),
    "glu": lambda net, h: F.glu(torch.cat([h, h], 1), 1),
    "threshold": lambda net, h: F.threshold(h, 0.1, 0.0),
    "transpose": lambda net, h: h.transpose(1, 3).permute(0, 3, 2, 1).swapaxes(2, 3),
    "type_as": lambda net, h: h.type_as(h).to(h).type(torch.float64),
    "unbind in space": lambda net, h: torch.stack(h.unbind(2)[:6], 2),
    "unflatten": lambda net, h: h.flatten(2).unflatten(2, (10, 10)),
    "where": lambda net, h: torch.where(h > 0, h, h * 0.1),
    "writes in space": lambda net, h: zero_in_space(h),
}  # fmt: skip
NAMED = {
    "exp": (lambda net, h: h.exp(), "removing it would leave a constant at the input of b"),
    "matmul": (lambda net, h: h @ h, "matmul is an operation without a channel rule"),
    "local response": (lambda net, h: F.local_response_norm(h, 2), "normalises channels together"),
    "literal index": (lambda net, h: h[:, [1, 0, 2, 3, 4, 5, 6, 7]], "indexing the channel axis"),
    "literal split": (lambda net, h: torch.cat(h.split(4, 1), 1), "a size fixed in the code"),
    "literal view": (lambda net, h: h.view(-1, 8, 10, 10), "a size that is fixed in the code"),
    "mean over channels": (lambda net, h: h - h.mean(1, keepdim=True), "over the channel axis"),
    "numbers": (lambda net, h: h * len(h[0, :].tolist()), "without a channel rule"),
    "roll of channels": (lambda net, h: h.roll(1, 1), "roll along the channel axis"),
    "softmax of channels": (lambda net, h: h.softmax(1), "softmax over the channel axis"),
    "sort": (lambda net, h: h.sort(1)[0], "sort is an operation without a channel rule"),
    "threshold to one": (lambda net, h: F.threshold(h, 0.1, 1.0), "removing it would leave"),
    "writes to channels": (lambda net, h: zero_in_channels(h), "a part of it is written to"),
}  # fmt: skip


def zero_in_space(h):
    h = h.clone()
    h[..., :2] = 0
    return h


def zero_in_channels(h):
    h = h.clone()
    h[:, :4] = 0
    return h


def graph_of(step):
    torch.manual_seed(0)
    model = Net(step).double().eval()
    graph = dg.trace_channels(model, IMAGES)
    scores = torch.rand(graph.num_filters, generator=torch.Generator().manual_seed(1))
    plan = dg.plan_pruning(graph, graph.split(scores), 0.5)
    small = plan.apply(model, check=False)
    assert dg.check_exact(model, small, plan, graph, IMAGES) < 1e-9
    return graph


@pytest.mark.parametrize("name", EXACT)
def test_functions_that_keep_channels_apart(name):
    graph = graph_of(EXACT[name])
    assert "a" in graph.groups, graph.skipped
    assert set(graph.skipped) <= {"out", ""}


@pytest.mark.parametrize("name", NAMED)
def test_functions_that_do_not_say_why(name):
    graph = graph_of(NAMED[name][0])
    assert "a" not in graph.groups
    assert NAMED[name][1] in graph.skipped["a"]
