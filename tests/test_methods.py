"""What `grid_unmixer` chooses and refuses, beyond what tests/test_unmixer.py sees in use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import csunmix as cu


@pytest.mark.parametrize("sigma", [0.5, 3.0, 12.0])
def test_default_threshold_is_five_times_the_error_of_a_lone_flux(sigma: float) -> None:
    psf = cu.GaussianPSF(sigma=sigma)
    unmix = cu.grid_unmixer(psf=psf, shape=(9, 9), sensor=cu.Sensor(read_noise=2.0))
    norm = np.linalg.norm(psf.response(100, 100, (201, 201)))
    assert isinstance(unmix.peaks, cu.MassMerging)
    assert unmix.peaks.threshold == pytest.approx(5 * 2.0 / norm, rel=1e-6)


def test_fluxes_from_zero_on_have_the_threshold_of_none() -> None:
    given: dict[str, Any] = {"psf": cu.GaussianPSF(sigma=0.5), "shape": (9, 9)}
    known = cu.grid_unmixer(prior=cu.Prior(flux=(0.0, 300.0)), **given).peaks
    assert known == replace(known, threshold=cu.grid_unmixer(**given).peaks.threshold)


@pytest.mark.parametrize("method", ["ista", "fista", "split-bregman"])
def test_first_order_methods_converge_by_default(method: str) -> None:
    setup = cu.presets.csist_100k()
    made = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=6, rng=7)
    optics: dict[str, Any] = {"psf": setup.psf, "shape": setup.shape, "prior": setup.prior}
    optics["factor"] = 3
    unmix = cu.grid_unmixer(method, sensor=setup.sensor, **optics)
    assert setup.sensor.censored(made.images).any()
    assert unmix.solve(made.images).converged.all()
    tolerances = [
        cu.grid_unmixer(method, sensor=setup.sensor, lam=lam, **optics).solver.tol
        for lam in ("auto", 10.0, 0.3, 0.1, 0.001)
    ]
    assert tolerances[0] == tolerances[1] <= 3e-3
    assert tolerances[3] == pytest.approx(3 * tolerances[2])
    assert tolerances[4] == 0.03
    exact = cu.grid_unmixer("active-set", sensor=setup.sensor, **optics).solver
    assert exact.tol <= 1e-9


def test_settings_are_checked_where_the_method_does_not_use_them() -> None:
    optics = {"psf": cu.GaussianPSF(sigma=0.5), "shape": (9, 9)}
    with pytest.raises(ValueError, match="n_nonzero must be at least 1, got -3"):
        cu.grid_unmixer("active-set", n_nonzero=-3, **optics)
    with pytest.raises(ValueError, match="lam must be at least 0, got -1"):
        cu.grid_unmixer("omp", lam=-1.0, **optics)
