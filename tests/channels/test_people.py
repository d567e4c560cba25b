"""Layers and networks as people and libraries write them: what is exact goes, the rest is named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from networks import assert_same, fingerprint
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

import dgprune_lite as dg

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Two convolutions with a norm each and a classifier; ``step`` says what lies between."""

    def __init__(self, conv=nn.Conv2d, norm=nn.BatchNorm2d, step=None):
        super().__init__()
        self.a, self.n, self.b, self.m = conv(3, 8, 3), norm(8), conv(8, 8, 3), norm(8)
        self.out, self.step = nn.Linear(8, 5), step or (lambda net, h: h)

    def forward(self, x):
        h = self.step(self, F.relu(self.n(self.a(x))))
        return self.out(F.relu(self.m(self.b(h))).mean((2, 3)))


def traced(model, inputs=IMAGES):
    """The graph of a lively network in float64, after seeing that half of it goes exactly."""
    torch.manual_seed(0)
    model = model.double().eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.data.uniform_(0.3, 1.5)
    before = fingerprint(model)
    graph = dg.trace_channels(model, inputs)
    assert_same(before, fingerprint(model))
    if graph.num_filters:
        scores = torch.rand(graph.num_filters, generator=torch.Generator().manual_seed(1))
        plan = dg.plan_pruning(graph, graph.split(scores), 0.5)
        small = plan.apply(model)
        assert dg.check_exact(model, small, plan, graph, inputs) < 1e-9
        assert sum(p.numel() for p in small.parameters()) == plan.parameters[1]
        small.train()(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    return graph


# --- layers by subclass and by function ------------------------------------------------------


class Same(nn.Conv2d):
    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training
        )
        return F.silu(x)


class Affine(nn.Module):
    """A norm without any of PyTorch's, by parameters of other names and a buffer."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))
        self.shift = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x):
        return (x - self.mean[:, None, None]) * self.scale + self.shift.view(-1, 1, 1)


class LayerScale(nn.BatchNorm2d):
    def __init__(self, width):
        super().__init__(width)
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 0.5))

    def forward(self, x):
        return super().forward(x) * self.gamma


def synchronised(width):
    return nn.SyncBatchNorm(width)


@pytest.mark.parametrize(
    ("conv", "norm"),
    [
        (Same, nn.BatchNorm2d),
        (nn.Conv2d, NormAct),
        (Same, NormAct),
        (nn.Conv2d, synchronised),
        (nn.Conv2d, FrozenBatchNorm2d),
        (nn.Conv2d, LayerScale),
        (nn.Conv2d, lambda width: nn.Sequential(nn.BatchNorm2d(width), LayerScale(width))),
    ],
)
def test_layers_that_call_functions_themselves_go_exactly(conv, norm):
    graph = traced(Net(conv, norm))
    assert [group.size for group in graph.groups.values()] == [8, 8]
    assert set(graph.skipped) == {"out"}


def test_parameters_and_buffers_of_other_names_shrink_with_their_channels():
    graph = traced(Net(norm=lambda width: nn.Sequential(Affine(width), nn.BatchNorm2d(width))))
    assert [group.size for group in graph.groups.values()] == [8, 8]
    loose = [name for name, layer in graph.layers.items() if layer.kind == "parameter"]
    assert loose == [f"{n}.0.{key}" for n in "nm" for key in ("scale", "shift", "mean")]


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, training=True
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


def test_a_standardised_weight_may_lose_filters_and_no_inputs():
    graph = traced(Net(Standardised))
    assert {name: group.producers for name, group in graph.groups.items()} == {"b": ("b",)}
    assert graph.skipped["a"] == "b: each weight is computed from all of its inputs"


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_a_parametrised_weight_is_named_with_what_to_do(wrap):
    graph = traced(Net(lambda *size: wrap(nn.Conv2d(*size))))
    assert graph.groups == {}
    assert "computed from other tensors (a parametrization?): remove that" in graph.skipped["b"]


class Domains(nn.Module):
    """A BatchNorm for each domain, and one of other names."""

    def __init__(self, listed):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.bns = nn.ModuleList([nn.BatchNorm2d(8) for _ in range(3)]) if listed else None
        self.source, self.target = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x, d=0):
        norm = self.bns[d] if self.bns else self.target if d else self.source
        return self.out(norm(self.conv(x)).relu().mean((2, 3)))


def test_batchnorms_of_all_domains_shrink_alike():
    model = Domains(listed=True)
    traced(model)
    graph = dg.trace_channels(model, IMAGES)
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    small = plan.apply(model)
    for d in range(3):
        with torch.no_grad(), dg.gated(model, graph, plan.kept_gates):
            expected = model(IMAGES, d)
        torch.testing.assert_close(small(IMAGES, d), expected)
    graph = traced(Domains(listed=False))
    assert graph.skipped["conv"] == "target is not called, and may be in place of source"


# --- the code decides ------------------------------------------------------------------------


class Flags(Net):
    def forward(self, x, mask=None, return_features=False, *rest, **more):
        assert x.shape[1] == 3
        if x.dim() == 3:
            x = x[None]
        if mask is None:
            x = x * 1.0
        b, _, *_ = x.shape
        features = super().forward(x).view(b, -1)
        return (features, x) if return_features else features


class Hooked(Net):
    """Takes what a hook kept."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.n.register_forward_hook(self.keep)

    def keep(self, module, args, output):
        self.kept["n"] = output

    def forward(self, x):
        h = self.b(F.relu(self.n(self.a(x))))
        return self.out((F.relu(self.m(h)) + self.kept["n"][:, :, 1:-1, 1:-1]).mean((2, 3)))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Net()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def sliced():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))

    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.out = layers, nn.Linear(8, 5)

        def forward(self, x):
            return nn.Softmax(1)(
                self.out(nn.ReLU()(self.layers[2:](self.layers[:2](x))).mean((2, 3)))
            )

    return Sliced()


