"""The slow oracle: the l1 problem as a convex program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from csunmix._validation import FloatArray
from csunmix.solvers.base import L1Solver, Monitor, Problem, SolveResult


@dataclass(frozen=True, kw_only=True)
class CvxpyLasso(L1Solver):
    """The l1 problem handed to CVXPY and its interior-point solver Clarabel, image by image.

    Minimises ``1/2 sum w r^2 + lam ||x||_1`` on the dense matrix (Diamond & Boyd 2016,
    JMLR 17(83)). Slow, independent of everything else here, and meant for checking the other solvers.
    A start `x0` is not used.

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
        double = problem.as_double()
        dense = np.kron(double.a_y, double.a_x)
        x = np.zeros((len(problem), double.a_y.shape[1], double.a_x.shape[1]))
        n_iter = np.zeros(len(problem), np.int64)
        for b in range(len(problem)):
            one = double.take(slice(b, b + 1))
            x[b], n_iter[b] = self._solve_one(dense, one, x[b].shape)
            stopped = monitor.report(b + 1, *double.evaluate(x)) if monitor.watched else False
            if stopped:
                break
        objective, gap = double.evaluate(x)
        if not monitor.watched:
            monitor.report(len(problem), objective, gap)
        # Clarabel stops at its own gap; ours is taken from x alone and is a little larger.
        return problem.result(
            x.astype(problem.y.dtype),
            n_iter=n_iter,
            converged=gap <= max(1e3 * self.tol, 1e-6),
            objective=objective,
            gap=gap,
            history=monitor.history,
        )

    def _solve_one(
        self, dense: FloatArray, problem: Problem, shape: tuple[int, ...]
    ) -> tuple[FloatArray, int]:
        import cvxpy

        # Images in units of their largest value keep Clarabel's tolerances meaningful.
        scale = max(float(np.abs(problem.y).max()), 1e-300)
        y, weights = problem.y.ravel() / scale, problem.weights.ravel()
        x: Any = cvxpy.Variable(dense.shape[1], nonneg=self.positive)
        bounded = problem.censored.ravel()
        root = np.sqrt(weights)
        r = cvxpy.multiply(root, y - dense @ x)
        terms = [0.5 * cvxpy.sum_squares(r[~bounded])]
        if bounded.any():
            terms.append(0.5 * cvxpy.sum_squares(cvxpy.pos(r[bounded])))
        terms.append(float(problem.lam[0]) / scale * cvxpy.norm1(x))
        program = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(cvxpy.hstack(terms))))
        program.solve(
            solver=cvxpy.CLARABEL,
            tol_gap_rel=self.tol,
            tol_gap_abs=self.tol * 1e-3,
            tol_feas=self.tol,
            max_iter=self.max_iter,
        )
        value = np.asarray(x.value, dtype=np.float64).reshape(shape) * scale
        if self.positive:
            value = np.maximum(value, 0.0)
        return value, int(program.solver_stats.num_iters)
