"""The book's answer in words: three paragraphs, their evidence, and the table of what to use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dgprune_book.figures import plots, wording
from dgprune_book.study.answer import (
    SCORE,
    SIGNED,
    Results,
    advice,
    saved_with_a_misleading_cue,
)
from dgprune_book.study.intervals import Estimate, estimate

_WHAT = {"PACS": " (photos, paintings, cartoons, sketches)"}
_NETWORKS = {"efficientnet_lite0": "EfficientNet-Lite0 from ImageNet weights"}
_LOOKS_AT = {"fisher": "squared gradients, image by image", "l1": "the size of the weights"}


def label(method: str) -> str:
    """The name that readers see."""
    return plots.criterion_style(method)["label"]


def _ends(interval: tuple[float, float]) -> str:
    return f"{interval[0]:z.1f} to {interval[1]:z.1f}".replace("-", "−")


def grade(found: Estimate) -> str:
    """Say in words whether 0 lies outside of both 95 % intervals of a difference, or of which.

    >>> grade(Estimate(2.0, (1.0, 3.0), (-1.0, 5.0), 20))
    'clear over networks, open over domains'
    """
    networks, domains = (low > 0 or high < 0 for low, high in (found.networks, found.domains))
    if networks and domains:
        return "clear over networks and over domains"
    if networks:
        return "clear over networks, open over domains"
    return "clear over domains, open over networks" if domains else "not told apart from chance"


def how_sure(found: Estimate) -> str:
    """The same with the intervals.

    >>> how_sure(Estimate(2.0, (1.0, 3.0), (-1.0, 5.0), 20))
    'clear over networks, open over domains (95 % intervals: 1.0 to 3.0 and −1.0 to 5.0)'
    """
    return f"{grade(found)} (95 % intervals: {_ends(found.networks)} and {_ends(found.domains)})"


def answer(measured: Sequence[Results]) -> list[str]:
    """What pruning does to unseen domains, what to use, and what the risk variance is worth.

    Args:
        measured: From :func:`~dgprune_book.study.answer.all_results`; the first is what counts.

    Returns:
        Three paragraphs in Markdown, each with its finding in bold; :func:`evidence` has the
        intervals.
    """
    use = advice(measured[0])[-1].method
    return [_cost(measured), _choice(measured, use), _score(measured, use)]


def _cost(measured: Sequence[Results]) -> str:
    results, extra = measured[0], [estimate(each.kept_at()["extra"]) for each in measured]
    finding = "What an unseen domain keeps after pruning depends on the data."
    if all(each.networks[1] < 0 for each in extra):
        finding = (
            "Here, a domain that the network never saw keeps a smaller share of its accuracy after "
            "pruning than the domains it was trained on."
        )
    elif all(each.networks[0] > 0 for each in extra):
        finding = "Here, an unseen domain keeps a larger share of its accuracy after pruning."
    setting = results.lost.iloc[0]
    mean, lost = results.accuracies_at().mean(), results.losses_at().mean()
    shares = "; ".join(
        f"{kept['unseen']:.0f} % against {kept['in_domain']:.0f} % "
        f"on {each.name}{'' if each is results else f' at {100 * each.ratio:.0f} %'} "
        f"({grade(gap)})"
        for each, gap in zip(measured, extra, strict=True)
        for kept in [each.kept_at().mean()]
    )
    criteria = wording.enumerate_names(map(label, results.standard))
    return (
        f"**{finding}** On {results.title}{_WHAT.get(results.name, '')}, "
        f"{_NETWORKS.get(setting['network'], setting['network'])} was trained, lost "
        f"{100 * results.ratio:.0f} % of its filters and was fine-tuned for "
        f"{setting['finetune_steps']:.0f} steps. Accuracy fell by {lost['unseen']:.0f} points on "
        f"the unseen domain, from {mean['unseen_control']:.0f} % to {mean['unseen']:.0f} %, and by "
        f"{lost['in_domain']:.0f} on the source domains, from {mean['in_domain_control']:.0f} % to "
        f"{mean['in_domain']:.0f} % (average over {criteria}). The share of what is above chance "
        f"that was kept: {shares}."
    )


def _choice(measured: Sequence[Results], use: str) -> str:
    looks_at = _LOOKS_AT.get(use, "")
    needs = next(each.have for each in advice(measured[0]) if each.method == use)
    found = []
    for each in measured:
        table = each.by_network("loss_unseen")
        gains = {
            name: estimate((table[other] - table[use]).dropna())
            for other, name in (("random", "random choice"), ("l1", "L1"))
            if {other, use} <= set(table) and other != use
        }
        grades = {name: f" ({grade(gain)})" for name, gain in gains.items()}
        once = "".join(set(grades.values())) if len(set(grades.values())) == 1 else ""
        points = " and ".join(
            f"{gain.mean:z.1f} points less than {name}{'' if once else grades[name]}"
            for name, gain in gains.items()
        )
        found.append(f"on {each.name} {points}{once}")
    return (
        f"**Choose the filters by {label(use)}**{looks_at and f' ({looks_at})'}. It asks for "
        f"{needs}; criteria that ask for more did not clearly beat it on the source domains. On "
        f"the unseen domain it loses {'; '.join(found)}."
    ).replace(" -", " −")


def _score(measured: Sequence[Results], use: str) -> str:
    if use == SCORE:
        return "**That is the score of the question**: it holds what it promises here."
    found: list[str] = []
    verdict = ""
    for each in measured:
        table = each.by_network("loss_unseen")
        if not {use, SCORE} <= set(table):
            continue
        gain = estimate((table[use] - table[SCORE]).dropna())
        points = f"{abs(gain.mean):.1f} points {'less' if gain.mean > 0 else 'more'}"
        if not found:
            verdict = f"shows no advantage over {label(use)} on {each.name}"
            if gain.networks[0] > 0 or gain.networks[1] < 0:
                better = "better" if gain.mean > 0 else "worse"
                verdict = f"is {better} than {label(use)} on {each.name}"
        found.append(f"{points} on {each.name} ({grade(gain)})")
    return (
        "**The idea that this book tests**, to keep the filters whose removal would hit the "
        f"domains most unequally (risk variance), **{verdict}**: on the unseen domain it "
        f"loses {'; '.join(found)}."
    )


def evidence(measured: Sequence[Results]) -> str:
    """The differences behind :func:`answer` with both intervals, as a Markdown table.

    Args:
        measured: From :func:`~dgprune_book.study.answer.all_results`.
    """
    use = advice(measured[0])[-1].method
    rows = []
    for each in measured:
        table = each.by_network("loss_unseen")
        compared = [
            ("share kept above chance: unseen less source domains", each.kept_at()["extra"])
        ]
        compared += [
            (f"points lost unseen: {label(worse)} less {label(better)}", gain.dropna())
            for better, worse in ((use, "random"), (use, "l1"), (use, SCORE))
            if better != worse and {better, worse} <= set(table)
            for gain in [table[worse] - table[better]]
        ]
        for what, values in compared:
            found = estimate(values)
            rows.append(
                {
                    "difference": what,
                    "data": f"{each.title}, {100 * each.ratio:.0f} %",
                    "mean": f"{found.mean:z.1f}".replace("-", "−"),
                    "over networks": _ends(found.networks),
                    "over domains": _ends(found.domains),
                }
            )
    return wording.markdown_table(rows)


def advice_table(results: Results) -> str:
    """Which criterion to use, by what one has, as a Markdown table.

    Args:
        results: One of :func:`~dgprune_book.study.answer.all_results`.
    """
    rows, before = [], None
    for each in advice(results):
        again = each.method == before
        saved = [
            f"{found.mean:z.1f} ({_ends(found.domains)})".replace("-", "−")
            for found in (each.in_domain, each.unseen)
        ]
        rows.append(
            {
                "you have": each.have,
                "use": f"{label(each.method)} all the same"
                if again
                else f"**{label(each.method)}**",
                "saves in-domain": "as above" if again else saved[0],
                "saves unseen": "as above" if again else saved[1],
            }
        )
        before = each.method
    return wording.markdown_table(rows)


def misleading_cue(folder: str | Path = "results") -> str:
    """What to do where a cue misleads in all sources, in a sentence; empty where nothing helped.

    Args:
        folder: Where the results of the grid "cue" lie.
    """
    found = saved_with_a_misleading_cue(folder)
    if found is None or not found[0].mean < 0 < found[1].mean:
        return ""
    inside, unseen = f"{-found[0].mean:.1f}", f"{found[1].mean:.1f}"
    return (
        "An exception: where one cue, such as a colour, tells the class in all source images and "
        f"misleads elsewhere, a score that keeps the sign of the change (`{SIGNED}`) saved "
        f"{unseen} points on the unseen domain of ColoredMNIST and cost {inside} in-domain. This "
        "was seen on that one domain, and the rule would not have chosen it: "
        "[chapter 8](08_the_search.md)."
    )
