"""The exact solution of the non-negative l1 problem."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from csunmix._validation import FloatArray, IntArray
from csunmix.solvers.base import L1Solver, Monitor, Problem, SolveResult

_LEAST_PRICE = 1e-6  # of the first stage, relative to the largest correlation


@dataclass(frozen=True, kw_only=True)
class ActiveSet(L1Solver):
    r"""Exact non-negative l1 by an active-set method (compiled).

    Minimises ``1/2 sum w r^2 + lam sum x`` over ``x >= 0``. The atom with the largest correlation
    ``a_j^T (w r) > lam`` enters, the chosen atoms are refitted by the Cholesky factor of their Gram
    matrix, and atoms that reach 0 on the way leave, the factor following by a row or by Givens
    rotations: the method of Lawson & Hanson (1974, Solving Least Squares Problems, ch. 23-24) with
    a linear term. It ends after finitely many steps at the optimum, to within rounding. A censored
    pixel is an unknown more, ``s >= 0`` without a cost, by which the fit may exceed what was
    recorded: ``r = y + s - A x``. At a small `lam` such images are solved by stages of falling
    weights: from the start, bright atoms in a saturated area would be made brighter by powers of
    ten, for the sake of their tails. Where ``max |A x|`` is beyond a million times the image, as
    can happen at ``lam = 0``, rounding may stop the method short of its certificate; what it then
    returns is the best it had, with ``converged`` False.

    Parameters
    ----------
    lam : float or "auto"
        Weight of the l1 norm, DN; "auto" takes it from the images' noise, see
        `csunmix.solvers.base.universal_lam`.
    positive : bool
        Must be True.
    max_iter : int
        Most atoms that enter, and censored pixels that the fit comes to exceed.
    tol : float
        Relative duality gap at which an image is done.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range, or ``positive=False``.
    """

    tol: float = 1e-9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.positive:
            raise ValueError("ActiveSet solves x >= 0 only; use FISTA for positive=False")

    def _run(self, problem: Problem, monitor: Monitor) -> SolveResult:
        n, shape = len(problem), problem.batch_shape
        n_iter, optimal = np.zeros(n, np.int64), np.zeros(n, bool)
        price, found, done, stopped = _first_price(problem), _first_coefficients(problem), 0, False
        told = np.empty((3, n))
        objective, gap, residual_norm = told
        # One atom at a time where somebody watches, else all the way.
        stride = 1 if monitor.watched else self.max_iter
        if monitor.watched:
            told[:] = _judged(problem, problem.start())
            stopped = monitor.report(0, objective, gap)
        while done < self.max_iter and not stopped and not optimal.all():
            found = self._advance(problem, stride, price, found, n_iter, optimal, *told)
            done += stride
            rest = np.flatnonzero(~optimal)
            x = found[rest].toarray().reshape(-1, *problem.cells)
            told[:, rest] = _judged(problem.take(rest), x)
            stopped = monitor.report(done, objective, gap)
        return SolveResult(
            coefficients=problem.sparse(found),
            n_iter=n_iter.reshape(shape),
            converged=optimal.reshape(shape),
            gap=gap.reshape(shape),
            objective=objective.reshape(shape),
            residual_norm=residual_norm.reshape(shape),
            history=tuple(monitor.history),
        )

    def _advance(
        self,
        problem: Problem,
        n_steps: int,
        price: FloatArray,
        start: csr_array,
        n_iter: IntArray,
        *told: Any,
    ) -> csr_array:
        """Coefficients (b, k l) of at most `n_steps` more; `told` is what the kernel writes to."""
        from csunmix._kernels.active_set import Coefficients, active_set

        answer = active_set(
            problem.a_y,
            problem.a_x,
            problem.y,
            problem.weights,
            problem.censored,
            problem.lam,
            n_steps,
            float(self.tol),
            price,
            Coefficients(start.indptr.astype(np.int64), start.indices.astype(np.int64), start.data),
            n_iter,
            *told,
        )
        n = answer.first[-1]
        found = answer.x[:n].copy(), answer.atoms[:n].copy(), answer.first  # without room for more
        return csr_array(found, shape=start.shape)


def _judged(problem: Problem, x: FloatArray) -> FloatArray:
    """Objective, relative gap and norm of the residual, (3, b)."""
    r = problem.residual(x)
    nu = problem.weights * r
    certificate = problem.certify(r, problem.adjoint(nu), problem.penalty(x))
    return np.stack([*certificate, np.sqrt((nu * r).sum(axis=(1, 2)))])


def _first_coefficients(problem: Problem) -> csr_array:
    """Coefficients to start from, (b, k l)."""
    shape = len(problem), math.prod(problem.cells)
    return csr_array(shape) if problem.x0 is None else csr_array(problem.x0.reshape(shape))


def _first_price(problem: Problem) -> FloatArray:
    """Weight of the l1 norm to start with, shape (b,): `lam` where no pixel is censored.

    An atom whose bright pixels are censored may reach any other pixel by its tail, with a
    coefficient of up to about ``y^2 / lam``. Starting at ``y / lam = 10^6`` leaves ten digits.
    """
    price = problem.lam.copy()
    # By Cauchy and Schwarz no correlation is larger, and most need not be looked at.
    light = np.sqrt(((problem.weights * problem.y) ** 2).sum(axis=(1, 2)))
    small = problem.lam < _LEAST_PRICE * problem.dictionary.largest_norm * light
    bounded = np.flatnonzero(problem.censored.any(axis=(1, 2)) & small)
    part = problem.take(bounded)
    largest = part.adjoint(part.weights * part.y).max(axis=(1, 2))
    price[bounded] = np.maximum(part.lam, _LEAST_PRICE * largest)
    return price