@pytest.mark.parametrize("make", [Flags, Wrapped, sliced])
def test_code_that_asks_is_followed_as_it_runs(make):
    assert [group.size for group in traced(make()).groups.values()] == [8, 8]


def test_features_that_a_hook_keeps_are_followed():
    graph = traced(Hooked())
    assert graph.groups["a"].producers == ("a", "b")


class C2f(nn.Module):
    """The block of YOLO's backbones: halves, one of which goes on and on, all concatenated."""

    def __init__(self, inputs, outputs, steps=2):
        super().__init__()
        self.half = outputs // 2
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.SiLU()
        )
        self.last = nn.Conv2d((2 + steps) * self.half, outputs, 1)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(self.half, self.half, 3, 1, 1), nn.SiLU()) for _ in range(steps)
        )

    def forward(self, x):
        y = list(self.first(x).chunk(2, 1))
        y.extend(step(y[-1]) for step in self.steps)
        return self.last(torch.cat(y, 1))


def test_a_block_of_yolo():
    graph = traced(nn.Sequential(C2f(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))
    assert {name: group.size for name, group in graph.groups.items()} == {
        "0.first.0": 4, "0.steps.0.0": 4, "0.steps.1.0": 4, "0.last": 8,
    }  # fmt: skip


def test_memory_efficient_densenet_and_checkpoints():
    from torch.utils.checkpoint import checkpoint
    from torchvision.models import DenseNet

    assert traced(DenseNet(4, (2, 2), 8, memory_efficient=True, num_classes=5)).num_filters > 0
    for reentrant in (True, False):
        graph = traced(Net(step=lambda net, h, r=reentrant: checkpoint(F.silu, h, use_reentrant=r)))
        assert list(graph.groups) == ["a", "b"]


@torch.jit.script
def compiled(x):
    return x * torch.sigmoid(x) + 0.1


def test_what_compiled_code_reads_is_kept():
    graph = traced(Net(step=lambda net, h: compiled(h)))
    assert graph.skipped["a"] == "code that PyTorch compiled is not seen"


@pytest.mark.parametrize(
    "step",
    [
        lambda net, h: h * net.b.in_channels**-0.5,
        lambda net, h: h / net.b.weight.shape[1],
        lambda net, h: h[:, : net.b.in_channels // 2].repeat(1, 2, 1, 1),
    ],
)
def test_sizes_that_layers_state_are_noticed(step):
    assert "b" in traced(Net(step=step)).groups
    assert "a" not in traced(Net(step=step)).groups


def test_a_size_that_a_layer_states_may_shape_what_goes_into_it():
    class Classic(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 49, 5)

        def forward(self, x):
            return self.fc(F.max_pool2d(self.conv(x), 2).view(-1, self.fc.in_features))

    assert traced(Classic()).groups["conv"].size == 8


# --- what is returned ------------------------------------------------------------------------


@dataclass
class Output:
    logits: Tensor


class Slots:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = {"a": [held]}


@pytest.mark.parametrize("finish", [Output, Slots, lambda y: {"a": [(y, 1)]}])
def test_outputs_in_any_object_stay(finish):
    class Returning(Net):
        def forward(self, x):
            return finish(super().forward(x))

    graph = dg.trace_channels(Returning().double(), IMAGES)
    assert graph.skipped == {"out": "its outputs are the network's outputs"}


def test_every_convolution_counts():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.kernels = nn.Conv2d(3, 8, 1), nn.Parameter(torch.rand(2, 4, 8, 3, 3))

        def forward(self, x):
            return F.conv2d(self.conv(x), self.kernels.sum(0)).mean((2, 3))

    graph = dg.trace_channels(Dynamic().double(), IMAGES)
    assert graph.totals()[1] == 16 * 16 * 3 * 8 + 14 * 14 * 4 * 8 * 9


# --- libraries -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Unet", "FPN", "efficientnet", "r3d_18", "mc3_18"])
def test_networks_of_other_libraries(name):
    if name == "efficientnet":
        import efficientnet_pytorch as package

        model = package.EfficientNet.from_name("efficientnet-b0", num_classes=10)
    elif name.endswith("18"):
        from torchvision.models import get_model

        model = get_model(name, num_classes=10)
    else:
        import segmentation_models_pytorch as package

        model = getattr(package, name)("resnet18", encoder_weights=None, classes=3)
    images = torch.rand(1, 3, 4, 32, 32) if name.endswith("18") else torch.rand(2, 3, 64, 64)
    model = model.eval()
    graph = dg.trace_channels(model, images)
    assert set(graph.skipped.values()) == {"its outputs are the network's outputs"}
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    assert dg.check_exact(model, plan.apply(model), plan, graph, images) < 1e-4


def test_einops():
    import einops

    step = lambda net, h: einops.rearrange(h, "b c h w -> b h w c").permute(0, 3, 1, 2)  # noqa: E731
    for _ in range(2):  # einops remembers shapes
        assert list(traced(Net(step=step)).groups) == ["a", "b"]
