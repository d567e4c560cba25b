"""The book's answer, from the results that are there: what pruning costs, and what to use.

PACS comes first as soon as its results lie beside those of the digits; the pages that ask here need
no edit then. Nothing is chosen by the unseen domain: the advice follows from losses on the sources.

Sentences compare at one ratio, where more networks can be had than at all of them. So curves over
ratios show one set of networks throughout, and sentences rest on all that there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dgprune_book.study import analysis
from dgprune_book.study.choice import advantages, found_better, losses_left_out
from dgprune_book.study.claims import claims_table
from dgprune_book.study.headlines import lost_points, whole_seeds
from dgprune_book.study.intervals import Estimate, estimate
from dgprune_book.study.results import read_results

_ROLES = ("in_domain", "unseen")
SCORE, BOTH, SIGNED = "risk_variance", "risk_variance mean=1", "risk_objective"
TO_BEAT = "fisher on val"  # by what a search finds
JUDGED_ON = (0, 1)
"""Seeds of the networks on which that is judged: once, so later ones do not judge it again."""
CURVES = (SCORE, BOTH, "fisher", "bn_scale", "l1", "random")
"""The methods that the slider shows."""

# What one has, and the methods that it makes possible, in the order in which they ask for more.
SITUATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("the weights alone", ("l1", "bn_scale", "fpgm")),
    ("training images", ("taylor", "fisher")),
    ("held-out images", ("taylor on val", "fisher on val")),
    ("held-out images of several domains", (SCORE, BOTH, "worst_domain")),
)
# File, title, classes, the ratio that sentences are about (set with the grid), files with further
# networks or methods at it. Of those whose titles begin alike, the first that is there is read.
_FILES = (
    ("pacs", "PACS", 7, 0.4, ()),
    ("pacs64", "PACS at 64 pixels", 7, 0.4, ()),
    ("book", "digits", 10, 0.5, ("hundred",)),
)


@dataclass(frozen=True)
class Results:
    """What was measured on one data set.

    Attributes:
        name: "PACS" or "digits", as the text calls it.
        path: The file of results.
        title: The same with the size of the images, where there are several.
        classes: Their number; one in so many is right by chance.
        ratio: The pruning ratio that sentences are about.
        lost: From :func:`~dgprune_book.study.analysis.losses`: the same networks at every ratio.
        more: At :attr:`ratio`, further networks and methods, too.
    """

    name: str
    path: Path
    title: str
    classes: int
    ratio: float
    lost: pd.DataFrame
    more: pd.DataFrame

    @property
    def standard(self) -> list[str]:
        """The standard criteria that were measured on these networks."""
        return [name for name in analysis.BASELINES if name in set(self.lost["method"])]

    def by_network(self, value: str, ratio: float | None = None) -> pd.DataFrame:
        """One row per network, one column per method: a loss at a ratio, as curves show it.

        If None: at :attr:`ratio`, of all networks there.
        """
        if ratio is None:
            return analysis.table_of_pairs(self.more, self.ratio, value)
        return analysis.table_of_pairs(self.lost, ratio, value)

    def losses_at(self, ratio: float | None = None) -> pd.DataFrame:
        """In-domain, unseen and extra loss of every network, mean of the standard criteria."""
        return self._with_extra(self._standard(f"loss_{role}", ratio) for role in _ROLES)

    def accuracies_at(self, ratio: float | None = None) -> pd.DataFrame:
        """Accuracy in per cent of every network, mean of the standard criteria.

        Returns:
            Columns in_domain and unseen, and both with "_control": of the unpruned network with the
            same fine-tuning.
        """
        names = [f"{role}{end}" for role in _ROLES for end in ("", "_control")]
        return pd.DataFrame({n: 100 * self._standard(f"accuracy_{n}", ratio) for n in names})

    def kept_at(self, ratio: float | None = None) -> pd.DataFrame:
        """In-domain, unseen and extra share of the accuracy above chance that is left, in per cent.

        Points of accuracy compare domains badly: where a network starts lower, it has less to lose.
        The share is 100 for the control and 0 for guessing.
        """
        found, chance = self.accuracies_at(ratio), 100 / self.classes
        return self._with_extra(
            100 * (found[role] - chance) / (found[f"{role}_control"] - chance) for role in _ROLES
        )

    def _standard(self, value: str, ratio: float | None) -> pd.Series:
        return self.by_network(value, ratio)[self.standard].dropna().mean(axis=1)

    @staticmethod
    def _with_extra(found: Iterable[pd.Series]) -> pd.DataFrame:
        inside, unseen = found
        return pd.DataFrame({"in_domain": inside, "unseen": unseen, "extra": unseen - inside})


@dataclass(frozen=True)
class Advice:
    """What to use in one situation.

    Attributes:
        have: What one has.
        method: The criterion to use.
        in_domain: Points that it saves on the source domains against random pruning.
        unseen: The same on the unseen domain.
    """

    have: str
    method: str
    in_domain: Estimate
    unseen: Estimate


def all_results(folder: str | Path = "results") -> list[Results]:
    """The results that the book's answer rests on, the most telling first.

    Args:
        folder: Where the files lie.

    Returns:
        PACS if a file of it is there (at 128 pixels rather than at 64), then the digits.
    """
    found: dict[str, Results] = {}
    for file, title, classes, ratio, further in _FILES:
        path, name = Path(folder, f"{file}.jsonl"), title.split()[0]
        if name in found or not path.is_file():
            continue
        beside = [Path(folder, f"{each}.jsonl") for each in further]
        lost = _same_networks(_losses(path))
        if ratio in set(lost["pruning_ratio"]):  # else the run has only begun
            more = _same_networks(_losses(path, *(each for each in beside if each.is_file())))
            more = more[more["pruning_ratio"] == ratio]
            found[name] = Results(name, path, title, classes, ratio, lost, more)
    return list(found.values())


def _losses(*paths: Path) -> pd.DataFrame:
    """Losses in one shot, the same share of every layer, after the usual fine-tuning."""
    lost = lost_points(*paths)
    lost = lost[(lost["schedule"] == "one-shot") & (lost["scope"] == "uniform")]
    return lost[lost["finetune_steps"] == lost["finetune_steps"].mode()[0]].reset_index(drop=True)


def _same_networks(lost: pd.DataFrame) -> pd.DataFrame:
    """At every ratio, the seeds that have all of ``CURVES`` on all domains: the same networks."""
    shown = [name for name in CURVES if name in set(lost["method"])]
    complete = len(shown) * lost["test_env"].nunique()
    sizes = lost[lost["method"].isin(shown)].groupby(["pruning_ratio", "seed"]).size()
    keys = pd.MultiIndex.from_frame(lost[["pruning_ratio", "seed"]])
    return lost[keys.isin(sizes.index[sizes == complete])].reset_index(drop=True)


def advice(results: Results) -> list[Advice]:
    """Which criterion to use, by what one has.

    The rule: begin with random pruning. Of the criteria that what one has makes possible, take the
    one with the smallest mean loss on the *source* domains; it replaces what one would use without
    it if it loses less there with both intervals, over networks and over domains, above 0.

    Args:
        results: Of :func:`all_results`.

    Returns:
        One for each of ``SITUATIONS`` of which something was measured, with the points saved
        against random pruning.
    """
    inside, unseen = results.by_network("loss_in_domain"), results.by_network("loss_unseen")
    using, found = "random", []
    for have, methods in SITUATIONS:
        measured = [name for name in methods if name in inside]
        if not measured:
            continue
        best = str(inside[measured].dropna().mean().idxmin())
        gain = estimate((inside[using] - inside[best]).dropna())
        if gain.sure and gain.mean > 0:
            using = best
        saved = [estimate((table["random"] - table[using]).dropna()) for table in (inside, unseen)]
        found.append(Advice(have, using, *saved))
    return found


def default_criterion(measured: Sequence[Results]) -> str:
    """What :func:`~dgprune_lite.pruning.pruning.prune` takes by default, by the rule of the book.

    It is what :func:`advice` says of the most telling data set to whoever has most: held-out images
    of several domains. So the table of advice and the default cannot part, and neither looks at the
    unseen domain. (Which images are scored on is up to the caller: a ``Split`` has held-out ones.)
    What a search on source domains found takes its place only if it is better on the unseen domain.

    Args:
        measured: From :func:`all_results`.
    """
    found = found_by_search(measured[0])
    if found is not None and found[1].sure and found[1].mean > 0:
        return found[0]
    return advice(measured[0])[-1].method.removesuffix(" on val")


def found_by_search(results: Results) -> tuple[str, Estimate] | None:
    """What the search on source domains found, and the points it saves on the unseen domain.

    Args:
        results: The search lies beside its file, with "_nested" at the end of the name.

    Returns:
        The method and its gain over Fisher on held-out images; None if there was no such search, it
        found nothing, or that was not measured on the unseen domain.
    """
    path = results.path.with_name(f"{results.path.stem}_nested.jsonl")
    if not path.is_file():
        return None
    nested = losses_left_out(path)
    winner = found_better(advantages(nested, list(nested["method"].unique()), TO_BEAT))
    unseen = results.by_network("loss_unseen")
    if winner is None or winner not in unseen:
        return None
    pairs = whole_seeds(unseen[[TO_BEAT, winner]].query("seed in @JUDGED_ON"))
    return winner, estimate(pairs[TO_BEAT] - pairs[winner])


def saved_with_a_misleading_cue(folder: str | Path = "results") -> tuple[Estimate, Estimate] | None:
    """Points that the signed score saves against random pruning where a cue misleads, or None.

    Args:
        folder: Where "cue.jsonl" lies: ColoredMNIST, a tenth of the filters removed, the largest
            weight of the variance that was tried.

    Returns:
        In-domain (negative: it costs) and unseen; None if there are no such results.
    """
    path = Path(folder, "cue.jsonl")
    if not path.is_file():
        return None
    lost = analysis.losses(analysis.balanced(read_results(path)[0]))
    inside, unseen = (
        analysis.table_of_pairs(lost, 0.1, value) for value in ("loss_in_domain", "loss_unseen")
    )
    signed = f"{SIGNED} order=exact variance=100"
    return (
        estimate(inside["random"] - inside[signed]),
        estimate(unseen["random"] - unseen[signed]),
    )


def judge(results: Results) -> pd.DataFrame:
    """The claims of the paper's abstract, judged for one data set at its ratio.

    Args:
        results: One of :func:`all_results`.

    Returns:
        As :func:`~dgprune_book.study.claims.claims_table`.
    """
    more, standard = results.more, results.standard
    return claims_table(more, pruning_ratio=results.ratio, method=SCORE, standard=standard)
