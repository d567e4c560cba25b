"""How good a network is on each domain: accuracy, risk and calibration, in-domain and unseen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from dgprune_lite.checks import named_domains, whole_number
from dgprune_lite.domains import Split, batches, check_labels
from dgprune_lite.running import (
    Logits,
    check_model,
    device_of,
    evaluating,
    in_dtype_of,
    layout_for,
    logits_of,
    move,
)

if TYPE_CHECKING:
    import pandas as pd


def evaluate(
    model: nn.Module,
    data: Split | Mapping[str, Dataset],
    *,
    batch_size: int = 512,
    device: torch.device | str | None = None,
    precision: str = "float32",
    workers: int = 0,
    logits: Logits | None = None,
) -> pd.DataFrame:
    """Measure a network on every domain, in evaluation mode and without gradients.

    Args:
        model: Network from images (batch, channels, height, width) to logits (batch, classes).
        data: A ``Split``, of which the held-out part of each source domain and the whole unseen
            domain are measured; or domain name to dataset, all of which count as in-domain.
        batch_size: Images at a time; no influence on the result but rounding.
        device: Where to compute; the network is moved there and stays. None for where it is.
        precision: "float32" runs the network as it is; "bfloat16", or on CUDA "float16", with
            autocast. What is made of the logits is float64 in any case.
        workers: Processes that read images from datasets not held in memory; 0 for none.
        logits: How to get logits from what the network returns, ``lambda output: output["main"]``
            say, where it calls them neither "logits" nor "out" and they are not its first tensor.

    Returns:
        One row a domain: domain, role ("in-domain" or "unseen"), images, accuracy (0 to 1), risk
        (mean cross-entropy, nats) and ece (expected calibration error, 15 bins).

    Raises:
        ValueError: No domain, an empty domain, labels outside the network's classes, logits that
            are NaN or infinite, or a precision that the device cannot compute in.
        TypeError: Arguments, images or labels of another kind, or a network without logits.

    Source: The protocol of DomainBed (Gulrajani and Lopez-Paz, ICLR 2021), training-domain
    validation.

    >>> from torch.utils.data import TensorDataset
    >>> photo = TensorDataset(torch.rand(8, 3, 4, 4), torch.zeros(8, dtype=torch.long))
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    >>> evaluate(network, {"photo": photo}).drop(columns="role").to_dict("records")
    [{'domain': 'photo', 'images': 8, 'accuracy': 1.0, 'risk': 0.0, 'ece': 0.0}]
    """
    check_model(model)
    seen = data.val if isinstance(data, Split) else data
    seen = named_domains(seen, "data", example="split.val, or a Split")
    parts = [(name, "in-domain", dataset) for name, dataset in seen.items()]
    if isinstance(data, Split):
        parts.append((data.test_env, "unseen", data.target))
    move(model, device, precision)
    rows = []
    # Not `inference_mode`: a network that keeps a tensor from here could not be trained with it.
    with evaluating(model), torch.no_grad():
        for name, role, dataset in parts:
            loop = batches(
                dataset, batch_size, domain=name, device=device_of(model), workers=workers
            )
            columns = zip(*_predict(model, loop, name, precision, logits), strict=True)
            nats, confidence, correct = map(torch.cat, columns)
            accuracy, risk = float(correct.double().mean()), float(nats.mean())
            error = expected_calibration_error(confidence, correct)
            rows.append((name, role, len(nats), accuracy, risk, error))
    import pandas as pd  # costs more to import than all of this package

    return pd.DataFrame(rows, columns=["domain", "role", "images", "accuracy", "risk", "ece"])


def summarize(frame: pd.DataFrame) -> dict[str, float]:
    """Boil the rows of ``evaluate`` (columns role and accuracy) down to four accuracies.

    Returns:
        in_domain (mean over source domains), unseen (mean over unseen domains, usually one), worst
        (the lowest of all domains) and gap (in_domain - unseen); NaN where there is no such row.

    Raises:
        ValueError: A column is missing.

    >>> import pandas as pd
    >>> rows = {"role": ["in-domain", "in-domain", "unseen"], "accuracy": [1.0, 0.75, 0.625]}
    >>> summarize(pd.DataFrame(rows))
    {'in_domain': 0.875, 'unseen': 0.625, 'worst': 0.625, 'gap': 0.25}
    """
    missing = [column for column in ("role", "accuracy") if column not in frame.columns]
    if missing:
        raise ValueError(
            f"the table has no column {missing[0]!r}, only {list(frame.columns)}; "
            f"expected one that `evaluate` returned"
        )
    in_domain, unseen = (
        float(frame.loc[frame["role"] == role, "accuracy"].mean())
        for role in ("in-domain", "unseen")
    )
    worst = float(frame["accuracy"].min())
    return {"in_domain": in_domain, "unseen": unseen, "worst": worst, "gap": in_domain - unseen}


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Σ_m (n_m / n) · |accuracy_m − confidence_m| over equal bins of confidence, both of (n,)."""
    # Bin m holds ((m - 1) / bins, m / bins]. Source: Guo et al., "On calibration of modern neural
    # networks", ICML 2017, equation 3.
    if confidence.ndim != 1 or confidence.shape != correct.shape or len(confidence) == 0:
        raise ValueError(
            f"confidence has shape {tuple(confidence.shape)}, correct {tuple(correct.shape)}; "
            f"expected the same (n,) for both, with at least one prediction"
        )
    whole_number("bins", bins, 1)
    confidence, correct = confidence.detach().cpu().double(), correct.cpu().double()
    number = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (n,), from 0 to bins - 1
    # In each bin n_m · (accuracy_m − confidence_m) is a sum over its members.
    differences = torch.zeros(bins, dtype=torch.float64).index_add(0, number, correct - confidence)
    return float(differences.abs().sum() / len(confidence))


def _predict(
    model: nn.Module,
    loop: Iterator[tuple[Tensor, Tensor]],
    name: str,
    precision: str,
    logits: Logits | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Cross-entropy (nats), confidence and correctness of the images, batch by batch."""
    layout = layout_for(model, precision)
    for number, (images, labels) in enumerate(loop):
        where = f"domain {name!r}, batch {number}"
        images = in_dtype_of(model, images).contiguous(memory_format=layout)
        found = logits_of(model, images, precision, logits).cpu().double()  # (batch, classes)
        labels = labels.cpu()  # after the forward pass, for which a GPU would wait
        check_labels(labels, found.shape[1], where)
        if not bool(torch.isfinite(found).all()):
            raise ValueError(
                f"the logits for {where} are NaN or infinite; check the images and weights for "
                f"values that are not finite"
            )
        confidence, predicted = found.softmax(1).max(1)
        yield F.cross_entropy(found, labels, reduction="none"), confidence, predicted == labels
