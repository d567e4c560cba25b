"""My criterion: L1, the sum of a filter's absolute weights.

Say here what yours is, and why. One file, one function. Importing other
packages is fine; other files, processes and the network are not.
"""

import torch

import dgprune_lite as dg


def score(model, graph, domains):
    """Say how important every filter is.

    Args:
        model: the trained network, in evaluation mode, from images
            float32 (n, 3, 28, 28) in [0, 1] to logits (n, 10). Leave it
            as it is; to change something, work on copy.deepcopy(model).
        graph: its filters in groups, a ChannelGraph. There are
            graph.groups[name].size filters in a group.
        domains: the source domains, never the unseen one:
            - domains.train: domain name to a data set of (image, label),
              the images that the network was trained on;
            - domains.val: the same for the images that were held out;
            - domains.seed: for whatever you draw at random;
            - domains.example_inputs: one black image, to trace with.

    Returns:
        A dict with one tensor of real numbers (filters,) for every group.
        A high score means keep: the lower half of every group will go.
    """
    scores = {}
    for name, group in graph.groups.items():
        scores[name] = torch.zeros(group.size, dtype=torch.float64)
        for layer in group.producers:
            weight = model.get_submodule(layer).weight.detach().double()
            scores[name] += weight.abs().flatten(1).sum(1)
    return scores


# To look at the domains, start from their statistics. Risk variance is
#
#     stats = dg.domain_statistics(model, graph, domains.val)
#     change = stats.risk_change("fisher")  # (domains, filters)
#     return graph.split(change.std(0, unbiased=False))
#
# Run this file alone to try the function on a network without training:
if __name__ == "__main__":
    from dgprune_book.assignment.contract import Sources

    network = dg.build_model("digits_cnn", seed=0).eval()
    split = dg.leave_one_domain_out(dg.DigitsLite(), "syn", seed=0)
    example = split.example_inputs
    sources = Sources(split.train, split.val, seed=0, num_classes=10, example_inputs=example)
    print(score(network, dg.trace_channels(network, example), sources))
