"""Everything that is compared: trained networks and our estimators, as calls from images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import csunmix as cu
from benchmarks.deep.data import Setting
from benchmarks.deep.networks import NETWORKS
from benchmarks.deep.weights import load

LABELS = {
    "off-grid": "off-grid network",
    "posterior": "amortised posterior",
    "perceptron": "perceptron, c = 3",
    "lista": "LISTA, c = 3",
    "ista-net": "ISTA-Net+ (16 channels, 6 stages), c = 3",
    "focus": "FOCUS, c = 3",
    "dista-net": "DISTA-Net (16 channels), c = 3",
}
FIRST_STAGE = "off-grid network, first stage"
OURS = {"ContinuousUnmixer": cu.ContinuousUnmixer, "PosteriorUnmixer": cu.PosteriorUnmixer}
TOLD = ("preset", "cell")
TRAINING = "scenes"  # what networks are told


@dataclass(frozen=True)
class Method:
    """One that is compared.

    Parameters
    ----------
    name, told : str
        What it is, and what it knows of the scenes.
    run : callable
        From images (n, n_y, n_x) to a target table.
    parameters : int, optional
        That were trained.
    seconds : float, optional
        CPU time of the training.
    """

    name: str
    told: str
    run: Callable[[np.ndarray], pd.DataFrame]
    parameters: int | None = None
    seconds: float | None = None


def networks(setting: Setting, runs: Path | None) -> Iterator[Method]:
    """Networks that were trained for a setting."""
    for name in NETWORKS:
        trained = load(name, setting.name, runs)
        if trained is None:
            continue
        network, parameters, seconds = trained
        yield Method(LABELS[name], TRAINING, network.unmix, parameters, seconds)
        if name == "off-grid":
            size = sum(each.numel() for each in network.start.parameters())
            yield Method(FIRST_STAGE, TRAINING, partial(network.unmix, n_refine=0), size, seconds)


def ours(setting: Setting) -> Iterator[Method]:
    """Our estimators, told the preset's prior or the pixel cell."""
    prior = cu.presets.csist_100k().prior
    for told, each in zip(TOLD, (prior, setting.scene), strict=True):
        for name, make in OURS.items():
            yield Method(name, told, make(setting.psf, setting.sensor, each, n_jobs=1))
