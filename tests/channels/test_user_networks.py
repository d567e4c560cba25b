"""Networks as users write them: exact, or left alone with a reason, and never damaged."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import assert_same, fingerprint
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import TensorDataset

import dgprune_lite as dg
from dgprune_lite.pruning.pruning import make_plan
from dgprune_lite.scores.ablation import ablated_losses


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Net(nn.Module):
    """Two convolutions, a BatchNorm and a classifier; ``how`` says how forward uses them."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.b, self.d = conv(3, 6), conv(6, 6), conv(6, 4)
        self.norm = nn.BatchNorm2d(6)
        self.batch_norm = nn.BatchNorm2d(6, affine=False, track_running_stats=False)
        self.relu = nn.ReLU(inplace=True)
        self.gate = nn.Linear(6, 6)
        self.out = nn.Linear(4, 5)

    def forward(self, x):
        return self.out(self.d(self.how(self, x)).mean((2, 3)))


def in_place_relu_not_rebound(net, x):
    y = net.a(x)
    F.relu(y, inplace=True)
    return y


def in_place_module_changes_the_identity(net, x):
    y = net.norm(net.a(x))
    return net.b(net.relu(y)) + y


def in_place_sum(net, x):
    y = net.a(x).relu()
    z = net.norm(net.b(y))
    z += y
    z.relu_()
    return z


def in_place_sum_of_another_layer(net, x):
    y = net.a(x)
    y.add_(net.b(y.relu()))
    return y


def in_place_constant(net, x):
    y = net.a(x)
    y.add_(1.0)
    return y


def constant_by_name(net, x):
    return torch.add(input=net.a(x).relu(), other=1.0)


def threshold_of_one(net, x):
    y = net.a(x)
    return net.norm(F.softshrink(y, 1.0)) + y


def threshold_by_place(net, x):
    y = net.a(x)
    z = F.softplus(y, 1)
    return net.norm(y) * z


def size_as_a_summand(net, x):
    return net.a(x).relu() + x.size(2)


def size_as_a_factor(net, x):
    y = net.a(x).relu()
    return y / y.shape[1]


def divided_by_another_layer(net, x):
    y = net.a(x)
    return y / (net.b(net.norm(y)).sigmoid() + 0.5)


def squeeze_and_excite(net, x):
    y = net.norm(net.a(x))
    return y * net.gate(y.mean((2, 3))).sigmoid()[:, :, None, None]


def squeeze_and_excite_with_ellipsis(net, x):
    y = net.norm(net.a(x))
    return y * net.gate(F.adaptive_avg_pool2d(y, 1)[..., 0, 0]).sigmoid()[..., None, None]


def weight_read_elsewhere(net, x):
    return net.a(x).relu() * net.b.weight.norm() + net.b(net.norm(net.a(x)))


def shared_module(net, x):
    return net.b(net.b(net.a(x)).relu())


def input_changed_in_place(net, x):
    return net.norm(net.a(x.sub_(0.5).mul_(3.0)))


def channels_on_the_batch_axis(net, x):
    y = net.norm(net.a(x))
    z = y.reshape(y.size(0) * y.size(1), 1, 8, 8).relu()
    return z.view(y.size(0), y.size(1), 8, 8)


def size_of_another_layer(net, x):
    y = net.a(x)
    z = net.b(net.norm(y).relu()).flatten(2)
    return z.view(z.size(0), y.size(1), 8, 8)


def statistics_of_the_batch(net, x):
    return F.relu(net.batch_norm(net.a(x)))


def excite_as_expanded(net, x):
    y = net.norm(net.a(x))
    weights = net.gate(y.mean((2, 3))).sigmoid()
    return y * weights.view(y.size(0), y.size(1), 1, 1).expand_as(y)


def in_place_through_a_view(net, x):
    y = net.a(x).relu()
    y.view(y.size(0), -1).add_(1.0)
    return y


def in_place_on_a_part(net, x):
    y = net.a(x).relu()
    y[:, :, :4].add_(1.0)
    return y


def clamped_to_tensors(net, x):
    return net.a(x).clamp(min=torch.full((6, 1, 1), 0.1, dtype=torch.float64))


def size_of_the_image(net, x):
    y = net.a(x).flatten(2)
    return y.view(y.size(0), 2 * x.size(1), 8, 8)


def size_in_a_constant(net, x):
    y = net.a(x)
    return y + y.new_ones(y.size(1), 1, 1)


def functional_with_the_layers_weight(net, x):
    return F.conv2d(net.a(x), net.b.weight, net.b.bias, padding=1)


