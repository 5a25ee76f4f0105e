"""What is compiled to find targets on a grid, by the solver."""

from __future__ import annotations

import numpy as np

from csunmix._ahead import Step
from csunmix._kernels.active_set import active_set
from csunmix._kernels.proximal import proximal_steps, spectral_steps
from csunmix._kernels.pursuit import matching_pursuit, orthogonal_matching_pursuit
from csunmix.presets import csist_100k
from csunmix.solvers.active_set import ActiveSet
from csunmix.solvers.base import Solver
from csunmix.solvers.proximal import FISTA, ISTA
from csunmix.solvers.pursuit import OMP, MatchingPursuit

_CALL = __name__, "compile_method"


def steps_for(solver: Solver) -> tuple[Step, ...]:
    """What a solver of the project needs; nothing is known of others."""
    kind = type(solver)
    if kind is ActiveSet:
        return (Step(active_set, (*_CALL, "active-set")),)
    if kind is OMP:
        return (Step(orthogonal_matching_pursuit, (*_CALL, "omp")),)
    if kind is MatchingPursuit:
        return (Step(matching_pursuit, (*_CALL, "matching-pursuit")),)
    if kind is FISTA:
        return (Step(proximal_steps, (*_CALL, "fista")),)
    if isinstance(solver, ISTA) and kind is ISTA and solver.step == "spectral":
        return (Step(spectral_steps, (*_CALL, "ista")),)
    return ()


def compile_method(method: str) -> None:
    """Compile a grid method, tables of its targets included."""
    from csunmix.methods import grid_unmixer

    setup = csist_100k()
    image = np.rint(235.0 * setup.psf.response(5.2, 4.7, setup.shape))
    unmix = grid_unmixer(
        method, psf=setup.psf, shape=setup.shape, sensor=setup.sensor, prior=setup.prior
    )
    unmix(image)
