"""Greedy pursuits: matching pursuit and orthogonal matching pursuit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from csunmix._validation import FloatArray, IntArray, as_bool, as_integer, as_number, as_range
from csunmix.solvers.base import Callback, Monitor, Problem, SolveResult

if TYPE_CHECKING:
    from csunmix._kernels.pursuit import Picks
    from csunmix.dictionary import Dictionary

Selection = Literal["correlation", "residual"]


@dataclass(frozen=True, kw_only=True)
class _Pursuit(ABC):
    """Parameters and front door that the pursuits have in common.

    A pursuit has no optimum to miss: an image has converged unless a callback stopped it while
    steps were left to do. Whether it fits is told by ``residual_norm``.
    """

    n_nonzero: int = 5
    residual_tol: float = 0.0
    positive: bool = True

    def __post_init__(self) -> None:
        as_integer(self.n_nonzero, "n_nonzero", minimum=1)
        as_number(self.residual_tol, "residual_tol", minimum=0.0)
        as_bool(self.positive, "positive")

    def solve(
        self,
        dictionary: Dictionary,
        images: npt.ArrayLike,
        *,
        weights: npt.ArrayLike | None = None,
        censored: npt.ArrayLike | None = None,
        x0: npt.ArrayLike | None = None,
        callback: Callback | None = None,
    ) -> SolveResult:
        """Solve for a batch of images, see `csunmix.solvers.base.Solver.solve`."""
        problem = Problem.make(
            dictionary, images, positive=self.positive, weights=weights, censored=censored, x0=x0
        )
        # A greedy step knows no bounds: censored pixels are ignored.
        if problem.censored.any():
            problem = replace(
                problem,
                weights=np.where(problem.censored, 0.0, problem.weights),
                censored=np.zeros_like(problem.censored),
            )
        return self._run(problem, dictionary.grid.factor, Monitor(callback))

    @abstractmethod
    def _run(self, problem: Problem, factor: int, monitor: Monitor) -> SolveResult:
        """Solve a problem that has been checked, on a grid of `factor` cells per pixel."""


@dataclass(frozen=True, kw_only=True)
class MatchingPursuit(_Pursuit):
    r"""Matching pursuit: one atom at a time, its coefficient added to what it has.

    Each step takes the atom of the largest normalised correlation with the residual,

    .. math:: j = \arg\max_j \frac{a_j^T w r}{\|a_j\|_w}, \qquad
              x_j \leftarrow x_j + \frac{a_j^T w r}{\|a_j\|_w^2}

    (Mallat & Zhang 1993, IEEE Trans. Signal Process. 41, 3397). Atoms are normalised internally,
    whatever the dictionary. Censored pixels are ignored. An image has converged unless a callback
    stopped it.

    Parameters
    ----------
    n_nonzero : int
        Most distinct atoms; later steps go on refining those.
    residual_tol : float
        Stop when ``sqrt(sum w r^2)`` is at most this, DN.
    max_iter : int
        Most steps.
    positive : bool
        Take only atoms of positive correlation.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range; the message names it.
    """

    max_iter: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        as_integer(self.max_iter, "max_iter", minimum=1)

    def _run(self, problem: Problem, factor: int, monitor: Monitor) -> SolveResult:
        from csunmix._kernels.pursuit import matching_pursuit
        from csunmix._kernels.selection import Rules

        rules = Rules(
            low=0.0 if self.positive else -np.inf,
            high=np.inf,
            width=problem.map_shape[1],
            exclusion=0.0,
            reach=0.0,
            refitted=False,
        )

        energies = _energies(problem)

        def pursue(picks: Picks, n_iter: IntArray, energy: FloatArray, limit: int) -> None:
            matching_pursuit(
                problem.a_y,
                problem.a_x,
                problem.y,
                problem.weights,
                energies,
                self.n_nonzero,
                float(self.residual_tol),
                limit,
                rules,
                picks,
                n_iter,
                energy,
            )

        return _greedy(self, problem, pursue, self.max_iter, monitor)


@dataclass(frozen=True, kw_only=True)
class OMP(_Pursuit):
    r"""Orthogonal matching pursuit, with what makes it work on a coherent dictionary.

    Each step takes the atom of the largest normalised correlation with the residual and refits all
    chosen atoms by least squares (Pati, Rezaiifar & Krishnaprasad 1993, Asilomar 27, 40). Atoms
    are normalised internally, whatever the dictionary. Censored pixels are ignored. An image has
    converged unless a callback stopped it.

    A sub-pixel dictionary is coherent: the best single atom lies *between* two targets, and plain
    OMP never leaves it. ``locally_optimised`` moves, after each step, every atom in turn to the
    cell nearby that leaves the least residual, refits, and goes on until none moves; band exclusion
    keeps atoms away from each other (Fannjiang & Liao 2012, SIAM J. Imaging Sci. 5, 179,
    algorithms 2-4; the bands are given here in px rather than by coherence). Where no atom
    moves alone, pairs are moved together by up to one cell each, which the paper does not do and
    atoms as close as these need.

    Parameters
    ----------
    n_nonzero : int
        Most atoms.
    residual_tol : float
        Stop when ``sqrt(sum w r^2)`` is at most this, DN.
    selection : {"correlation", "residual"}
        Which atom a step takes: the one of the largest normalised correlation, or the one that
        leaves the least residual once all chosen atoms are refitted, which is orthogonal least
        squares (Chen, Billings & Luo 1989, Int. J. Control 50, 1873).
    bounds : tuple of float, optional
        Smallest and largest coefficient, such as the flux range of the prior; an atom that does
        not lower the residual within them is not taken, which settles the count.
    locally_optimised : bool
        Move the chosen atoms after each step.
    search_radius : float
        How far an atom may move at once, px.
    exclusion_radius : float
        Smallest distance between two atoms, px; keep it below the targets' separation.
    positive : bool
        Take only atoms of positive correlation, and drop atoms that the fit turns negative. The
        pursuit ends with a step that leaves no more atoms than there were.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range; the message names it.
    """

    selection: Selection = "correlation"
    bounds: tuple[float, float] | None = None
    locally_optimised: bool = False
    search_radius: float = 0.5
    exclusion_radius: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selection not in ("correlation", "residual"):
            raise ValueError(
                f"selection must be 'correlation' or 'residual', got {self.selection!r}"
            )
        if self.bounds is not None:
            as_range(self.bounds, "bounds", minimum=0.0)
            if not self.positive:
                raise ValueError("bounds need positive=True")
        as_bool(self.locally_optimised, "locally_optimised")
        as_number(self.search_radius, "search_radius", above=0.0)
        as_number(self.exclusion_radius, "exclusion_radius", minimum=0.0)

    def _run(self, problem: Problem, factor: int, monitor: Monitor) -> SolveResult:
        from csunmix._kernels.pursuit import orthogonal_matching_pursuit
        from csunmix._kernels.selection import Rules

        low, high = self.bounds or (0.0 if self.positive else -np.inf, np.inf)
        cells = float(factor)
        rules = Rules(
            low=float(low),
            high=float(high),
            width=problem.map_shape[1],
            # Cells at exactly these distances are allowed, whatever rounding makes of the product.
            exclusion=self.exclusion_radius * cells * (1.0 - 1e-9),
            reach=self.search_radius * cells * (1.0 + 1e-9) if self.locally_optimised else 0.0,
            refitted=self.selection == "residual",
        )

        energies = _energies(problem)

        def pursue(picks: Picks, n_iter: IntArray, energy: FloatArray, limit: int) -> None:
            orthogonal_matching_pursuit(
                problem.a_y,
                problem.a_x,
                problem.y,
                problem.weights,
                energies,
                self.n_nonzero,
                float(self.residual_tol),
                rules,
                picks,
                n_iter,
                energy,
            )

        return _greedy(self, problem, pursue, self.n_nonzero, monitor)


def _energies(problem: Problem) -> FloatArray:
    """Squared norms of the weighted atoms, shape (b, k l), or (1, k l) where all are alike."""
    weights = problem.weights
    if weights.min() == weights.max() or (weights == weights[:1]).all():
        weights = weights[:1]
    energies = (np.square(problem.a_y).T @ weights) @ np.square(problem.a_x)
    return np.asarray(energies.reshape(len(weights), -1))


def _greedy(
    solver: _Pursuit,
    problem: Problem,
    pursue: Callable[[Picks, IntArray, FloatArray, int], None],
    max_steps: int,
    monitor: Monitor,
) -> SolveResult:
    """Run a pursuit from the start to `max_steps` steps, or to 1, 2, ... where somebody watches."""
    n, shape = len(problem), problem.batch_shape
    n_iter, energy, no_gap = np.zeros(n, np.int64), np.empty(n), np.full(n, np.nan)
    stopped = False
    for limit in range(1 if monitor.watched else max_steps, max_steps + 1):
        before, n_iter[:] = n_iter.sum(), 0
        picks = _first_picks(problem, limit, solver.n_nonzero)
        pursue(picks, n_iter, energy, limit)
        stopped = monitor.report(limit, 0.5 * energy, no_gap)
        if stopped or n_iter.sum() == before:
            break
    ended = (n_iter < limit) | (np.sqrt(energy) <= solver.residual_tol)
    converged = ended | (not stopped or limit == max_steps)
    return SolveResult(
        coefficients=problem.sparse(_gather(picks, math.prod(problem.map_shape))),
        n_iter=n_iter.reshape(shape),
        converged=converged.reshape(shape),
        gap=no_gap.reshape(shape),
        objective=0.5 * energy.reshape(shape),
        residual_norm=np.sqrt(energy).reshape(shape),
        history=tuple(monitor.history),
    )


def _first_picks(problem: Problem, limit: int, n_nonzero: int) -> Picks:
    """The atoms of the start, with room for those of `limit` steps."""
    from csunmix._kernels.pursuit import Picks

    n = len(problem)
    start = np.zeros((n, 0)) if problem.x0 is None else problem.x0.reshape(n, -1)
    image, atom = np.nonzero(start)
    number = np.bincount(image, minlength=n)
    n_start = int(number.max(initial=0))
    # The start is kept whole.
    room = max(n_start, min(n_nonzero, n_start + limit, math.prod(problem.map_shape)))
    picks = Picks(number, np.zeros((n, room), np.int64), np.zeros((n, room)))
    place = np.arange(room) < number[:, None]
    picks.atoms[place], picks.x[place] = atom, start[image, atom]
    return picks


def _gather(picks: Picks, n_atoms: int) -> csr_array:
    """Coefficients of the picked atoms, (b, k l)."""
    taken = np.arange(picks.atoms.shape[1]) < picks.number[:, None]
    first = np.concatenate([[0], np.cumsum(picks.number)])
    return csr_array((picks.x[taken], picks.atoms[taken], first), shape=(len(taken), n_atoms))
