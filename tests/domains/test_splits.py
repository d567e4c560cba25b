"""leave_one_domain_out: sizes, disjoint parts, the same split every time, target untouched."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from dgprune_lite.domains import MultipleDomainDataset, leave_one_domain_out


def marked(n: int, domain: int) -> TensorDataset:
    """Images whose single value tells domain and place."""
    marks = torch.arange(n, dtype=torch.float32) + 1000 * domain
    return TensorDataset(marks[:, None, None, None].expand(n, 3, 4, 4).clone(), torch.arange(n) % 3)


def data(sizes: tuple[int, ...] = (50, 30, 7)) -> MultipleDomainDataset:
    domains = {f"d{i}": marked(n, i) for i, n in enumerate(sizes)}
    return MultipleDomainDataset(domains, ("a", "b", "c"), (3, 4, 4))


def marks(dataset: Dataset) -> list[int]:
    return [int(dataset[i][0][0, 0, 0]) for i in range(len(dataset))]  # type: ignore[arg-type]


class Forbidden(Dataset):
    """A domain that cannot be read."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> None:
        raise AssertionError("the unseen domain was read")


def test_sizes_and_members() -> None:
    whole = data()
    split = leave_one_domain_out(whole, "d1", seed=0)
    assert list(split.train) == list(split.val) == ["d0", "d2"]
    assert [len(split.train[d]) for d in split.train] == [40, 6]
    assert [len(split.val[d]) for d in split.val] == [10, 1]
    assert split.target is whole["d1"]
    assert (split.test_env, split.seed, split.num_classes) == ("d1", 0, 3)
    for name in split.train:
        train, val = marks(split.train[name]), marks(split.val[name])
        assert not set(train) & set(val)
        assert sorted(train + val) == marks(whole[name])


def test_labels_stay_with_their_images() -> None:
    split = leave_one_domain_out(data(), "d1", seed=4)
    images, labels = split.train["d0"].tensors  # type: ignore[attr-defined]
    assert torch.equal(labels, images[:, 0, 0, 0].long() % 3)


def test_a_domain_is_split_alike_whichever_other_one_is_left_out() -> None:
    one, two = (leave_one_domain_out(data(), env, seed=3) for env in ("d1", 2))
    assert marks(one.val["d0"]) == marks(two.val["d0"])


def test_seeds_and_domains_differ() -> None:
    same_size = data((50, 50, 50))
    zero = leave_one_domain_out(same_size, "d2", seed=0)
    one = leave_one_domain_out(same_size, "d2", seed=1)
    assert marks(zero.val["d0"]) != marks(one.val["d0"])
    assert marks(zero.val["d0"]) != [m - 1000 for m in marks(zero.val["d1"])]


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    leave_one_domain_out(data(), "d0", seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_same_in_a_fresh_process() -> None:
    script = (
        "from dgprune_lite.domains import DigitsLite, leave_one_domain_out as leave\n"
        "import hashlib\n"
        "split = leave(DigitsLite(), 'mnist', seed=7)\n"
        "parts = [t for d in (split.train, split.val) for p in d.values() for t in p.tensors]\n"
        "print(hashlib.sha256(b''.join(t.numpy().tobytes() for t in parts)).hexdigest())\n"
    )
    here: dict[str, object] = {}
    captured: list[str] = []
    exec(script, {**here, "print": captured.append})
    fresh = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert fresh.stdout.strip() == captured[0]


def test_the_unseen_domain_is_never_read() -> None:
    domains = {"a": marked(5, 0), "b": Forbidden(), "c": marked(5, 2)}
    whole = MultipleDomainDataset(domains, ("a", "b", "c"), (3, 4, 4))
    split = leave_one_domain_out(whole, "b", seed=0)
    assert split.example_inputs.shape == (1, 3, 4, 4)
    assert not split.example_inputs.any()
    assert "b" not in split.train
    repr(split)


def test_other_datasets_become_subsets_without_being_read() -> None:
    domains = {"a": Forbidden(), "b": Forbidden()}
    whole = MultipleDomainDataset(domains, ("a", "b", "c"), (3, 4, 4))
    split = leave_one_domain_out(whole, "b", seed=0)
    assert isinstance(split.train["a"], Subset)
    assert len(split.train["a"]) == 8


def test_parts_are_copies() -> None:
    whole = data()
    split = leave_one_domain_out(whole, "d1", seed=0)
    split.train["d0"].tensors[0].fill_(-1.0)  # type: ignore[attr-defined]
    assert min(marks(whole["d0"])) == 0


def test_a_split_can_be_pickled() -> None:
    split = leave_one_domain_out(data(), "d1", seed=0)
    again = pickle.loads(pickle.dumps(split))
    assert marks(again.val["d0"]) == marks(split.val["d0"])


@pytest.mark.parametrize(("n", "fraction", "held_out"), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.5, 5)])
def test_both_sides_keep_at_least_one_image(n: int, fraction: float, held_out: int) -> None:
    split = leave_one_domain_out(data((n, 3)), "d1", seed=0, holdout_fraction=fraction)
    assert len(split.val["d0"]) == held_out  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 1.5, float("nan")])
def test_a_fraction_outside_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"holdout_fraction is {fraction!r}"):
        leave_one_domain_out(data(), "d0", seed=0, holdout_fraction=fraction)


def test_an_unknown_domain_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no domain 'd9'; expected one of d0, d1, d2"):
        leave_one_domain_out(data(), "d9", seed=0)


def test_named_datasets_alone_are_no_dataset_of_domains() -> None:
    with pytest.raises(TypeError, match="dataset is a dict; expected a MultipleDomainDataset"):
        leave_one_domain_out({"d0": None, "d1": None}, "d0", seed=0)  # type: ignore[arg-type]


def test_seeds_must_be_whole_numbers() -> None:
    with pytest.raises(ValueError, match="seed is -1"):
        leave_one_domain_out(data(), "d0", seed=-1)
    with pytest.raises(TypeError, match=r"seed is 0\.5"):
        leave_one_domain_out(data(), "d0", seed=0.5)  # type: ignore[arg-type]
    numpy_seed = leave_one_domain_out(data(), "d0", seed=np.int64(3))  # type: ignore[arg-type]
    assert marks(numpy_seed.val["d1"]) == marks(leave_one_domain_out(data(), "d0", 3).val["d1"])


def test_too_little_data_is_refused() -> None:
    with pytest.raises(ValueError, match="domain 'd1' has no images"):
        leave_one_domain_out(data((5, 0)), "d0", seed=0)
    with pytest.raises(ValueError, match="domain 'd1' has one image"):
        leave_one_domain_out(data((5, 1)), "d0", seed=0)
    with pytest.raises(ValueError, match="has only the domain 'd0'"):
        leave_one_domain_out(data((5,)), "d0", seed=0)
