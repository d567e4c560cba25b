"""How each function of PyTorch acts on channel ids: one short rule per kind of function.

A rule gets the tape and the call and returns what the result carries, None for no channels. What a
function without a rule reads is kept and reported. To support one, add its name to a rule of
``elementwise.py``, ``layers.py`` (with weights) or ``shapes.py`` (elements move), or write one.
"""

from dgprune_lite.channels.rules import elementwise, layers, shapes

__all__ = ["elementwise", "layers", "shapes"]
