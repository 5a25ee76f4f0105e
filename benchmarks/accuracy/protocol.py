"""The data that every accuracy benchmark of CSIST-like images is run on."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

import csunmix as cu
from csunmix.simulate import Simulation

TUNING_SEED = 100
"""Settings are tuned on this seed and no figure is reported from it."""
REPORT_SEED = 2026
"""Figures are reported from this seed."""


class Protocol(NamedTuple):
    """One way of recording the same scenes."""

    name: str
    sensor: cu.Sensor
    images: np.ndarray


def simulate(n: int, seed: int) -> tuple[Simulation, list[Protocol]]:
    """Draw scenes and record them in 8 bit, clipped at 255 (the main protocol) and not clipped."""
    setup = cu.presets.csist_100k()
    free = replace(setup.sensor, saturation=None)
    scenes = cu.simulate(setup.psf, free, setup.scene, shape=setup.shape, n=n, rng=seed)
    clipped = np.minimum(scenes.images, setup.sensor.saturation)
    return scenes, [
        Protocol("clipped", setup.sensor, clipped),
        Protocol("not clipped", free, scenes.images),
    ]
