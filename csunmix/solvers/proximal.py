"""Proximal gradient methods: ISTA and FISTA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from csunmix._validation import FloatArray, as_bool
from csunmix.solvers.base import L1Solver, Monitor, Problem, SolveResult

_CHECK_EVERY = 10  # iterations between two looks at the gap, and
_CHECK_SHARE = 0.2  # of those done
_GREEDY = 1.6  # first step length, in units of 1/L


@dataclass(frozen=True, kw_only=True)
class ISTA(L1Solver):
    r"""Iterative shrinkage-thresholding for the (non-negative) l1 problem.

    Minimises ``1/2 sum w r^2 + lam ||x||_1`` by

    .. math:: x \leftarrow \operatorname{prox}_{\tau\lambda}\big(x + \tau A^T(w r)\big)

    (Daubechies, Defrise & De Mol 2004, CPAM 57, 1413). The step length ``tau`` is

    - "fixed": ``1/L``, ``L = ||A||^2 max w``, the textbook method (Beck & Teboulle 2009, SIAM J.
      Imaging Sci. 2, 183, eq. 3.1). On a sub-pixel dictionary it needs far more than 100,000
      iterations at a small `lam`; it is there to compare with what others call ISTA;
    - "spectral": from the curvature along the last step ``s``, ``d = A^T W A s``: the longer
      Barzilai-Borwein length ``|s|^2/<s, d>``, or the least of the last three shorter ones
      ``<s, d>/|d|^2``, if that of now is below half the longer (Frassoldati, Zanni & Zanghirati
      2008, J. Ind. Manag. Optim. 4, 299). ``|d|`` is taken where ``x != 0`` only, as bounds
      take no part in the curvature (Crisci, Ruggiero & Zanni 2019, Appl. Math. Comput. 356, 312).
      A step that does not lower the objective enough is tried again at half the length, down to
      ``1/L`` (Wright, Nowak & Figueiredo 2009, IEEE Trans. Signal Process. 57, 2479). Each trial
      counts as an iteration.

    The objective never rises with either. "spectral" works in double precision whatever the images
    are: single precision hides the curvature. "fixed" solves float32 images in float32, see
    `FISTA`.

    Parameters
    ----------
    lam : float or "auto"
        Weight of the l1 norm, DN; "auto" takes it from the images' noise, see
        `csunmix.solvers.base.universal_lam`.
    positive : bool
        Require ``x >= 0``.
    max_iter : int
        Most iterations.
    tol : float
        Relative duality gap at which an image is done.
    step : "spectral" or "fixed"
        How long the steps are.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range; the message names it.
    """

    step: Literal["spectral", "fixed"] = "spectral"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step not in ("spectral", "fixed"):
            raise ValueError(f"step must be 'spectral' or 'fixed', got {self.step!r}")

    def _run(self, problem: Problem, monitor: Monitor) -> SolveResult:
        if self.step == "fixed":
            return _fixed_steps(self, problem, monitor, accelerate=False, restart=False)
        from csunmix._kernels.proximal import spectral_steps

        def advance(part: Problem, n_steps: int, x: FloatArray, lengths: FloatArray) -> None:
            rest = (part.positive, n_steps, _maps(part, x), lengths)
            spectral_steps(*_arguments(part, *rest))

        lengths = np.full((len(problem), 4), np.inf)
        lengths[:, 0] = 1.0 / _lipschitz(problem)
        return _iterate(self, problem, np.dtype(np.float64), monitor, advance, lengths)


@dataclass(frozen=True, kw_only=True)
class FISTA(L1Solver):
    r"""Accelerated proximal gradient, for the same problem as `ISTA`.

    The gradient step starts from ``z = x + m (x - x_old)``. With `restart`, as in "greedy FISTA"
    (Liang, Luo & Schoenlieb 2022, SIAM J. Sci. Comput. 44, A1069): ``m = 1``, and 0 after a step
    with ``<z - x_new, x_new - x> > 0`` (the momentum points uphill); the length of the steps
    begins at ``1.6/L`` and shrinks by 4 %, down to ``1/L``, whenever ``x`` moves further than at
    first. Without, ``m = (t_k - 1)/t_{k+1}`` and the length is ``1/L`` (Beck & Teboulle 2009, SIAM
    J. Imaging Sci. 2, 183, eq. 4.1-4.3). Cells that can not become positive in a step are left
    out of it, and where all weights are 1 and no pixel is censored the gradients of the others
    follow from inner products of their atoms; neither changes an iterate.
    Float32 images are solved in float32, where the gap is told no better than to
    ``16 eps max_j |a_j^T w y| / lam``: `tol` is at least that.

    Parameters
    ----------
    lam, positive, max_iter, tol
        As for `ISTA`.
    restart : bool
        Restart the momentum when it points uphill.
    """

    restart: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        as_bool(self.restart, "restart")

    def _run(self, problem: Problem, monitor: Monitor) -> SolveResult:
        return _fixed_steps(self, problem, monitor, accelerate=True, restart=self.restart)


def _fixed_steps(
    solver: L1Solver, problem: Problem, monitor: Monitor, *, accelerate: bool, restart: bool
) -> SolveResult:
    from csunmix._kernels.proximal import proximal_steps

    def advance(
        part: Problem, n_steps: int, x: FloatArray, z: FloatArray, memory: FloatArray
    ) -> None:
        how = (part.dictionary.largest_norm, part.positive, accelerate, restart)
        state = (_maps(part, x), _maps(part, z), memory)
        proximal_steps(*_arguments(part, *how, n_steps, *state))

    greedy = accelerate and restart
    memory = np.full((len(problem), 2), np.inf if greedy else 1.0, problem.dtype)
    memory[:, 0] = (_GREEDY if greedy else 1.0) / _lipschitz(problem)
    z = problem.start(problem.dtype)
    return _iterate(solver, problem, problem.dtype, monitor, advance, z, memory)


def _arguments(part: Problem, *rest: Any) -> tuple[Any, ...]:
    """What the kernels want to know of a problem, laid out for the dictionary's bands."""
    dictionary = part.dictionary
    bands = [band.astype(part.y.dtype) for band in (*dictionary.bands, dictionary.across)]
    shape = (-1, *(band.n for band in dictionary.bands))
    images = [array.reshape(shape) for array in (part.y, part.weights, part.censored)]
    return (*bands, *images, part.lam, _lipschitz(part).astype(part.y.dtype), *rest)


