"""The main path as a user writes it, and what it must never see."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import domains
from torch.utils.data import Dataset

import dgprune_lite as dg

README = Path(__file__).parents[1] / "README.md"


class UnseenDomainError(Exception):
    pass


class Forbidden(Dataset):
    """A domain that nothing may look at."""

    def __getitem__(self, index):
        raise UnseenDomainError

    def __len__(self):
        raise UnseenDomainError

    @property
    def tensors(self):
        raise UnseenDomainError


def guarded_split():
    split = dg.leave_one_domain_out(dg.DigitsLite(), test_env="syn", seed=0)
    few = domains(split.train, images=40)
    return replace(split, train=few, val=few, target=Forbidden())


@pytest.mark.parametrize("criterion", dg.CRITERIA)
def test_the_unseen_domain_is_never_touched(criterion):
    split = guarded_split()
    model = dg.build_model("digits_cnn", width=4)
    dg.fit(model, split.train, steps=2, batch_size=4)
    graph = dg.trace_channels(model, split.example_inputs)
    stats = dg.domain_statistics(model, graph, split.val, order="exact")
    plan = dg.plan_pruning(graph, dg.score(criterion, model, graph, stats), 0.5)
    small = plan.apply(model)
    dg.recalibrate_batchnorm(small, split.train)
    dg.fit(small, split.train, steps=2, batch_size=4, algorithm="VREx")
    dg.evaluate(small, split.val)
    dg.prune(model, split.train, criterion)
    with pytest.raises(UnseenDomainError):  # the guard works: the last step does look
        dg.evaluate(small, split)


def test_the_readme_runs():
    code = README.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    assert "steps=800" in code
    for slow, fast in (("steps=800", "steps=3"), ("steps=150", "steps=2")):
        code = code.replace(slow, fast)
    scope: dict = {}
    exec(code, scope)
    small = scope["small"]
    assert dg.count_parameters(small) == scope["plan"].parameters[1]
    assert torch.isfinite(next(small.parameters())).all()
