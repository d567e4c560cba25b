"""evaluation.py: accuracy, risk and calibration against a naive count, and a model left alone."""

import math

import pandas as pd
import pytest
import torch
from networks import FromDisk
from torch import nn
from torch.utils.data import TensorDataset

from dgprune_lite.domains import Split
from dgprune_lite.networks.evaluation import evaluate, expected_calibration_error, summarize


def images_of(n, seed=0, classes=4):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 6, 6, generator=generator)
    return TensorDataset(images, torch.randint(0, classes, (n,), generator=generator))


def network(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(8 * 16, classes),
    )


def naive(model, dataset):
    """Accuracy, risk and calibration error, one image and one bin at a time."""
    model.eval()
    right, nats, bins = [], [], {}
    for image, label in dataset:
        p = torch.softmax(model(image[None]).double()[0], 0).tolist()
        guess = max(range(len(p)), key=p.__getitem__)
        right.append(guess == int(label))
        nats.append(-math.log(p[int(label)]))
        for m in range(1, 16):
            if (m - 1) / 15 < p[guess] <= m / 15:
                bins.setdefault(m, []).append((p[guess], guess == int(label)))
    n = len(right)
    ece = 0.0
    for members in bins.values():
        confidence = sum(c for c, _ in members) / len(members)
        accuracy = sum(r for _, r in members) / len(members)
        ece += len(members) / n * abs(accuracy - confidence)
    return sum(right) / n, sum(nats) / n, ece


@pytest.mark.parametrize("batch_size", [1, 7, 64, 512])
def test_against_the_naive_count(batch_size):
    model, dataset = network(), images_of(64)
    with torch.no_grad():
        model[4].weight.mul_(5)  # confidences over the whole range
    row = evaluate(model, {"a": dataset}, batch_size=batch_size).iloc[0]
    accuracy, risk, ece = naive(model, dataset)
    assert row.accuracy == accuracy
    assert row.risk == pytest.approx(risk, rel=1e-5)
    assert row.ece == pytest.approx(ece, rel=1e-4)


def test_calibration_error_of_known_cases():
    # Two bins: two predictions at 0.9 (one right), one at 0.5 (right).
    confidence = torch.tensor([0.9, 0.9, 0.5])
    correct = torch.tensor([True, False, True])
    expected = 2 / 3 * abs(0.5 - 0.9) + 1 / 3 * abs(1.0 - 0.5)
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected)
    # A confidence on a border belongs to the bin below it; 0 to the first.
    assert expected_calibration_error(
        torch.tensor([0.5, 0.25]), torch.tensor([True, False]), bins=2
    ) == pytest.approx(0.5 * abs(1.0 - 0.75))
    assert expected_calibration_error(torch.tensor([0.0]), torch.tensor([False])) == 0.0


@pytest.mark.parametrize(
    ("confidence", "correct", "bins"),
    [(torch.zeros(2), torch.zeros(3), 15), (torch.zeros(0), torch.zeros(0), 15)],
)
def test_calibration_error_wants_predictions(confidence, correct, bins):
    with pytest.raises(ValueError, match="expected the same"):
        expected_calibration_error(confidence, correct.bool(), bins)
    with pytest.raises(ValueError, match="bins is 0"):
        expected_calibration_error(torch.zeros(1), torch.ones(1).bool(), bins=0)


def test_a_split_gives_held_out_parts_and_the_unseen_domain():
    class Untouchable(TensorDataset):
        def __getitem__(self, index):
            raise AssertionError("training images were read")

    never = Untouchable(*images_of(3).tensors)
    split = Split(
        test_env="c",
        seed=0,
        train={"a": never, "b": never},
        val={"a": images_of(5, 1), "b": images_of(6, 2)},
        target=images_of(7, 3),
        num_classes=4,
        input_shape=(3, 6, 6),
    )
    frame = evaluate(network(), split)
    assert list(frame.columns) == ["domain", "role", "images", "accuracy", "risk", "ece"]
    assert frame["domain"].tolist() == ["a", "b", "c"]
    assert frame["role"].tolist() == ["in-domain", "in-domain", "unseen"]
    assert frame["images"].tolist() == [5, 6, 7]


def test_summary():
    rows = [("in-domain", 0.9), ("in-domain", 0.7), ("unseen", 0.75)]
    summary = summarize(pd.DataFrame(rows, columns=["role", "accuracy"]))
    assert summary == pytest.approx({"in_domain": 0.8, "unseen": 0.75, "worst": 0.7, "gap": 0.05})
    alone = summarize(evaluate(network(), {"a": images_of(4)}))
    assert math.isnan(alone["unseen"])
    assert math.isnan(alone["gap"])
    with pytest.raises(ValueError, match="no column 'role'"):
        summarize(pd.DataFrame({"accuracy": [1.0]}))


