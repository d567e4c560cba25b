"""What the package does not require: where it is missing, the error says what to install."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from dgprune_lite import agreement, analysis, study


@pytest.mark.parametrize(
    ("missing", "call", "message"),
    [
        ("scipy", lambda: analysis.wilcoxon_p([1.0, 2.0]), "needs SciPy: pip install scipy"),
        (
            "scipy",
            lambda: agreement.rank_correlation({"sizes": {"a": 3}}, np.arange(3), np.arange(3)),
            "needs SciPy: pip install scipy",
        ),
        ("joblib", lambda: study.run([], "unused"), "needs joblib: pip install joblib"),
    ],
)
def test_a_missing_package_is_named(missing, call, message, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=message):
        call()
