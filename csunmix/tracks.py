"""Simulated tracks: one cluster of targets over many frames, for the layout of SeqCSIST."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from csunmix._validation import FloatArray, as_instance, as_integer, as_rng
from csunmix.presets import Preset
from csunmix.simulate import CountModel, Simulation, render, simulate
from csunmix.targets import make_table

_MAX_SPEED = 0.3  # px per frame; none is published
_MARGIN = 1  # pixels between a target's pixel and the border, as in `simulate`


def simulate_tracks(
    preset: Preset,
    n_tracks: int,
    rng: np.random.Generator | int,
    *,
    count_model: CountModel = "uniform",
) -> Simulation:
    """Draw tracks of ``preset.frames_per_track`` frames each.

    The first frame of a track is drawn by `csunmix.simulate.simulate` from ``preset.scene``. The
    cluster then moves as a whole, at constant fluxes, along a straight line: direction uniform,
    speed uniform in 0..0.3 px/frame, given that every target stays in pixels at least one pixel
    from the border.

    Parameters
    ----------
    preset : Preset
        Optics, detector, scene, image shape and frames of a track.
    n_tracks : int
        Number of tracks.
    rng : numpy.random.Generator or int
        Source of randomness, or a seed.
    count_model : {"uniform", "normal"}
        Distribution of the number of targets, see `csunmix.simulate.simulate`.

    Returns
    -------
    Simulation
        One track after the other; ``frame`` of the truth is ``track * frames_per_track + t``, and
        a further column ``track`` holds the track.

    Raises
    ------
    TypeError, ValueError
        As `csunmix.simulate.simulate`.
    """
    as_instance(preset, Preset, "preset")
    n_tracks, length = as_integer(n_tracks, "n_tracks", minimum=1), preset.frames_per_track
    rng = as_rng(rng)
    optics = (preset.psf, preset.sensor, preset.scene)
    first = simulate(
        *optics, shape=preset.shape, n=n_tracks, rng=rng, count_model=count_model, margin=_MARGIN
    ).truth
    track = first["frame"].to_numpy()
    start = first[["y", "x"]].to_numpy()
    velocity = _draw_velocities(start, track, n_tracks, length - 1, preset.shape, rng)

    time = np.arange(length)
    path = start[:, None, :] + velocity[track][:, None, :] * time[:, None]
    frame = track[:, None] * length + time
    flux = np.broadcast_to(first["flux"].to_numpy()[:, None], frame.shape)
    order = np.argsort(frame, axis=None, kind="stable")  # frames in order, targets as drawn
    y, x = path.reshape(-1, 2)[order].T
    truth = make_table(frame.ravel()[order], y, x, flux.ravel()[order], n_frames=n_tracks * length)
    truth["track"] = truth["frame"] // length
    light = render(preset.psf, truth, shape=preset.shape)
    return Simulation(preset.sensor.expose(light, rng), truth, light)


def _draw_velocities(
    start: FloatArray,
    track: npt.NDArray[np.int64],
    n_tracks: int,
    duration: int,
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> FloatArray:
    """Velocities (n_tracks, 2) that keep all targets inside, px/frame, by rejection."""
    low = _MARGIN - 0.5
    high = np.array(shape) - 0.5 - _MARGIN
    velocity = np.zeros((n_tracks, 2))
    missing = np.arange(n_tracks)
    while missing.size:
        angle = rng.uniform(0.0, 2.0 * np.pi, missing.size)
        speed = rng.uniform(0.0, _MAX_SPEED, missing.size)
        velocity[missing] = speed[:, None] * np.column_stack([np.sin(angle), np.cos(angle)])
        # The line starts inside and the area is convex: its end decides.
        end = start + duration * velocity[track]
        outside = ((end < low) | (end > high)).any(axis=1)
        missing = np.unique(track[outside])
    return velocity