@pytest.mark.parametrize("label", [0, 9])
def test_the_model_is_left_as_found_also_after_an_error(label):
    model = network()
    model[1].eval()
    model.register_forward_hook(lambda *_: None)
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model[0].weight.grad = torch.ones_like(model[0].weight)
    random_state = torch.get_rng_state()
    dataset = TensorDataset(torch.rand(2, 3, 6, 6), torch.full((2,), label))
    torch.set_rng_state(random_state)
    if label == 9:
        with pytest.raises(
            ValueError, match=r"domain 'a', batch \d: label 9 lies outside \[0, 4\)"
        ):
            evaluate(model, {"a": dataset})
    else:
        evaluate(model, {"a": dataset})
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert hooks == [dict(module._forward_hooks) for module in model.modules()]
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_bad_data():
    with pytest.raises(ValueError, match=r"data=\{\} holds no domain"):
        evaluate(network(), {})
    with pytest.raises(ValueError, match="domain 'a' has no images"):
        evaluate(network(), {"a": TensorDataset(torch.zeros(0, 3, 6, 6), torch.zeros(0).long())})
    with pytest.raises(TypeError, match="logits"):
        evaluate(nn.Identity(), {"a": images_of(2)})
    nan = TensorDataset(torch.full((2, 3, 6, 6), float("nan")), torch.zeros(2).long())
    with pytest.raises(ValueError, match="logits for domain 'b', batch 0 are NaN or infinite"):
        evaluate(network(), {"a": images_of(2), "b": nan})


def test_workers_change_nothing():
    model, data = network(), {"a": images_of(20), "b": images_of(7, seed=1)}
    wrapped = {name: FromDisk(dataset) for name, dataset in data.items()}
    expected = evaluate(model, data, batch_size=6)
    for workers in (0, 2):
        found = evaluate(model, wrapped, batch_size=6, workers=workers)
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_half_precision():
    model, data = network(), {"a": images_of(64)}
    full, half = evaluate(model, data), evaluate(model, data, precision="bfloat16")
    assert half["risk"][0] == pytest.approx(full["risk"][0], rel=0.01)
    assert half["risk"][0] != full["risk"][0]  # it did compute in bfloat16
    with pytest.raises(ValueError, match="precision='float16' needs a CUDA device"):
        evaluate(model, data, precision="float16")


class Caching(nn.Module):
    """Makes a tensor at its first pass and keeps it, as tables of positions are kept."""

    def __init__(self):
        super().__init__()
        self.layer, self.table = nn.Linear(108, 4), None

    def forward(self, images):
        if self.table is None:
            self.table = torch.linspace(0, 1, 108)
        return self.layer(images.flatten(1) * self.table)


def test_a_network_evaluated_first_can_be_trained_afterwards():
    model, data = Caching(), {"a": images_of(8)}
    evaluate(model, data)
    images, labels = data["a"].tensors
    images.requires_grad_()  # autograd then keeps the table
    nn.functional.cross_entropy(model(images), labels).backward()
    assert model.layer.weight.grad is not None


@pytest.mark.parametrize("options", [{"precision": "float16"}, {"precision": "bfloat16"}])
def test_a_precision_refused_leaves_the_network_where_it_was(options):
    model = network()
    with pytest.raises(ValueError, match="precision="):
        evaluate(model, {"a": images_of(2)}, device="meta", **options)
    assert model[0].weight.device.type == "cpu"


def test_what_is_no_network_and_what_is_no_domain():
    with pytest.raises(TypeError, match=r"model is 'resnet18', expected an nn\.Module"):
        evaluate("resnet18", {"a": images_of(2)})
    with pytest.raises(TypeError, match=r"data is a TensorDataset; .* or a Split"):
        evaluate(network(), images_of(2))


def test_images_are_cast_to_the_type_of_the_weights():
    data = {"a": images_of(16)}
    wide = {"a": TensorDataset(data["a"].tensors[0].double(), data["a"].tensors[1])}
    expected = evaluate(network(), data)
    pd.testing.assert_frame_equal(evaluate(network(), wide), expected, check_exact=True)
    pd.testing.assert_frame_equal(evaluate(network().double(), data), expected, rtol=1e-5)


def test_nothing_is_kept_for_gradients():
    model, asked = network(), []
    model.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    evaluate(model, {"a": images_of(4)})
    assert asked
    assert not any(asked)
