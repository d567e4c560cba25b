"""Labelled images that know which domain they come from, and the leave-one-domain-out split."""

from dgprune_lite.domains.base import MultipleDomainDataset
from dgprune_lite.domains.benchmarks import PACS, VLCS, OfficeHome, TerraIncognita
from dgprune_lite.domains.decoding import unreadable_images
from dgprune_lite.domains.digits import DigitsLite
from dgprune_lite.domains.digits_dg import DigitsDG
from dgprune_lite.domains.folders import MultipleEnvironmentImageFolder
from dgprune_lite.domains.images import ImageDomain
from dgprune_lite.domains.loading import (
    batches,
    check_batch,
    check_labels,
    count,
    fetch,
    read,
    to_device,
)
from dgprune_lite.domains.mnist import ColoredMNIST, RotatedMNIST
from dgprune_lite.domains.splits import Split, leave_one_domain_out
from dgprune_lite.domains.tensors import ImageTensors
from dgprune_lite.domains.tiny_pacs import draw_tiny_pacs
