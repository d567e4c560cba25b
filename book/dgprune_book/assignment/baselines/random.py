"""Random: the floor that every criterion must beat."""

import dgprune_lite as dg


def score(model, graph, domains):
    return dg.score("random", model, graph, seed=domains.seed)
