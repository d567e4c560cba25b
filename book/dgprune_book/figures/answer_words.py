"""The book's answer in words: three sentences, and the table of what to use."""

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


def label(method: str) -> str:
    """The name that readers see."""
    return plots.criterion_style(method)["label"]


def how_sure(found: Estimate) -> str:
    """Say what both 95 % intervals of a difference allow to conclude.

    >>> print(how_sure(Estimate(2.0, (1.0, 3.0), (-1.0, 5.0), 20)))
    more than luck on these domains (networks 1.0 to 3.0), not certain on another (domains
    −1.0 to 5.0)
    """
    networks, domains = (
        f"{low:z.1f} to {high:z.1f}".replace("-", "−")
        for low, high in (found.networks, found.domains)
    )
    if found.sure:
        return f"more than luck (networks {networks}, domains {domains})"
    if found.networks[0] > 0 or found.networks[1] < 0:
        return (
            f"more than luck on these domains (networks {networks}), "
            f"not certain on another (domains {domains})"
        )
    return f"no more than luck explains (networks {networks}, domains {domains})"


def answer(measured: Sequence[Results]) -> list[str]:
    """What pruning does to unseen domains, what to use, and what the risk variance is worth.

    Args:
        measured: From :func:`~dgprune_book.study.answer.all_results`; the first is what counts.

    Returns:
        Three sentences in Markdown; intervals are 95 % intervals, in points.
    """
    results = measured[0]
    lost = results.losses_at()
    inside, unseen, extra = (estimate(lost[name]) for name in ("in_domain", "unseen", "extra"))
    others = ""
    for other in measured[1:]:
        means = other.losses_at().mean()
        others += (
            f" (On {other.title}, at {100 * other.ratio:.0f} %: {means['in_domain']:.1f} and "
            f"{means['unseen']:.1f}.)"
        )
    first = (
        f"On {results.title}{_WHAT.get(results.name, '')}, removing {100 * results.ratio:.0f} % of "
        f"the filters costs **{inside.mean:.1f} points** of accuracy on the domains at hand and "
        f"**{unseen.mean:.1f} points** on a domain never seen. The difference, "
        f"{extra.mean:z.1f}, is {how_sure(extra)}.{others}"
    ).replace(" -", " −")
    use = advice(results)[-1].method
    table = results.by_network("loss_unseen")
    saved = estimate((table["random"] - table[use]).dropna())
    second = (
        f"Choose the filters by **{label(use)}**: no criterion that asks for more is clearly "
        f"better on the domains at hand. On the unseen domain it saves {saved.mean:z.1f} points "
        f"against choosing at random, {how_sure(saved)}."
    )
    if use == SCORE:
        return [first, second, "That is the score of the question: it holds what it promises here."]
    gain = estimate((table[use] - table[SCORE]).dropna())
    verdict = "shows no advantage over it"
    if gain.networks[0] > 0:
        verdict = "is better still"
    elif gain.networks[1] < 0:
        verdict = "is worse"
    third = (
        f"Choosing them by the **variance of the domains' risks**, the idea that the book tests, "
        f"{verdict} on the unseen domain: {gain.mean:+z.1f} points, {how_sure(gain)}."
    ).replace(": -", ": −")
    return [first, second, third]


def advice_table(results: Results, folder: str | Path = "results") -> str:
    """Which criterion to use, by what one has, as a Markdown table.

    Args:
        results: One of :func:`~dgprune_book.study.answer.all_results`.
        folder: Where the results lie; those with a misleading cue add a row.
    """

    def saved(found: Estimate) -> str:
        return wording.with_interval(found.mean, *found.domains)

    rows = [
        {
            "you have": each.have,
            "use": f"**{label(each.method)}**",
            "saves in-domain": saved(each.in_domain),
            "saves unseen": saved(each.unseen),
        }
        for each in advice(results)
    ]
    cue = saved_with_a_misleading_cue(folder)
    if cue is not None:
        inside, unseen = cue
        rows.append(
            {
                "you have": "a misleading cue in all sources ([chapter 8](08_the_search.md))",
                "use": f"**`{SIGNED}`**, keeping the sign",
                "saves in-domain": f"{inside.mean:z.1f} (one domain)",
                "saves unseen": f"{unseen.mean:z.1f} (one domain)",
            }
        )
    return wording.markdown_table(rows)
