"""Labelled images that know which domain they come from, and the leave-one-domain-out split."""

from dgprune_lite.domains.base import MultipleDomainDataset, nearest_name
from dgprune_lite.domains.digits import DigitsLite
from dgprune_lite.domains.loading import batches, check_batch, count, fetch, read, to_device
from dgprune_lite.domains.mnist_variants import ColoredMNIST, RotatedMNIST
from dgprune_lite.domains.splits import Split, leave_one_domain_out

__all__ = [
    "ColoredMNIST",
    "DigitsLite",
    "MultipleDomainDataset",
    "RotatedMNIST",
    "Split",
    "batches",
    "check_batch",
    "count",
    "fetch",
    "leave_one_domain_out",
    "nearest_name",
    "read",
    "to_device",
]
