"""The networks by name, in the sizes that are trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from benchmarks.deep.data import Setting
from benchmarks.deep.dista_net import DISTANet
from benchmarks.deep.focus import FOCUS
from benchmarks.deep.ista_net import ISTANet
from benchmarks.deep.lista import LISTA
from benchmarks.deep.off_grid import OffGrid
from benchmarks.deep.on_grid import OnGrid, dictionary, first_guess
from benchmarks.deep.perceptron import GridPerceptron
from benchmarks.deep.posterior import Posterior

NETWORKS: dict[str, Callable[[Setting], nn.Module]] = {
    "off-grid": OffGrid,
    "posterior": Posterior,
    "perceptron": lambda setting: OnGrid(GridPerceptron()),
    "lista": lambda setting: OnGrid(LISTA(setting)),
    "ista-net": lambda setting: OnGrid(ISTANet(setting)),
    "focus": lambda setting: OnGrid(FOCUS()),
    "dista-net": lambda setting: OnGrid(
        DISTANet(dictionary(setting).numpy(), first_guess(setting), channels=16)
    ),
}
