"""Fisher: the mean squared gate gradient, over training images of the sources."""

import dgprune_lite as dg


def score(model, graph, domains):
    return dg.score("fisher", model, graph, dg.domain_statistics(model, graph, domains.train))
