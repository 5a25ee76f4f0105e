"""Interchangeable sparse solvers: maps of coefficients on the sub-pixel grid from images."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
