"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from benchmarks.deep.data import Setting
from benchmarks.deep.off_grid import OffGrid

NETWORKS: dict[str, Callable[[Setting], nn.Module]] = {
    "off-grid": OffGrid,
}
