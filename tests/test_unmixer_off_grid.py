"""What all grid-free unmixers share: from a stack of images to a table."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import csunmix as cu
from csunmix.continuous import window
from csunmix.targets import Flag

PSF, SHAPE = cu.GaussianPSF(sigma=0.5), (11, 11)
SENSOR = cu.Sensor(read_noise=1.0)
PRIOR = cu.Prior(count=(1, 2), flux=(150.0, 300.0))


def continuous(sensor: cu.Sensor = SENSOR, **given: Any) -> Any:
    return cu.ContinuousUnmixer(PSF, sensor, PRIOR, **given)


def posterior(sensor: cu.Sensor = SENSOR, **given: Any) -> Any:
    return cu.PosteriorUnmixer(PSF, sensor, PRIOR, **given)


def moments(sensor: cu.Sensor = SENSOR, **given: Any) -> Any:
    return cu.MomentUnmixer(PSF, sensor, PRIOR, **given)


def frank_wolfe(sensor: cu.Sensor = SENSOR, **given: Any) -> Any:
    return cu.SlidingFrankWolfe(PSF, sensor, threshold=50.0, **given)


EVERY = pytest.mark.parametrize("make", [moments, continuous, posterior, frank_wolfe])


def exposed(n: int = 3, sensor: cu.Sensor = SENSOR, level: float = 0.0) -> Any:
    light = 231.0 * PSF.response(5.2, 4.7, SHAPE) + level
    return sensor.expose(np.broadcast_to(light, (n, *SHAPE)), rng=2)


@EVERY
def test_a_psf_is_tabulated_once_for_each_shape(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line calls an unmixer for every few images."""
    make()(exposed())  # so that nothing is left to compile, which needs tables, too
    shapes, original = [], window.tabulate

    def counted(psf: cu.PSF, reach: int, **given: Any) -> Any:
        shapes.append(reach)
        return original(psf, reach, **given)

    monkeypatch.setattr(window, "tabulate", counted)
    unmix, images = make(), exposed()
    for _ in range(2):
        unmix(images[:1])
        unmix(images[:1, 1:, 1:])
    assert sorted(shapes) == [11, 12]


@EVERY
def test_what_is_kept_is_no_part_of_what_an_unmixer_is(make: Callable[..., Any]) -> None:
    fresh, used = make(), make()
    table = used(exposed())
    assert used == fresh
    assert hash(used) == hash(fresh)
    assert repr(used) == repr(fresh)
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(used))(exposed()), table)
    other = replace(used, psf=cu.GaussianPSF(sigma=0.7))(exposed())
    assert abs(other["flux"].sum() - table["flux"].sum()) > 5.0


@EVERY
def test_threads_change_nothing(make: Callable[..., Any]) -> None:
    images = exposed(6)
    images[2, 3, 3] = np.nan
    alone, together = make()(images), make(n_jobs=2)(images)
    pd.testing.assert_frame_equal(together, alone)
    assert together.attrs == alone.attrs
    with pytest.raises(ValueError, match="n_jobs must be at least 1, got 0"):
        make(n_jobs=0)


@EVERY
def test_bad_pixels_do_not_shift_the_background(make: Callable[..., Any]) -> None:
    """More than half of the ring that the level is taken from are bad."""
    bad = np.zeros(SHAPE, dtype=bool)
    bad[0] = bad[:, 0] = bad[:, 10] = True
    sensor = cu.Sensor(read_noise=1.0, bad_pixels=bad)
    table = make(sensor, background="border")(exposed(1, sensor, level=80.0))
    assert len(table) == 1
    assert table["flux"].item() == pytest.approx(231.0, abs=12.0)
    assert table["y"].item() == pytest.approx(5.2, abs=0.05)


@EVERY
def test_images_without_targets_have_their_flags(make: Callable[..., Any]) -> None:
    bad = np.zeros(SHAPE, dtype=bool)
    bad[5, 5] = True
    table = make(cu.Sensor(read_noise=1.0, bad_pixels=bad))(np.zeros((1, *SHAPE)))
    assert table.attrs["frame_flags"] == {0: Flag.BAD_PIXELS | Flag.NO_TARGET}
    assert table.attrs.get("count_probability", [[0.0, 0.0]]) == [[0.0, 0.0]]


@pytest.mark.parametrize("method", [cu.ContinuousUnmixer, cu.PosteriorUnmixer])
@pytest.mark.parametrize(
    "prior",
    [
        cu.Prior(count=(5, 5), flux=(220.0, 250.0), extent=1.2, min_separation=0.494),
        cu.Prior(count=(2, 2), flux=(20.0, 30.0), extent=1.2, min_separation=0.494),
        cu.Prior(count=(3, 3), flux=(220.0, 250.0), extent=0.5, min_separation=0.494),
    ],
    ids=["too many", "too faint", "too crowded"],
)
def test_a_prior_that_the_images_contradict_stops_no_batch(method: Any, prior: cu.Prior) -> None:
    one = cu.Prior(count=(1, 2), flux=(220.0, 250.0), extent=0.8, min_separation=0.494)
    made = cu.simulate(PSF, cu.Sensor(rounding=True), one, shape=(11, 11), n=3, rng=0)
    images = np.concatenate([made.images, np.full((1, 11, 11), 255.0)])
    table = method(PSF, cu.Sensor(rounding=True, saturation=255.0), prior)(images)
    columns = ["y", "x", "flux", "y_err", "x_err", "flux_err", "score"]
    assert np.isfinite(table[columns].to_numpy()).all()
    assert set(table["frame"]) == {0, 1, 2, 3}
