"""Risk variance: the spread over the sources of the change of risk, on held-out images."""

import dgprune_lite as dg


def score(model, graph, domains):
    return dg.score("risk_variance", model, graph, dg.domain_statistics(model, graph, domains.val))
