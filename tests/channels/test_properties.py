"""Random networks of all supported operations: whatever can be planned is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from networks import assert_same, fingerprint
from torch import nn

import dgprune_lite as dg
from dgprune_lite.channels.graph import keep_mask
from dgprune_lite.pruning.pruning import make_plan

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.Tanh, nn.ReLU6, nn.Sigmoid)


def same(dims):
    """A convolution that pads and calls the function itself."""

    def forward(self, x):
        x = F.pad(x, [1, 1] * dims)
        call = getattr(F, f"conv{dims}d")
        return call(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    return type("Same", (CONV[dims],), {"forward": forward})


def norm_act(dims):
    """A BatchNorm that calls the function itself, and an activation after it."""

    def forward(self, x):
        statistics = self.running_mean, self.running_var
        return F.silu(F.batch_norm(x, *statistics, self.weight, self.bias, self.training))

    return type("NormAct", (BATCH_NORM[dims],), {"forward": forward})


class Standardised(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class Scale(nn.Module):
    """Parameters of its own names, one or both."""

    def __init__(self, width, dims, shift):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width, *[1] * dims))
        self.beta = nn.Parameter(torch.rand(1, width, *[1] * dims)) if shift else None

    def forward(self, x):
        return x * self.gamma if self.beta is None else x * self.gamma + self.beta


class Random(nn.Module):
    """A program: each step takes activations made so far and appends one or more."""

    def __init__(self, dims, recipe, heads):
        super().__init__()
        self.dims, self.steps = dims, []
        self.images = torch.randn(2, 4, *[4] * dims, dtype=torch.float64)
        self.stem, self.shared = (CONV[dims](inputs, 8, 1).double() for inputs in (4, 8))
        known = [self.stem(self.images)]
        for op, source, choice in recipe:
            x = known[-1 - source % len(known)]
            other = known[-1 - choice % len(known)]
            modules = getattr(self, f"make_{op}", lambda *_: [])(x, other, choice)
            if modules is None:  # the operation does not fit this shape
                continue
            names = []
            for module in modules:
                names.append(f"m{len(self._modules)}")
                self.add_module(names[-1], module.double())
            step = (op, source % len(known), choice % len(known), choice, names)
            with torch.no_grad():
                known.append(self.take(step, known).detach())
            self.steps.append(step)
        self.heads = nn.ModuleList()
        for head in heads:
            x = known[-1 - head % len(known)]
            size = x.shape[1] if head % 2 else x[0].numel()
            self.heads.append(nn.Linear(size, 3, dtype=torch.float64))
        self.head_choices = heads

    def take(self, step, known):
        op, source, other, choice, names = step
        modules = [getattr(self, name) for name in names]
        return getattr(self, f"run_{op}")(known[-1 - source], known[-1 - other], choice, *modules)

    def forward(self, images):
        known = [self.stem(images)]
        for step in self.steps:
            known.append(self.take(step, known))
        outputs = []
        for head, layer in zip(self.head_choices, self.heads, strict=True):
            x = known[-1 - head % len(known)]
            outputs.append(layer(x.flatten(2).mean(2) if head % 2 else x.flatten(1)))
        return {"logits": outputs}

    # --- how to make the modules of a step, and how to run it --------------------------------

    def make_conv(self, x, other, choice):
        channels = x.shape[1]
        groups = [1, 2, channels][choice % 3]
        if channels % groups:
            return None
        out = [8, 2 * channels, 4][choice % 3] if groups < channels else channels * (1 + choice % 2)
        return [CONV[self.dims](channels, out, 3, padding=1, groups=groups, bias=choice % 2 == 0)]

    def make_transposed(self, x, other, choice):
        channels = x.shape[1]
        groups = [1, 2, channels][choice % 3]
        if channels % groups or x.shape[2] > 8:
            return None
        out = 6 if groups < channels else 2 * channels
        return [TRANSPOSED[self.dims](channels, out, 2, stride=1 + choice % 2, groups=groups)]

    def make_batch_norm(self, x, other, choice):
        plain = choice % 4 == 3
        norm = BATCH_NORM[self.dims](
            x.shape[1], affine=not plain, track_running_stats=choice % 4 != 2
        )
        return [_lively(norm)]

    def make_instance_norm(self, x, other, choice):
        if x[0, 0].numel() < 2:
            return None
        return [_lively(INSTANCE_NORM[self.dims](x.shape[1], affine=choice % 2 == 0))]

    def make_group_norm(self, x, other, choice):
        groups = [2, x.shape[1], 4, 1][choice % 4]
        return None if x.shape[1] % groups else [_lively(nn.GroupNorm(groups, x.shape[1]))]

    def make_prelu(self, x, other, choice):
        prelu = nn.PReLU(x.shape[1] if choice % 2 else 1)
        prelu.weight.data.uniform_(0.1, 0.9)
        return [prelu]

    def make_activation(self, x, other, choice):
        return [ACTIVATIONS[choice % len(ACTIVATIONS)]()]

    def make_in_place(self, x, other, choice):
        return [nn.ReLU(inplace=True)]

    def make_pool(self, x, other, choice):
        return [MAX_POOL[self.dims](2)] if x.shape[2] > 1 else None

    def make_upsample(self, x, other, choice):
        return [nn.Upsample(scale_factor=2)] if x.shape[2] < 5 else None

    def make_subclass(self, x, other, choice):
        channels = x.shape[1]
        if choice % 3 == 0:
            return [_lively(norm_act(self.dims)(channels))]
        groups = channels if choice % 3 == 1 else 1
        return [same(self.dims)(channels, channels if groups > 1 else 6, 3, groups=groups)]

    def make_scale(self, x, other, choice):
        return [Scale(x.shape[1], self.dims, choice % 2)]

    def make_standardised(self, x, other, choice):
        return [Standardised(x.shape[1], 6)]

    def make_functional(self, x, other, choice):
        return [CONV[self.dims](x.shape[1], 6, 1)] if choice % 2 else []

    def make_writes_in_space(self, x, other, choice):
        return [] if x.shape[-1] > 1 else None

    def make_add(self, x, other, choice):
        return [] if x.shape == other.shape else None

    make_multiply = make_maximum = make_add

    def make_residual(self, x, other, choice):
        return [CONV[self.dims](x.shape[1], x.shape[1], 3, padding=1)]

    def make_cat(self, x, other, choice):
        return [] if x.shape[2:] == other.shape[2:] and x.shape[1] < 20 else None

    def make_halves(self, x, other, choice):
        return None if x.shape[1] % 2 else []

    make_shuffle = make_split_by_size = make_halves

    def make_channel_shuffle(self, x, other, choice):
        return None if x.shape[1] % 2 else [nn.ChannelShuffle(2)]

    def make_pixel_shuffle(self, x, other, choice):
        return [nn.PixelShuffle(2)] if self.dims == 2 and x.shape[1] % 4 == 0 else None

    def make_pixel_unshuffle(self, x, other, choice):
        even = self.dims == 2 and x.shape[2] % 2 == 0 and x.shape[1] < 10
        return [nn.PixelUnshuffle(2)] if even else None

    def make_attention(self, x, other, choice):
        return [nn.Linear(x.shape[1], 6), nn.Linear(6, x.shape[1])]

    def make_channels_last(self, x, other, choice):
        return [nn.Linear(x.shape[1], 6)]

    def make_shared(self, x, other, choice):
        return [] if x.shape[1] == 8 and x.shape == other.shape else None

    def run_module(self, x, other, choice, module):
        return module(x)

    run_conv = run_transposed = run_batch_norm = run_instance_norm = run_group_norm = run_module
    run_prelu = run_activation = run_in_place = run_pool = run_upsample = run_module
    run_channel_shuffle = run_pixel_shuffle = run_pixel_unshuffle = run_module

    run_subclass = run_scale = run_module

    def run_standardised(self, x, other, choice, linear):
        return linear(x.transpose(1, -1)).transpose(1, -1)

    def run_functional(self, x, other, choice, *layers):
        if layers:
            (layer,) = layers
            return getattr(F, f"conv{self.dims}d")(x, layer.weight, layer.bias)
        return torch.where(x > 0, x, x * 0.1) if choice % 4 else F.softplus(x) * (x > 0.2)

    def run_asks_for_sizes(self, x, other, choice):
        batch, channels, *space = x.shape
        if x.dim() != self.dims + 2 or batch < 1:
            raise ValueError("never")
        if channels % 2 == 0 and choice % 3 == 0:
            halves = x.reshape(batch, 2, channels // 2, *space)
            return torch.cat([halves[:, 1], halves[:, 0]], 1)
        y = x.flatten(2) if choice % 3 == 1 else x.unsqueeze(2)
        return y.view(batch, -1, *space)

    def run_writes_in_space(self, x, other, choice):
        y = x.clone()
        y[..., :1] = [0.0, 1.0, 0.0][choice % 3]
        y *= 2.0
        return y

    def run_add(self, x, other, choice):
        return x + other if choice % 2 else torch.sub(x, other)

    def run_multiply(self, x, other, choice):
        return x * other

    def run_maximum(self, x, other, choice):
        return torch.maximum(x, other)

    def run_residual(self, x, other, choice, conv):
        return F.relu(conv(x).add_(x) if choice % 2 else conv(x) + x)

    def run_cat(self, x, other, choice):
        return torch.cat([x, other] if choice % 3 else [other, x, other], dim=1)

    def run_halves(self, x, other, choice):
        one, two = x.chunk(2, dim=1)
        return torch.cat([two.relu(), one], 1) if choice % 2 else one + two

    def run_split_by_size(self, x, other, choice):
        one, two = torch.split(x, x.shape[1] // 2, dim=1)
        return torch.cat([one, two, one], 1)

    def run_shuffle(self, x, other, choice):
        batch, channels = x.size(0), x.size(1)
        y = (
            x.flatten(2)
            .reshape(batch, 2, channels // 2, -1)
            .transpose(1, 2)
            .reshape(batch, channels, -1)
        )
        return y.view(batch, channels, *[x.size(axis + 2) for axis in range(self.dims)])

    def run_attention(self, x, other, choice, down, up):
        ones = [1] * self.dims
        weights = up(down(x.flatten(2).mean(2)).relu()).sigmoid()
        if choice % 2:
            return x * weights.view(x.size(0), x.size(1), *ones).expand_as(x)
        return weights.reshape(-1, weights.size(1), *ones) * x

    def run_channels_last(self, x, other, choice, linear):
        return linear(x.transpose(1, -1)).transpose(1, -1)

    def run_pad(self, x, other, choice):
        return F.pad(x, [1, 0] * self.dims + [0, 0] * (choice % 2))

    def run_pad_channels(self, x, other, choice):
        return F.pad(x, [0, 0] * self.dims + [1, 2])

    def run_through_a_view(self, x, other, choice):
        y = x.contiguous().clone()
        y.view(y.size(0), -1).mul_(0.5).add_(choice % 2)
        return y

    def run_clamp(self, x, other, choice):
        if choice % 3 == 2:
            return torch.clamp(x, min=torch.tensor(0.1, dtype=x.dtype))
        return x.clamp(-0.5, 0.5) if choice % 3 else x.clamp(min=0.1)

    def run_power(self, x, other, choice):
        return x**2

    def run_batch_of_channels(self, x, other, choice):
        space = [x.size(axis + 2) for axis in range(self.dims)]
        y = x.reshape(x.size(0) * x.size(1), 1, *space)
        return (y.relu() * 2).view(x.size(0), x.size(1), *space)

    def run_shared(self, x, other, choice):
        return self.shared(x) + other


def _lively(norm):
    for tensor in [*norm.parameters(), *norm.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.3, 1.5)
    return norm


OPERATIONS = sorted(name.removeprefix("run_") for name in dir(Random) if name.startswith("run_"))
OPERATIONS.remove("module")
assert {"subclass", "functional", "asks_for_sizes", "writes_in_space"} <= set(OPERATIONS)
RECIPES = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 3), st.integers(0, 11)),
    min_size=2,
    max_size=9,
)
HEADS = st.lists(st.integers(0, 3), min_size=1, max_size=2)


def random_network(dims, recipe, heads, seed):
    torch.manual_seed(seed)
    return Random(dims, recipe, heads).eval()


seen: list[int] = []  # the filters of each network
seen_both: list[bool] = []  # whether two plans in a row were one plan


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[
        Phase.explicit,
        Phase.generate,
    ],  # recipes are short, and making them shorter takes minutes
    suppress_health_check=list(HealthCheck),
)
@example(2, [("through_a_view", 0, 1)], [0], 0, 0.5)
@given(st.integers(1, 3), RECIPES, HEADS, st.integers(0, 99), st.sampled_from([0.3, 0.5, 0.8]))
def check_network(dims, recipe, heads, seed, ratio):
    model = random_network(dims, recipe, heads, seed)
    images = model.images
    before = fingerprint(model)
    graph = dg.trace_channels(model, images)
    assert_same(before, fingerprint(model))
    seen.append(graph.num_filters)
    if not graph.num_filters:
        with pytest.raises(ValueError, match="no filter of this network can be removed"):
            dg.plan_pruning(graph, {}, ratio)
        return

    generator = torch.Generator().manual_seed(seed)
    scores = graph.split(torch.rand(graph.num_filters, generator=generator))
    plan = dg.plan_pruning(graph, scores, ratio)
    for size, left in plan.widths.values():
        assert left >= 1
        assert abs(left - size * (1 - ratio)) <= 1
    small = plan.apply(model)
    dg.check_exact(model, small, plan, graph, images)
    assert sum(p.numel() for p in small.parameters()) == plan.parameters[1]

    # pruning what was pruned is pruning both at once
    second = dg.trace_channels(small, images)
    if not second.num_filters:
        return
    scores = second.split(torch.rand(second.num_filters, generator=generator))
    again = dg.plan_pruning(second, scores, 0.4)
    union = removed_by_both(graph, plan, again)
    if union is not None:
        both = make_plan(graph, union, 0.0).apply(model)
        assert_same(dict(both.state_dict()), dict(again.apply(small).state_dict()))


def removed_by_both(graph, plan, again):
    """Filters of the first graph that either plan removes, bool (M,).

    None where the second plan removes parts of them: a grouped convolution that is left with one
    channel a group has become depthwise, so that its groups can go one by one.
    """
    removed = np.zeros(graph.num_filters, dtype=bool)
    for name, kept in plan.kept_gates.items():
        removed[graph.groups[name].span] = kept.numpy() == 0
    gone, stays = set(), set()
    for name, layer in graph.layers.items():
        left = layer.out_units[keep_mask(layer.out_units, removed)]
        cut = np.isin(np.arange(len(left)), again.removed.get(name, ()))
        gone |= set(left[cut].tolist())
        stays |= set(left[~cut].tolist())
    assert -1 not in gone
    removed[sorted(gone)] = True
    seen_both.append(gone.isdisjoint(stays))
    return removed if seen_both[-1] else None


def test_random_networks_are_pruned_exactly():
    seen.clear()
    seen_both.clear()
    check_network()
    assert len(seen) >= 300
    assert np.mean(np.array(seen) > 0) > 0.6  # most have something to prune
    assert np.mean(seen_both) > 0.9