FREE = [
    functional_with_the_layers_weight,
    channels_on_the_batch_axis,
    size_of_another_layer,
    statistics_of_the_batch,
    excite_as_expanded,
    threshold_of_one,
    threshold_by_place,
    in_place_relu_not_rebound,
    in_place_module_changes_the_identity,
    in_place_sum,
    in_place_sum_of_another_layer,
    squeeze_and_excite,
    squeeze_and_excite_with_ellipsis,
    shared_module,
    input_changed_in_place,
]
LOCKED = [
    in_place_through_a_view,
    in_place_on_a_part,
    clamped_to_tensors,
    size_of_the_image,
    size_in_a_constant,
    in_place_constant,
    constant_by_name,
    size_as_a_summand,
    size_as_a_factor,
    divided_by_another_layer,
    weight_read_elsewhere,
]
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(4)


def build(how):
    torch.manual_seed(0)
    net = Net(how).double()
    net.norm.running_mean.normal_()
    net.norm.bias.data.normal_()
    return net.eval()


@pytest.mark.parametrize("how", [*FREE, *LOCKED], ids=lambda how: how.__name__)
def test_pruning_ablation_and_gradients_are_exact(how):
    net = build(how)
    before = fingerprint(net)
    graph = dg.trace_channels(net, IMAGES)
    assert ("a" in graph.groups) == (how in FREE), graph.skipped
    assert all(graph.skipped.values())
    scores = torch.rand(graph.num_filters, generator=torch.Generator().manual_seed(1))
    plan = dg.plan_pruning(graph, graph.split(scores), 0.5)
    with torch.no_grad(), dg.gated(net, graph, plan.kept_gates):
        expected = net(IMAGES.clone())
    torch.testing.assert_close(plan.apply(net)(IMAGES.clone()), expected)

    whole, losses = ablated_losses(net, graph, IMAGES, LABELS)
    with torch.no_grad():
        loss = F.cross_entropy(net(IMAGES.clone()), LABELS, reduction="sum")
    assert float(whole) == pytest.approx(float(loss), rel=1e-12)
    for unit in range(graph.num_filters):
        small = make_plan(graph, np.arange(graph.num_filters) == unit, 0.0).apply(net)
        with torch.no_grad():
            loss = F.cross_entropy(small(IMAGES.clone()), LABELS, reduction="sum")
        assert float(losses[unit]) == pytest.approx(float(loss), rel=1e-9)

    data = {"a": TensorDataset(IMAGES, LABELS)}
    first, fisher = (dg.domain_statistics(net, graph, data, order=o) for o in ("first", "fisher"))
    torch.testing.assert_close(first.gradient, fisher.gradient)
    assert_same(before, fingerprint(net))


