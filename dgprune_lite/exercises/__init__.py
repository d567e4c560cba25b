"""Self-checks for the exercises of the book: one function ``check_...`` an exercise.

Each takes the function you wrote and gives a :class:`Verdict` that says in words what is wrong
with it. Not imported with the package: ``from dgprune_lite import exercises``.
"""

from dgprune_lite.exercises.checking import Verdict

__all__ = ["Verdict"]
