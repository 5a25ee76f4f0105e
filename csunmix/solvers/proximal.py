"""Proximal gradient methods: ISTA and FISTA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from csunmix.solvers.base import L1Solver, Monitor, Problem, SolveResult

_CHECK_EVERY = 10  # iterations between two looks at the gap


@dataclass(frozen=True, kw_only=True)
class ISTA(L1Solver):
    r"""Iterative shrinkage-thresholding for the (non-negative) l1 problem.

    Minimises ``1/2 sum w r^2 + lam ||x||_1`` by

    .. math:: x \leftarrow \operatorname{prox}_{\lambda/L}\big(x + A^T(w r)/L\big), \qquad
              L = \|A\|^2 \max w

    (Daubechies, Defrise & De Mol 2004, CPAM 57, 1413; Beck & Teboulle 2009, SIAM J. Imaging Sci.
    2, 183, eq. 3.1). The objective never rises. Float32 images are solved in float32, where the gap
    is told no better than to ``16 eps max_j |a_j^T w y| / lam``: `tol` is at least that.

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

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range; the message names it.
    """

    def _run(self, problem: Problem, monitor: Monitor) -> SolveResult:
        return _proximal_gradient(problem, monitor, self, accelerate=False, restart=False)


@dataclass(frozen=True, kw_only=True)
class FISTA(L1Solver):
    r"""Accelerated proximal gradient with adaptive restart, for the same problem as `ISTA`.

    The gradient step starts from ``z = x + (t_k - 1)/t_{k+1} (x - x_old)`` (Beck & Teboulle 2009,
    SIAM J. Imaging Sci. 2, 183, eq. 4.1-4.3); the momentum of an image restarts when
    ``<z - x_new, x_new - x> > 0`` (O'Donoghue & Candes 2015, Found. Comput. Math. 15, 715).

    Parameters
    ----------
    lam, positive, max_iter, tol
        As for `ISTA`.
    restart : bool
        Restart the momentum when it points uphill.
    """

    restart: bool = True

    def _run(self, problem: Problem, monitor: Monitor) -> SolveResult:
        return _proximal_gradient(problem, monitor, self, accelerate=True, restart=self.restart)


def _proximal_gradient(
    problem: Problem, monitor: Monitor, solver: L1Solver, *, accelerate: bool, restart: bool
) -> SolveResult:
    """Step all images that are not done, and look at their gaps every few iterations."""
    from csunmix._kernels.proximal import proximal_steps

    # Steps are taken in the images' precision, gaps in double.
    a_y, a_x, y, weights = (
        array.astype(problem.dtype, copy=False)
        for array in (problem.a_y, problem.a_x, problem.y, problem.weights)
    )
    x = problem.start.astype(problem.dtype)
    lipschitz = problem.lipschitz
    step = (1.0 / np.where(lipschitz > 0, lipschitz, 1.0)).astype(problem.dtype)
    shrink = (problem.lam * step).astype(problem.dtype)
    z, t = x.copy(), np.ones(len(problem), problem.dtype)
    tol = np.maximum(solver.tol, problem.resolution)
    n_iter = np.zeros(len(problem), np.int64)
    objective, gap = problem.evaluate(x)
    done, stopped = 0, monitor.report(0, objective, gap)
    todo = np.flatnonzero(gap > tol)
    while todo.size and done < solver.max_iter and not stopped:
        n_steps = min(_CHECK_EVERY, solver.max_iter - done)
        x_part, z_part, t_part = x[todo], z[todo], t[todo]
        proximal_steps(
            a_y,
            a_x,
            y[todo],
            weights[todo],
            problem.censored[todo],
            step[todo],
            shrink[todo],
            problem.positive,
            accelerate,
            restart,
            n_steps,
            x_part,
            z_part,
            t_part,
        )
        x[todo], z[todo], t[todo] = x_part, z_part, t_part
        done += n_steps
        n_iter[todo] = done
        objective[todo], gap[todo] = problem.take(todo).evaluate(x_part)
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