class UnderTwoNames(nn.Module):
    """DomainBed's layout: the same modules also inside a Sequential."""

    def __init__(self):
        super().__init__()
        self.featurizer = nn.Sequential(conv(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(8, 5)
        self.network = nn.Sequential(self.featurizer, nn.Flatten(), self.classifier)

    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize("order", ["first", "fisher", "exact"])
def test_a_module_under_two_names_keeps_its_parameters(order):
    net = UnderTwoNames()
    graph = dg.trace_channels(net, IMAGES.float())
    data = {name: TensorDataset(IMAGES.float(), LABELS) for name in "ab"}
    before = fingerprint(net)
    dg.domain_statistics(net, graph, data, order=order)
    assert_same(before, fingerprint(net))
    dg.fit(net, data, steps=1, batch_size=2)


def test_view_after_a_layer_of_eight_channels():
    class Classic(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = conv(3, 8), nn.Linear(32, 5)

        def forward(self, x):
            return self.out(F.max_pool2d(self.a(x), 4).view(x.size(0), -1))

    net = Classic()
    data = {name: TensorDataset(IMAGES.float(), LABELS) for name in "ab"}
    dg.evaluate(net, data)
    dg.fit(net, data, steps=1, batch_size=2)
    small, plan = dg.prune(net, data, "fisher", 0.5)
    assert plan.widths == {"a": (8, 4)}
    dg.evaluate(small, data)


def test_parameters_that_are_not_a_layers_own_are_left_alone():
    tied = nn.Sequential(conv(3, 6), nn.ReLU(), conv(6, 6), nn.ReLU(), conv(6, 6), nn.Flatten())
    tied[4].weight = tied[2].weight
    graph = dg.trace_channels(nn.Sequential(tied, nn.Linear(384, 5)), IMAGES.float())
    assert "0.2: its weight belongs to another module, too" in graph.skipped["0.2"]
    normed = nn.Sequential(parametrizations.weight_norm(conv(3, 6)), nn.ReLU(), conv(6, 2))
    graph = dg.trace_channels(normed, IMAGES.float())
    assert "is computed from other tensors" in graph.skipped["0"]


def with_transposed_convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        conv(3, 4),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(486, 5),
    ).double()


def test_transposed_convolutions_are_scored_by_what_they_make():
    net = with_transposed_convolutions()
    graph = dg.trace_channels(net, IMAGES)
    assert graph.layers["1"].weight_shape == (4, 3, 2, 2)
    assert graph.totals()[1] == 64 * (3 * 4 * 9) + 64 * (4 * 3 * 4) + 486 * 5
    weight = net[1].weight.detach()  # (inputs, outputs of a group, height, width)
    sums = torch.cat([weight[:2].abs().sum((0, 2, 3)), weight[2:].abs().sum((0, 2, 3))])  # (6,)
    expected = sums[:3] + sums[3:]  # offsets of both groups go together
    torch.testing.assert_close(dg.score("l1", net, graph)["1"], expected)
    data = {"a": TensorDataset(IMAGES, LABELS)}
    first, fisher = (dg.domain_statistics(net, graph, data, order=o) for o in ("first", "fisher"))
    torch.testing.assert_close(first.gradient, fisher.gradient)
    plan = dg.plan_pruning(graph, dg.score("l1", net, graph), 0.5)
    assert dg.check_exact(net, plan.apply(net), plan, graph, IMAGES) < 1e-12


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = conv(3, 6), conv(2, 6), nn.Linear(6, 4)

        def forward(self, x, y):
            return self.out((self.a(x) * self.b(y).sigmoid()).mean((2, 3)))

    net, inputs = Two().double(), (IMAGES, IMAGES[:, :2])
    graph = dg.trace_channels(net, inputs)
    assert graph.groups["a"].producers == ("a", "b")
    plan = dg.plan_pruning(graph, dg.score("l1", net, graph), 0.5)
    assert dg.check_exact(net, plan.apply(net), plan, graph, inputs) < 1e-12


def test_modules_without_a_rule_are_named():
    net = nn.Sequential(conv(3, 4), nn.Flatten(2), nn.GRU(64, 4))
    skipped = dg.trace_channels(net, IMAGES.float()).skipped
    assert skipped["0"] == "2 (GRU) is an operation without a channel rule"
    assert "GRU is a kind of module whose channels are not followed" in skipped["2"]
    assert "MACs are left out" in skipped["2"]


def test_a_network_without_a_removable_filter():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    graph = dg.trace_channels(net, IMAGES.float())
    with pytest.raises(ValueError, match=r"can be removed exactly:\n  1: its outputs are the"):
        dg.plan_pruning(graph, {}, 0.5)
    with pytest.raises(ValueError, match="no filter of this network can be removed exactly"):
        dg.domain_statistics(net, graph, {"a": TensorDataset(IMAGES.float(), LABELS)})


def test_ignoring_a_batchnorm_or_a_block_closes_its_groups():
    model = dg.build_model("digits_cnn", width=4)
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    scores = dg.score("l1", model, graph)
    assert dg.plan_pruning(graph, scores, 0.5, ignored_layers=["bn2"]).widths["conv2"] == (8, 8)
    model = dg.build_model("resnet18")
    graph = dg.trace_channels(model, torch.zeros(1, 3, 32, 32))
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5, ignored_layers=["layer4"])
    assert plan.widths["layer4.0.conv1"] == (512, 512)
    with pytest.raises(TypeError, match="expected names, modules or module types"):
        dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5, ignored_layers=[4])


@pytest.mark.parametrize("label", [-100, -1, 5])
def test_labels_outside_the_classes(label):
    net = build(shared_module)
    graph = dg.trace_channels(net, IMAGES)
    data = {"a": TensorDataset(IMAGES, torch.tensor([0, 1, 2, label]))}
    with pytest.raises(ValueError, match=f"{label}"):
        dg.domain_statistics(net, graph, data)


def test_saving_keeps_the_precision(tmp_path):
    model = dg.build_model("digits_cnn", width=4).double()
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28, dtype=torch.float64))
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    small = plan.apply(model)
    dg.save(small, plan, tmp_path / "small.safetensors")
    again = dg.load(tmp_path / "small.safetensors", lambda: dg.build_model("digits_cnn", width=4))
    assert_same(dict(small.state_dict()), dict(again.state_dict()))
    assert next(again.parameters()).dtype == torch.float64
