"""csunmix: unmix closely-spaced infrared small targets with classical, model-based methods."""

import logging as _logging

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)

_logging.getLogger(__name__).addHandler(_logging.NullHandler())  # silent unless asked to log

__version__ = "0.1.0"
