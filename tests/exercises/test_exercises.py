"""The exercises of the book: stubs fail, solutions pass, and wrong answers are told why."""

from __future__ import annotations

import importlib
import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from dgprune_book import exercises
from dgprune_book.exercises import chapter_02, chapter_03, chapter_05, chapter_06, chapter_10
from dgprune_book.exercises.checking import check

import dgprune_lite as dg

BOOK = Path(__file__).parents[2] / "book"
CHAPTERS = sorted(BOOK.glob("[0-9]*.md"))
BLOCK = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1[ \t]*$", re.DOTALL | re.MULTILINE)
CHECK = re.compile(r"^exercises\.(check_\w+)\((\w+)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """An exercise as it stands in a chapter."""

    chapter: Path
    label: str
    stub: str  # "" where no code is asked for
    check: str  # the code of the cell below the stub
    solution: str

    @property
    def name(self) -> str:
        return CHECK.search(self.check)[2]


def _solutions(chapter: Path) -> dict[str, str]:
    path = BOOK / "solutions" / chapter.name
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    parts = re.split(r"^## (\S+)[ \t]*$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _exercises(chapter: Path) -> list[Found]:
    found: list[dict[str, str]] = []
    for _, kind, body in BLOCK.findall(chapter.read_text(encoding="utf-8")):
        if kind.startswith("{exercise}"):
            label = re.search(r"^:label: (\S+)$", body, re.MULTILINE)
            assert label, f"an exercise of {chapter.name} without a label: {body}"
            found.append({"label": label[1], "stub": "", "check": ""})
        elif kind.startswith("{code-cell}") and found:
            if "raise NotImplementedError" in body:
                found[-1]["stub"] += body
            elif "exercises.check_" in body:
                found[-1]["check"] += body
    solutions = _solutions(chapter)
    return [Found(chapter, solution=solutions.get(one["label"], ""), **one) for one in found]


ALL = [found for chapter in CHAPTERS for found in _exercises(chapter)]
CODED = [found for found in ALL if found.stub]
CHECKS = sorted(name for name in exercises.__all__ if name.startswith("check_"))


def _ids(found: Found) -> str:
    return found.label


def _exercise(name: str):
    """What the check of that name rests on."""
    module = importlib.import_module(getattr(exercises, name).__module__)
    return getattr(module, name.removeprefix("check_").upper())


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_ends_with_exercises(chapter):
    text = chapter.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", BLOCK.sub("", text), re.MULTILINE)
    assert headings[-2:] == ["Summary", "Exercises"]
    found = _exercises(chapter)
    assert 2 <= len(found) <= 4
    assert any(one.stub for one in found), "no exercise asks for code"
    for one in found:
        assert re.fullmatch(rf"exercise-{chapter.name[:2]}-[a-z0-9-]+", one.label)


def test_exercises_solutions_and_checks_belong_together():
    labels = [found.label for found in ALL]
    assert len(set(labels)) == len(labels)
    for chapter in CHAPTERS:
        assert list(_solutions(chapter)) == [f.label for f in ALL if f.chapter == chapter]
    assert all(found.solution.strip() for found in ALL)
    assert sorted(CHECK.search(found.check)[1] for found in CODED) == CHECKS


@pytest.mark.parametrize("found", CODED, ids=_ids)
def test_a_stub_is_not_written_yet(found):
    assert CHECK.search(found.check).groups() == (f"check_{found.name}", found.name)
    space: dict[str, object] = {}
    exec(found.stub, space)
    assert space[found.name].__doc__, "the stub does not say what is asked"
    verdict = getattr(exercises, f"check_{found.name}")(space[found.name])
    assert not verdict
    assert "not written yet" in verdict.message


@pytest.mark.parametrize("found", CODED, ids=_ids)
def test_a_solution_passes_and_runs_alone(found):
    blocks = [body for _, kind, body in BLOCK.findall(found.solution) if kind == "python"]
    assert len(blocks) == 1, "the solution of a code exercise has one block of python"
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    space: dict[str, object] = {}
    exec(blocks[0], space)
    verdict = getattr(exercises, f"check_{found.name}")(space[found.name])
    assert verdict, verdict
    assert getattr(exercises, f"check_{found.name}")(space[found.name]) == verdict
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert torch.equal(before[2], torch.get_rng_state())


def test_a_solution_of_words_holds_no_code_that_nobody_runs():
    for found in ALL:
        if not found.stub:
            assert not BLOCK.search(found.solution), found.label


@pytest.mark.parametrize("name", CHECKS)
def test_typical_mistakes_are_named(name):
    function, exercise = getattr(exercises, name), _exercise(name)
    assert function(exercise.reference) == check(exercise, exercise.reference)
    assert len({mistake.says for mistake in exercise.mistakes}) >= 3
    for mistake in exercise.mistakes:
        verdict = function(mistake.function)
        assert not verdict.passed
        assert verdict.message.startswith(f"{mistake.says} For `"), (
            f"{mistake.function.__name__} is taken for another mistake: {verdict}"
        )
        assert function(mistake.function) == verdict


@pytest.mark.parametrize("name", CHECKS)
def test_nonsense_is_answered(name):
    for nonsense in (
        None,
        3,
        "solution",
        object,
        lambda: 0,
        lambda *given: None,
        lambda *given: "text",
        lambda *given: given,
        lambda *given: [given[0]],
        lambda *given: float("nan"),
        lambda *given: torch.tensor(float("nan")),
        lambda *given: {"a": torch.zeros(0)},
        lambda *given: (_ for _ in ()),
        lambda *given: given[0].nothing,
        lambda *given: [][0],
    ):
        verdict = getattr(exercises, name)(nonsense)
        assert not verdict.passed
        assert verdict.message


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_is_documented(name):
    text = getattr(exercises, name).__doc__
    for part in ("Args:", "Returns:", "Source:", ">>> "):
        assert part in text
    assert f"``{name.removeprefix('check_')}(" in text


@pytest.fixture(scope="module")
def network():
    """A network whose BatchNorms differ, its graph, and a few images of three domains."""
    generator = torch.Generator().manual_seed(0)
    model = dg.build_model("digits_cnn", width=8, seed=0).eval()
    for norm in (model.bn1, model.bn2, model.bn3):
        torch.nn.init.uniform_(norm.weight, 0.5, 2, generator=generator)
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    data = {
        name: torch.utils.data.TensorDataset(
            torch.rand(images, 3, 28, 28, generator=generator) ** power,
            torch.randint(10, (images,), generator=generator),
        )
        for name, images, power in (("a", 5, 1), ("b", 8, 2), ("c", 6, 4))
    }
    return model, graph, data, dg.domain_statistics(model, graph, data)


def test_the_importance_of_chapter_3_is_the_packages():
    model = dg.build_model("digits_resnet", width=8, seed=0)
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    group = max(graph.groups.values(), key=lambda group: len(group.producers))
    weights = [model.get_submodule(name).weight.detach().double() for name in group.producers]
    assert len(weights) > 1
    expected = dg.score("l1", model, graph)[group.name]
    torch.testing.assert_close(chapter_03.L1_IMPORTANCE.reference(weights), expected)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.99])
def test_the_count_of_chapter_3_and_the_plan_of_chapter_6_are_the_packages(network, ratio):
    model, graph, *_ = network
    scores = dg.score("l1", model, graph)
    plan = dg.plan_pruning(graph, scores, pruning_ratio=ratio)
    small = plan.apply(model)
    chain = dg.count_parameters(small) - dg.count_parameters(small.fc)
    assert chapter_03.PARAMETERS_LEFT.reference((3, 8, 16, 16), 3, ratio) == chain
    for name, keep in chapter_06.KEEP_FILTERS.reference(scores, ratio).items():
        assert torch.equal(keep, plan.kept_gates[name] > 0)


def test_the_scores_of_chapter_5_are_the_packages(network):
    model, graph, data, stats = network
    gradients = {
        name: dg.gate_gradients_per_image(model, graph, *part.tensors)[1].double()
        for name, part in data.items()
    }
    ours = chapter_05.RISK_VARIANCE_SCORE.reference(gradients, "d")
    expected = graph.join(dg.score("risk_variance", model, graph, stats))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=0)
    weights = {"mean_weight": 1.0, "variance_weight": 1.5**2 * len(data)}
    expected = graph.join(dg.score("risk_variance", model, graph, stats, **weights))
    ours = chapter_05.MIXTURE_SCORE.reference(stats.risk_change(), 1.5)
    torch.testing.assert_close(ours, expected)


def test_the_ranks_of_chapter_6_are_the_packages(network):
    model, graph, _, stats = network
    two = [
        dg.score("bn_scale", model, graph),
        dg.score("risk_variance", model, graph, stats, mean_weight=1.0),
    ]
    expected = dg.score("bn_scale_and_risk", model, graph, stats)
    assert chapter_06.RANK_AVERAGE.reference(*two).keys() == expected.keys()
    for name, ranks in chapter_06.RANK_AVERAGE.reference(*two).items():
        torch.testing.assert_close(ranks, expected[name])


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("check_leave_out", lambda *_: ([1], [2]), "does not give two dicts"),
        ("check_leave_out", lambda *_: ({}, {}, {}), "does not give two dicts"),
        (
            "check_leave_out",
            lambda sizes, test_env, seed: ({n: [0] for n in sizes if n != test_env},) * 2,
            "holds a list for",
        ),
        (
            "check_vrex_objective",
            lambda *given: chapter_02.VREX_OBJECTIVE.reference(*given).detach(),
            "but no gradient",
        ),
    ],
)
def test_what_is_given_in_another_form_is_named(name, wrong, says):
    assert says in getattr(exercises, name)(wrong).message


@pytest.mark.parametrize("case", [(64, 0.6875, 8, 1.0), (63, 0.7, 1, 1.0)])
def test_a_width_wrong_in_one_case_alone_is_found(case):
    right = chapter_10.KEPT_WIDTH.reference
    assert exercises.check_kept_width(right)
    assert not exercises.check_kept_width(lambda *given: right(*given) + (given == case))
