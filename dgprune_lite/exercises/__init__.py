"""Self-checks for the exercises of the book: one function ``check_...`` an exercise.

Each takes the function you wrote and gives a :class:`Verdict` that says in words what is wrong
with it. Not imported with the package: ``from dgprune_lite import exercises``.
"""

from dgprune_lite.exercises.chapter_07 import check_holm, check_paired_interval
from dgprune_lite.exercises.chapter_08 import check_choose_score, check_layer_agreement
from dgprune_lite.exercises.chapter_09 import check_macs_left
from dgprune_lite.exercises.chapter_10 import check_kept_width, check_tied_layers
from dgprune_lite.exercises.chapter_11 import check_average_with_error
from dgprune_lite.exercises.checking import Verdict

__all__ = [
    "Verdict",
    "check_average_with_error",
    "check_choose_score",
    "check_holm",
    "check_kept_width",
    "check_layer_agreement",
    "check_macs_left",
    "check_paired_interval",
    "check_tied_layers",
]
