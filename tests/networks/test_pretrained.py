"""pretrained.py: weights all but the head, clear errors without network, BatchNorm that stays."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from networks import domains
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

import dgprune_lite as dg
from dgprune_lite.networks.pretrained import load_all_but_head

HEADS = {
    "resnet18": "fc",
    "resnet50": "fc",
    "mobilenet_v3_small": "classifier.3",
    "efficientnet_b0": "classifier.1",
}
EACH = [
    pytest.param(name, marks=[] if name in ("resnet18", "mobilenet_v3_small") else pytest.mark.slow)
    for name in HEADS
]


@pytest.fixture(autouse=True)
def own_cache_and_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))


def imagenet(name: str) -> dict[str, torch.Tensor]:
    """Stands in for the weights that torchvision would download."""
    state = dg.build_model(name, num_classes=1000, seed=7).state_dict()
    return {key: value + 1 if "running" in key else value for key, value in state.items()}


def put_in_cache(name: str, weights: str = "DEFAULT") -> dict[str, torch.Tensor]:
    state = imagenet(name)
    url = torchvision.models.get_model_weights(name)[weights].url
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, place)
    return state


# --- Weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EACH)
def test_all_but_the_head_is_pretrained(name: str) -> None:
    state = put_in_cache(name)
    model = dg.build_model(name, num_classes=7, weights="DEFAULT", seed=0)
    fresh = dg.build_model(name, num_classes=7, seed=0).state_dict()
    for key, value in model.state_dict().items():
        of_head = key.rpartition(".")[0] == HEADS[name]
        assert torch.equal(value, fresh[key] if of_head else state[key]), key
    assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", EACH)
def test_the_networks_work_small_and_are_understood(name: str) -> None:
    model = dg.build_model(name, num_classes=7).eval()
    graph = dg.trace_channels(model, torch.zeros(1, 3, 32, 32))
    scores = dg.score("l1", model, graph)
    small = dg.plan_pruning(graph, scores, pruning_ratio=0.5).apply(model)
    assert dg.count_parameters(small) < 0.6 * dg.count_parameters(model)
    assert small(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_a_named_set_of_weights_and_the_head_of_1000_classes() -> None:
    state = put_in_cache("resnet18", "IMAGENET1K_V1")
    model = dg.build_model("resnet18", num_classes=1000, weights="IMAGENET1K_V1")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_torchvision_renames_what_older_files_call_otherwise() -> None:
    put_in_cache("densenet121")
    place = next((Path(torch.hub.get_dir()) / "checkpoints").iterdir())
    state = torch.load(place, weights_only=True)
    old = {
        key.replace("norm1", "norm.1").replace("conv1", "conv.1"): value
        for key, value in state.items()
        if "num_batches" not in key
    }
    torch.save(old, place)
    model = dg.build_model("densenet121", num_classes=3, weights="DEFAULT")
    key = "features.denseblock1.denselayer1.conv1.weight"
    assert torch.equal(model.state_dict()[key], state[key])


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_from_a_file(tmp_path: Path, ending: str) -> None:
    state = imagenet("resnet18")
    path = tmp_path / f"mine.{ending}"
    (torch.save if ending == "pth" else save_file)(state, path)
    model = dg.build_model("resnet18", num_classes=3, weights=path)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])
    assert model.fc.out_features == 3
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"mine\.{ending}' .*was it cut short"):
        dg.build_model("resnet18", weights=path)


def test_the_global_random_state_stays() -> None:
    put_in_cache("resnet18")
    before = torch.get_rng_state()
    dg.build_model("resnet18", weights="DEFAULT")
    assert torch.equal(torch.get_rng_state(), before)


def test_without_network_the_error_says_how_to_go_on() -> None:
    with pytest.raises(ConnectionError, match="cannot download the ImageNet weights") as caught:
        dg.build_model("resnet18", weights="DEFAULT")
    text = str(caught.value)
    assert "no network in tests" in text
    assert "weights=None" in text
    assert "https://download.pytorch.org/models/resnet18" in text
    assert str(Path(torch.hub.get_dir()) / "checkpoints" / "resnet18") in text


def test_a_damaged_download_is_named() -> None:
    put_in_cache("resnet18")
    place = next((Path(torch.hub.get_dir()) / "checkpoints").iterdir())
    place.write_bytes(place.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"resnet18-.*is damaged .*remove it and try again"):
        dg.build_model("resnet18", weights="DEFAULT")


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights is 'default'; .*Did you mean 'DEFAULT'"):
        dg.build_model("resnet18", weights="default")
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.pth"):
        dg.build_model("resnet18", weights=tmp_path / "gone.pth")
    with pytest.raises(ValueError, match="weights is DEFAULT, but 'digits_cnn' has no such"):
        dg.build_model("digits_cnn", weights="DEFAULT")
    path = tmp_path / "other.pth"
    torch.save(imagenet("mobilenet_v3_small"), path)
    with pytest.raises(ValueError, match=r"other\.pth' do not fit 'resnet18': they have no 'conv1"):
        dg.build_model("resnet18", weights=path)
    state = imagenet("resnet18")
    torch.save(state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(ValueError, match=r"'conv1.weight' is \(64, 1, 7, 7\), expected \(64, 3"):
        dg.build_model("resnet18", weights=path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list; expected a state dictionary"):
        dg.build_model("resnet18", weights=path)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="is no plain state dictionary"):
        dg.build_model("resnet18", weights=path)


def test_only_one_layer_may_be_the_head() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    state = model.state_dict()
    wider = {key: torch.zeros(9, *value.shape[1:]) for key, value in state.items()}
    with pytest.raises(ValueError, match="no fit: 0, 1 have other numbers of outputs"):
        load_all_but_head(model, wider, "no fit")


def test_counters_that_old_files_lack_are_no_misfit() -> None:
    model = nn.BatchNorm2d(2)
    state = {key: value + 1 for key, value in model.state_dict().items() if "num" not in key}
    load_all_but_head(model, state, "no fit")
    assert model.running_mean.tolist() == [1, 1]  # type: ignore[union-attr]


# --- Frozen BatchNorm ---------------------------------------------------------------------


def batchnorms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def state_of(model: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for layer in batchnorms(model) for t in layer.state_dict().values()]


@pytest.fixture
def model() -> nn.Module:
    model = dg.build_model("digits_resnet", width=4)
    assert dg.freeze_batchnorm(model) == len(batchnorms(model)) > 0
    return model


def assert_frozen(model: nn.Module) -> None:
    assert model.train() is model
    assert model.training
    assert not any(layer.training for layer in batchnorms(model))
    assert not any(p.requires_grad for layer in batchnorms(model) for p in layer.parameters())
    others = [module for module in model.modules() if not isinstance(module, nn.BatchNorm2d)]
    assert all(module.training for module in others)
    assert not any(module.training for module in model.eval().modules())


def test_frozen_layers_stay_so_in_copies_and_within_other_networks(model: nn.Module) -> None:
    assert_frozen(model)
    again = copy.deepcopy(model)
    assert_frozen(again)
    assert model.eval() is model
    again.train()
    assert not model.training  # the copy switches itself, not the network it was made of
    assert_frozen(pickle.loads(pickle.dumps(model)))
    assert_frozen(nn.Sequential(model))


def test_freezing_keeps_the_mode() -> None:
    for mode in (True, False):
        model = dg.build_model("digits_cnn", width=4).train(mode)
        dg.freeze_batchnorm(model)
        assert model.training is mode
        assert not any(layer.training for layer in batchnorms(model))


def test_without_batchnorm_nothing_happens() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert dg.freeze_batchnorm(model) == 0
    assert "train" not in model.__dict__


def test_fit_trains_the_rest(model: nn.Module) -> None:
    before, head = state_of(model), model.fc.weight.clone()
    first = model.stem[0].weight.clone()
    dg.fit(model, domains(), steps=3, batch_size=4)
    assert all(torch.equal(one, two) for one, two in zip(before, state_of(model), strict=True))
    assert not torch.equal(model.fc.weight, head)
    assert not torch.equal(model.stem[0].weight, first)
    free = dg.build_model("digits_resnet", width=4)
    dg.fit(free, domains(), steps=3, batch_size=4)
    assert not all(torch.equal(one, two) for one, two in zip(before, state_of(free), strict=True))


def test_pruning_and_recalibrating_work_and_the_pruned_network_is_frozen_too(
    model: nn.Module,
) -> None:
    data: dict[str, TensorDataset] = domains()
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    scores = dg.score("risk_variance", model, graph, dg.domain_statistics(model, graph, data))
    small = dg.plan_pruning(graph, scores, pruning_ratio=0.5).apply(model)
    assert_frozen(small)
    means = [layer.running_mean.clone() for layer in batchnorms(small)]  # type: ignore[union-attr]
    assert dg.recalibrate_batchnorm(small, data, images_per_domain=8) == len(means)
    for layer, mean in zip(batchnorms(small), means, strict=True):
        assert not torch.equal(layer.running_mean, mean)  # type: ignore[arg-type]
    assert_frozen(small)
    kept = state_of(small)
    dg.fit(small, data, steps=2, batch_size=4)
    assert all(torch.equal(one, two) for one, two in zip(kept, state_of(small), strict=True))
