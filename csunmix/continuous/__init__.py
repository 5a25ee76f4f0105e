"""Grid-free estimators: all targets of a cluster at once, off the grid and with errors."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
