"""The ladder's figure shows every mean where the table has it, in the colour of its role."""

import numpy as np
import pandas as pd
import pytest
from dgprune_book.figures import plots
from dgprune_book.figures.ladder import draw_ladder
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex


def ladder(*rungs, shift=0.0):
    return pd.DataFrame(
        {"rung": rung, "role": role, "mean": mean, "low": mean - 1, "high": mean + 1,
         "domain_low": mean - 3, "domain_high": np.inf, "networks": 4}
        for i, rung in enumerate(rungs)
        for role, mean in (("in-domain", i + shift), ("unseen", 2 * i + shift))
    )  # fmt: skip


def test_means_stand_on_their_rungs_in_the_colours_of_their_roles():
    first, second = ladder("random", "weights", "Fisher"), ladder("random", "Fisher", shift=5)
    figure = draw_ladder({"PACS": first, "digits": second})
    for axes, table in zip(figure.axes, (first, second), strict=True):
        shown = {to_hex(line.get_color()): line for line in axes.lines if len(line.get_xdata()) > 2
                 or line.get_marker() in "os"}  # fmt: skip
        for role, color in plots.ROLE_COLORS.items():
            line = shown[color.lower()]
            rows = table[table["role"] == role]
            assert line.get_xdata() == pytest.approx(rows["mean"])
            rungs = ["random", "weights", "Fisher"]
            assert np.round(line.get_ydata()).tolist() == [rungs.index(r) for r in rows["rung"]]
        assert axes.get_xlim()[1] < 100
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == rungs
    plt.close(figure)
