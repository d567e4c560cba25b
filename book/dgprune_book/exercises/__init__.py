"""Self-checks for the exercises of the book: one function ``check_...`` an exercise.

Each takes the function you wrote and gives a
:class:`~dgprune_book.exercises.checking.Verdict` that says in words what is wrong
with it. Not imported with the package: ``from dgprune_book import exercises``.

One module a chapter. ``check_vrex_objective`` is the check of the function ``vrex_objective`` that
the reader writes, and rests on the :class:`~dgprune_book.exercises.checking.Exercise`
``VREX_OBJECTIVE`` beside it.
"""

from dgprune_book.exercises.chapter_01 import check_leave_out
from dgprune_book.exercises.chapter_02 import check_calibration_error, check_vrex_objective
from dgprune_book.exercises.chapter_03 import check_l1_importance, check_parameters_left
from dgprune_book.exercises.chapter_04 import check_extra_loss, check_paired_difference
from dgprune_book.exercises.chapter_05 import check_mixture_score, check_risk_variance_score
from dgprune_book.exercises.chapter_06 import check_keep_filters, check_rank_average
from dgprune_book.exercises.chapter_07 import check_holm, check_paired_interval
from dgprune_book.exercises.chapter_08 import check_choose_score, check_layer_agreement
from dgprune_book.exercises.chapter_09 import check_macs_left
from dgprune_book.exercises.chapter_10 import check_kept_width, check_tied_layers
from dgprune_book.exercises.chapter_11 import check_average_with_error
from dgprune_book.exercises.checking import Verdict

__all__ = [
    "Verdict",
    "check_average_with_error",
    "check_calibration_error",
    "check_choose_score",
    "check_extra_loss",
    "check_holm",
    "check_keep_filters",
    "check_kept_width",
    "check_l1_importance",
    "check_layer_agreement",
    "check_leave_out",
    "check_macs_left",
    "check_mixture_score",
    "check_paired_difference",
    "check_paired_interval",
    "check_parameters_left",
    "check_rank_average",
    "check_risk_variance_score",
    "check_tied_layers",
    "check_vrex_objective",
]
