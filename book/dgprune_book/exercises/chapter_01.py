"""Chapter 1: leave one domain out, without leaking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check

Places = dict[str, Tensor]
HOLDOUT = 0.2


def _divide(order: Tensor) -> tuple[Tensor, Tensor]:
    """The training and the held-out part of places in random order."""
    held_out = round(HOLDOUT * len(order))
    return order[held_out:], order[:held_out]


def _parts(divided: dict[str, tuple[Tensor, Tensor]]) -> tuple[Places, Places]:
    return {n: train for n, (train, _) in divided.items()}, {n: v for n, (_, v) in divided.items()}


def _leave_out(sizes: dict[str, int], test_env: str, seed: int) -> tuple[Places, Places]:
    generator = torch.Generator().manual_seed(seed)
    # Drawn for every domain, also the unseen one: the next domain's draw then does not depend on
    # which one is left out. The images themselves are not touched.
    orders = {name: torch.randperm(size, generator=generator) for name, size in sizes.items()}
    return _parts({name: _divide(orders[name]) for name in sizes if name != test_env})


def _with_target(sizes: dict[str, int], test_env: str, seed: int) -> tuple[Places, Places]:
    return _leave_out(sizes, "", seed)


def _global_seed(sizes: dict[str, int], test_env: str, seed: int) -> tuple[Places, Places]:
    torch.manual_seed(seed)
    return _parts({n: _divide(torch.randperm(s)) for n, s in sizes.items() if n != test_env})


def _by_round(sizes: dict[str, int], test_env: str, seed: int) -> tuple[Places, Places]:
    generator = torch.Generator().manual_seed(seed)
    sources = {name: size for name, size in sizes.items() if name != test_env}
    return _parts({n: _divide(torch.randperm(s, generator=generator)) for n, s in sources.items()})


def _in_file_order(sizes: dict[str, int], test_env: str, seed: int) -> tuple[Places, Places]:
    return _parts({n: _divide(torch.arange(s)) for n, s in sizes.items() if n != test_env})


def _overlapping(sizes: dict[str, int], test_env: str, seed: int) -> tuple[Places, Places]:
    train, val = _leave_out(sizes, test_env, seed)
    return {name: torch.cat([train[name], val[name]]) for name in train}, val


def _all_rounds(
    function: Callable[..., Any], sizes: dict[str, int], seeds: tuple[int, int]
) -> dict[tuple[str, int], Any]:
    """The parts of every round, for every seed."""
    return {(name, seed): function(dict(sizes), name, seed) for seed in seeds for name in sizes}


def _leak(rounds: dict[tuple[str, int], Any], sizes: dict[str, int], seeds: tuple[int, int]) -> Any:
    """What is wrong with the rounds of leave-one-domain-out, or None."""
    for (test_env, seed), given in rounds.items():
        here = f"with `test_env={test_env!r}, seed={seed}`"
        two = isinstance(given, tuple) and len(given) == 2
        if not (two and all(isinstance(part, dict) for part in given)):
            return f"it does not give two dicts, `train` and `val`, {here}"
        train, val = given
        sources = [name for name in sizes if name != test_env]
        for part, places in (("train", train), ("val", val)):
            if test_env in places:
                return f"`{part}` holds the unseen domain, {here}"
            if set(places) != set(sources):
                return f"`{part}` holds the domains {sorted(places)}, expected {sources}, {here}"
        for name in sources:
            for part, places in (("train", train), ("val", val)):
                if not isinstance(places[name], Tensor):
                    kind = type(places[name]).__name__
                    return f"`{part}` holds a {kind} for `{name}`, expected an int64 tensor, {here}"
            parts = torch.cat([train[name], val[name]])
            if parts.dtype != torch.int64:
                return f"the places of `{name}` are {parts.dtype}, expected torch.int64"
            expected = round(HOLDOUT * sizes[name])
            if len(val[name]) != expected:
                return (
                    f"{len(val[name])} of the {sizes[name]} images of `{name}` are held out, "
                    f"expected {expected}, {here}"
                )
            if set(train[name].tolist()) & set(val[name].tolist()):
                return f"`{name}` has images in `train` and in `val` alike, {here}"
            if parts.sort().values.tolist() != list(range(sizes[name])):
                return f"an image of `{name}` is missing or twice in the same part, {here}"
            others = (rounds[other, seed][1][name] for other in sizes if other != name)
            if any(set(other.tolist()) != set(val[name].tolist()) for other in others):
                return (
                    f"other images of `{name}` are held out when another domain is left out, "
                    f"with `seed={seed}`"
                )
            again = rounds[test_env, seeds[seed == seeds[0]]][1][name]
            if set(again.tolist()) == set(val[name].tolist()):
                return f"the same images of `{name}` are held out for seeds {seeds}"
    return None


LEAVE_OUT = Exercise(
    reference=_leave_out,
    cases=lambda: [
        ({"mnist": 40, "mnist_m": 25, "optdigits": 33, "syn": 40}, (0, 1)),
        ({"photo": 57, "sketch": 62}, (3, 7)),
    ],
    mistakes=(
        Mistake(_with_target, "The unseen domain is divided like a source and can be learnt from."),
        Mistake(
            _global_seed,
            "The global random numbers are seeded here, which changes all that the program draws "
            "afterwards: use a `torch.Generator` of its own.",
        ),
        Mistake(
            _by_round,
            "The draws of a domain depend on which domains come before it, so each round divides "
            "it in another way, and what one round trained on is held out in the next.",
        ),
        Mistake(_in_file_order, "Nothing is random here: the first images are held out."),
        Mistake(_overlapping, "The images held out are trained on as well."),
    ),
    praise="No image leaks, and a domain is divided in the same way in every round.",
    judge=_leak,
    use=_all_rounds,
)


def check_leave_out(function: Callable[..., Any]) -> Verdict:
    """Check ``leave_out(sizes, test_env, seed) -> (train, val)``, exercise 2 of chapter 1.

    Args:
        function: Takes ``sizes`` (domain name to its number of images), ``test_env`` (the name
            of the unseen domain) and ``seed`` (int); gives two dicts, ``train`` and ``val``: the
            name of every source domain to the places of its images, int64 tensors (n,). 20 % of
            each source domain, rounded, are held out at random. A domain is divided in the same
            way for a seed whichever other domain is left out, and the global random state stays
            as it was.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: the protocol of chapter 1, "Leave one domain out".

    >>> check_leave_out(lambda sizes, test_env, seed: ({}, {})).passed
    False
    """
    return check(LEAVE_OUT, function)
