"""The slow oracle: the l1 problem as a convex program."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from csunmix._validation import FloatArray
from csunmix.solvers.base import L1Solver, Monitor, Problem, SolveResult


@dataclass(frozen=True, kw_only=True)
class CvxpyLasso(L1Solver):
    """The l1 problem handed to CVXPY and its interior-point solver Clarabel, image by image.

    Minimises ``1/2 sum w r^2 + lam ||x||_1`` on the dense matrix (Diamond & Boyd 2016,
    JMLR 17(83)). Slow, independent of everything else here, and meant for checking the other
    solvers. A start `x0` is not used. The gap is taken from ``x`` alone and is larger than the
    one that Clarabel stops at: an image has converged where it is at most ``max(1000 tol, 1e-6)``.

    Parameters
    ----------
    lam : float or "auto"
        Weight of the l1 norm, DN; "auto" takes it from the images' noise, see
        `csunmix.solvers.base.universal_lam`.
    positive : bool
        Require ``x >= 0``.
    max_iter : int
        Most interior-point iterations.
    tol : float
        Relative duality gap asked of Clarabel.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range; the message names it.
    """

    max_iter: int = 200
    tol: float = 1e-9

    def _run(self, problem: Problem, monitor: Monitor) -> SolveResult:
        dense = np.kron(problem.a_y, problem.a_x)
        x = np.zeros((len(problem), *problem.cells))
        n_iter = np.zeros(len(problem), np.int64)
        for b in range(len(problem)):
            x[b], n_iter[b] = self._solve_one(dense, problem.take(slice(b, b + 1)))
            if monitor.watched and monitor.report(b + 1, *problem.evaluate(x)):
                break
        objective, gap = problem.evaluate(x)
        if not monitor.watched:
            monitor.report(len(problem), objective, gap)
        return problem.result(
            x,
            n_iter=n_iter,
            converged=gap <= max(1e3 * self.tol, 1e-6),
            objective=objective,
            gap=gap,
            history=monitor.history,
        )

    def _solve_one(self, dense: FloatArray, problem: Problem) -> tuple[FloatArray, int]:
        import cvxpy

        cp: Any = cvxpy  # its functions carry no types
        # Images in units of their largest value keep Clarabel's tolerances meaningful.
        scale = float(np.abs(problem.y).max()) or 1.0
        y, root = problem.y.ravel() / scale, np.sqrt(problem.weights.ravel())
        bounded = problem.censored.ravel()
        x = cp.Variable(dense.shape[1], nonneg=self.positive)
        r = cp.multiply(root, y - dense @ x)
        terms = [float(problem.lam[0]) / scale * cp.norm1(x)]
        if not bounded.all():
            terms.append(0.5 * cp.sum_squares(r[~bounded]))
        if bounded.any():
            terms.append(0.5 * cp.sum_squares(cp.pos(r[bounded])))
        program = cp.Problem(cp.Minimize(cp.sum(cp.hstack(terms))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of inaccuracy: the gap tells
            program.solve(
                solver=cp.CLARABEL,
                tol_gap_rel=self.tol,
                tol_gap_abs=self.tol * 1e-3,
                tol_feas=self.tol,
                max_iter=self.max_iter,
            )
        value = np.asarray(x.value, dtype=np.float64).reshape(problem.cells)
        value[np.abs(value) < self.tol] = 0.0  # which an interior point never quite reaches
        if self.positive:
            value = np.maximum(value, 0.0)
        return value * scale, int(program.solver_stats.num_iters)
