"""How each function of PyTorch acts on channel ids: one short rule per kind of function.

A rule gets the tape and the call (its function, arguments and result, of which only the shape
counts), and returns the result's :class:`~dgprune_lite.channels.ids.Value`; None says that it
carries no removable channels. A function without a rule locks the channels that it reads, so that
they are kept and reported. To support a function, add its name to a list in ``elementwise.py`` or
write a rule for it: ``layers.py`` holds those with weights, ``shapes.py`` those that move elements
about, ``parts.py`` those that join and part tensors.
"""

from dgprune_lite.channels.rules import elementwise, layers, parts, shapes

__all__ = ["elementwise", "layers", "parts", "shapes"]