def _maps(part: Problem, x: FloatArray) -> FloatArray:
    """Maps laid out for the dictionary's bands."""
    return x.reshape(-1, *(len(band.first) for band in part.dictionary.bands))


def _lipschitz(problem: Problem) -> FloatArray:
    """``L`` of each image; 1 where no pixel has a weight and any step will do."""
    return np.where(problem.lipschitz > 0, problem.lipschitz, 1.0)


def _iterate(
    solver: L1Solver,
    problem: Problem,
    dtype: np.dtype[Any],
    monitor: Monitor,
    advance: Callable[..., None],
    *state: FloatArray,
) -> SolveResult:
    """Step all images that are not done, and look at their gaps every few iterations.

    `advance` changes ``x`` and what else a method keeps of each image (`state`) in place.
    """
    # Steps are taken in the precision `dtype`, gaps in double.
    rounded = problem.astype(dtype)
    x = problem.start(dtype)
    tol = np.maximum(solver.tol, problem.resolution(dtype))
    n_iter = np.zeros(len(problem), np.int64)
    objective, gap = problem.evaluate(x)
    done, stopped = 0, monitor.report(0, objective, gap)
    todo = np.flatnonzero(gap > tol)
    while todo.size and done < solver.max_iter and not stopped:
        n_steps = min(max(_CHECK_EVERY, int(_CHECK_SHARE * done)), solver.max_iter - done)
        some = todo if todo.size < len(problem) else slice(None)  # all of them without a copy
        parts = [array[some] for array in (x, *state)]
        advance(rounded.take(some), n_steps, *parts)
        for array, part in zip((x, *state), parts, strict=True):
            array[some] = part
        done += n_steps
        n_iter[some] = done
        objective[some], gap[some] = problem.take(some).evaluate(parts[0])
        todo = todo[gap[todo] > tol[todo]]
        stopped = monitor.report(done, objective, gap)
    return problem.result(
        x,
        n_iter=n_iter,
        converged=gap <= tol,
        objective=objective,
        gap=gap,
        history=monitor.history,
    )
