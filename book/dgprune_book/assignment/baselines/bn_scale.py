"""BN scale: the magnitude of a filter's BatchNorm scale."""

import dgprune_lite as dg


def score(model, graph, domains):
    return dg.score("bn_scale", model, graph)
