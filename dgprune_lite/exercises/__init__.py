"""Self-checks for the exercises of the book: one function ``check_...`` an exercise.

Each takes the function you wrote and gives a :class:`Verdict` that says in words what is wrong
with it. Not imported with the package: ``from dgprune_lite import exercises``.

One module a chapter. ``check_vrex_objective`` is the check of the function ``vrex_objective`` that
the reader writes, and rests on the :class:`~dgprune_lite.exercises.checking.Exercise`
``VREX_OBJECTIVE`` beside it.
"""

from dgprune_lite.exercises.chapter_01 import check_leave_out
from dgprune_lite.exercises.chapter_02 import check_calibration_error, check_vrex_objective
from dgprune_lite.exercises.checking import Verdict

__all__ = [
    "Verdict",
    "check_calibration_error",
    "check_leave_out",
    "check_vrex_objective",
]
