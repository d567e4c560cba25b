"""MultipleDomainDataset: domains by name or index, opened on first access only."""

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from dgprune_lite.checks import nearest_name
from dgprune_lite.domains import MultipleDomainDataset


def tiny(n: int = 6) -> TensorDataset:
    return TensorDataset(torch.rand(n, 3, 8, 8), torch.arange(n) % 2)


def pets() -> MultipleDomainDataset:
    domains = {"art_painting": tiny(), "cartoon": tiny(4), "photo": tiny(2)}
    return MultipleDomainDataset(domains, ("cat", "dog"), (3, 8, 8))


class LateDataset(MultipleDomainDataset):
    ENVIRONMENTS = ("photo", "sketch")
    class_names = ("cat", "dog")
    input_shape = (3, 8, 8)

    def __init__(self) -> None:
        self.asked: list[str] = []

    def open_domain(self, name: str) -> Dataset:
        self.asked.append(name)
        return tiny()


def test_attributes_follow_the_arguments() -> None:
    data = pets()
    assert data.ENVIRONMENTS == ("art_painting", "cartoon", "photo")
    assert (data.num_classes, data.input_shape, len(data)) == (2, (3, 8, 8), 3)
    assert list(data) == ["art_painting", "cartoon", "photo"]
    assert "photo" in list(data)
    assert repr(data) == (
        "MultipleDomainDataset(art_painting, cartoon, photo; 2 classes, images 3×8×8)"
    )


def test_an_index_stands_for_a_name() -> None:
    data = pets()
    assert data[1] is data["cartoon"]
    assert len(data[1]) == 4


def test_domains_open_once_and_only_when_asked_for() -> None:
    data = LateDataset()
    assert data.asked == []
    assert data["sketch"] is data["sketch"]
    assert data.asked == ["sketch"]


def test_an_unknown_name_brings_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"no domain 'Cartoons'.*Did you mean 'cartoon'\?"):
        pets()["Cartoons"]


@pytest.mark.parametrize("index", [3, -1])
def test_an_index_outside_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=rf"no domain number {index}; expected 0 to 2"):
        pets()[index]


@pytest.mark.parametrize("env", [1.0, None, True])
def test_other_types_are_refused(env: object) -> None:
    with pytest.raises(TypeError, match=r"expected a name .* or an index from 0 to 2"):
        pets()[env]  # type: ignore[index]


def test_bad_definitions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"domains=\{\} holds no domain"):
        MultipleDomainDataset({}, ("a",), (3, 8, 8))
    with pytest.raises(ValueError, match="class_names is empty"):
        MultipleDomainDataset({"a": tiny()}, (), (3, 8, 8))
    with pytest.raises(ValueError, match=r"input_shape is \(3, 0, 8\)"):
        MultipleDomainDataset({"a": tiny()}, ("a",), (3, 0, 8))


def test_nearest_name_is_silent_when_nothing_is_near() -> None:
    assert nearest_name("zzz", ("photo", "sketch")) == ""
    assert nearest_name("PHOTO", ("photo", "sketch")) == " Did you mean 'photo'?"
