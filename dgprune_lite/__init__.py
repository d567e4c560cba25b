"""dgprune_lite: prune the filters of a network that must work where it was not trained.

The main path, each step in the file of the same name:

    domains -> training -> channels -> risks -> scores -> pruning -> evaluation
"""

from dgprune_lite.channels.graph import ChannelGraph, FilterGroup, Layer, trace_channels
from dgprune_lite.domains import (
    PACS,
    VLCS,
    ColoredMNIST,
    DigitsDG,
    DigitsLite,
    MultipleDomainDataset,
    MultipleEnvironmentImageFolder,
    OfficeHome,
    RotatedMNIST,
    Split,
    TerraIncognita,
    draw_tiny_pacs,
    leave_one_domain_out,
)
from dgprune_lite.networks.evaluation import evaluate, summarize
from dgprune_lite.networks.models import (
    MODELS,
    build_model,
    count_parameters,
    load_model,
    save_model,
)
from dgprune_lite.networks.pretrained import freeze_batchnorm
from dgprune_lite.networks.recalibration import recalibrate_batchnorm
from dgprune_lite.networks.training import fit
from dgprune_lite.pruning.checkpoints import load, save
from dgprune_lite.pruning.plans import PruningPlan, make_plan
from dgprune_lite.pruning.pruning import plan_pruning, prune
from dgprune_lite.pruning.reports import report
from dgprune_lite.pruning.schedules import prune_iteratively
from dgprune_lite.pruning.verification import check_exact
from dgprune_lite.scores.criteria import CRITERIA, criterion, score
from dgprune_lite.scores.distributed import distributed_statistics
from dgprune_lite.scores.gates import gate_gradients_per_image, gated
from dgprune_lite.scores.risks import DomainStatistics, domain_statistics

__version__ = "0.1.0"
