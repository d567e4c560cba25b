"""How each operation acts on channel ids: one short rule per kind of operation.

A rule gets the running propagation, the fx node, the values of the node's tensor inputs (in
order) and the result (of which only the shape counts), and returns the result's
:class:`~dgprune_lite.channels.ids.Value`. An operation without a rule locks the channels it
touches, so that they are kept and reported. To support an operation, add it to a list in
``elementwise.py`` or write a rule for it: ``layers.py`` holds those with parameters, ``shapes.py``
those that move elements about.
"""

from dgprune_lite.channels.rules import elementwise, layers, shapes
from dgprune_lite.channels.rules.registry import apply_rule

__all__ = ["apply_rule", "elementwise", "layers", "shapes"]
