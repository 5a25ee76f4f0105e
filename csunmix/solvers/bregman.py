"""Split Bregman: l1, with wavelet and total-variation terms if asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.fft import dctn, idctn

from csunmix._validation import FloatArray, as_integer, as_number
from csunmix.solvers.base import L1Solver, Monitor, Problem, SolveResult

_CHECK_EVERY = 10  # iterations between two looks at the gap
_RELAXATION = 1.8  # over-relaxation, Boyd et al. 2011, section 3.4.3


@dataclass(frozen=True, kw_only=True)
class SplitBregman(L1Solver):
    r"""Split Bregman (ADMM) for l1 with optional wavelet and total-variation terms.

    Minimises

    .. math:: \tfrac12 \sum_p w_p r_p^2 + \lambda\|x\|_1 + \lambda_w\|\Psi x\|_1
              + \lambda_{tv} (\|D_y x\|_1 + \|D_x x\|_1), \qquad x \ge 0,

    with ``Psi`` the detail coefficients of an orthogonal wavelet transform of the map and ``D`` its
    first differences (Goldstein & Osher 2009, SIAM J. Imaging Sci. 2, 323; for closely spaced
    infrared targets Zuo 2020, Telecommunication Engineering). Each term has a copy of its own of
    what it acts on; the quadratic steps are solved exactly, by the eigenvectors of the
    factors of ``A A^T`` and by a cosine transform. The gap is that of the whole objective, its dual
    point built from the residual and the multipliers of the wavelet and difference terms.

    Parameters
    ----------
    lam : float or "auto"
        Weight of the l1 norm, DN; "auto" takes it from the images' noise, see
        `csunmix.solvers.base.universal_lam`. Must be above 0.
    positive : bool
        Require ``x >= 0``.
    max_iter : int
        Most iterations.
    tol : float
        Relative duality gap at which an image is done.
    lam_wavelet, lam_tv : float
        Weights of the wavelet and total-variation terms, DN; 0 leaves the term out.
    wavelet : str
        An orthogonal wavelet of PyWavelets.
    level : int
        Levels of the wavelet transform; maps too small for them are refused when solving.
    penalty : float, optional
        Weight of the copies in the augmented Lagrangian, a pure number: it changes the speed, not
        the answer. By default 0.01, and 0.1 with a wavelet or total-variation term: the values of
        0.003, 0.01, ..., 0.3 that take the fewest iterations on simulated clusters.

    Raises
    ------
    TypeError, ValueError
        If a parameter is of the wrong type or out of range; the message names it.
    """

    max_iter: int = 20_000
    lam_wavelet: float = 0.0
    lam_tv: float = 0.0
    wavelet: str = "haar"
    level: int = 2
    penalty: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam == 0:
            raise ValueError("lam must be above 0 for SplitBregman, got 0")
        as_number(self.lam_wavelet, "lam_wavelet", minimum=0.0)
        as_number(self.lam_tv, "lam_tv", minimum=0.0)
        as_integer(self.level, "level", minimum=1)
        if self.penalty is not None:
            as_number(self.penalty, "penalty", above=0.0)
        _check_wavelet(self.wavelet)

    @property
    def _rho(self) -> float:
        """The penalty, chosen where it is not given."""
        if self.penalty is not None:
            return self.penalty
        return 0.1 if self.lam_wavelet or self.lam_tv else 0.01

    def _run(self, problem: Problem, monitor: Monitor) -> SolveResult:
        state = _State.start(problem, self)
        n_iter = np.zeros(len(problem), np.int64)
        x = state.z.copy()
        objective, gap = state.evaluate()
        todo = np.flatnonzero(gap > self.tol)
        stopped = monitor.report(0, objective, gap)
        done = 0
        state = state.take(gap > self.tol)
        while todo.size and done < self.max_iter and not stopped:
            n_steps = min(_CHECK_EVERY, self.max_iter - done)
            for _ in range(n_steps):
                state.step()
            done += n_steps
            n_iter[todo], x[todo] = done, state.z
            objective[todo], gap[todo] = state.evaluate()
            going = gap[todo] > self.tol
            if not going.all():
                todo, state = todo[going], state.take(going)
            stopped = monitor.report(done, objective, gap)
        return problem.result(
            x,
            n_iter=n_iter,
            converged=gap <= self.tol,
            objective=objective,
            gap=gap,
            history=monitor.history,
        )


@dataclass
class _State:
    """Copies and scaled multipliers of a batch: what changes from step to step."""

    problem: Problem
    solver: SplitBregman
    normal: _Normal
    wavelet: _WaveletTerm | None
    z: FloatArray  # copy of x, for the l1 norm and the sign
    b_z: FloatArray
    u: FloatArray  # copy of A x, for the data
    b_u: FloatArray
    v: FloatArray  # copy of Psi x
    b_v: FloatArray
    s: FloatArray  # copy of x, for the differences
    b_s: FloatArray
    d: FloatArray  # copy of D s
    b_d: FloatArray

    @classmethod
    def start(cls, problem: Problem, solver: SplitBregman) -> _State:
        """State at the caller's start, or at zero."""
        x = problem.start()
        maps = x.reshape(-1, *problem.map_shape)
        u = problem.forward(x)
        copies = {"z": x, "u": u, "v": maps[:, :0], "s": maps[:, :0], "d": maps[:, None, :0]}
        wavelet = None
        if solver.lam_wavelet:
            wavelet = _WaveletTerm(solver.wavelet, solver.level, problem.map_shape)
            copies["v"] = wavelet.forward(maps)
        if solver.lam_tv:
            copies["s"], copies["d"] = maps.copy(), _differences(maps)
        multipliers = {f"b_{name}": np.zeros_like(copy) for name, copy in copies.items()}
        return cls(
            problem=problem,
            solver=solver,
            normal=_Normal(problem),
            wavelet=wavelet,
            **copies,
            **multipliers,
        )

    def take(self, keep: Any) -> _State:
        """The state of some of the images."""
        arrays = {k: a[keep] for k, a in vars(self).items() if isinstance(a, np.ndarray)}
        return replace(self, problem=self.problem.take(np.flatnonzero(keep)), **arrays)

    def step(self) -> None:
        """One round: the quadratic problem in x, then every copy and its multiplier."""
        problem, solver, rho = self.problem, self.solver, self.solver._rho
        shape = self.z.shape
        v, n_copies = self.z - self.b_z, 1
        if self.wavelet is not None:
            v += self.wavelet.adjoint(self.v - self.b_v).reshape(shape)
            n_copies += 1
        if solver.lam_tv:
            v += (self.s - self.b_s).reshape(shape)
            n_copies += 1
        x, fit = self.normal.solve(rho * n_copies, self.u - self.b_u, v / n_copies)
        if solver.lam_tv:
            self._step_differences(x.reshape(self.s.shape))
        if self.wavelet is not None:
            h = self.wavelet.forward(x.reshape(-1, *problem.map_shape))
            h = _relax(h, self.v) + self.b_v
            self.v = _shrink(h, solver.lam_wavelet * self.wavelet.details / rho)
            self.b_v = h - self.v
        h = _relax(fit, self.u) + self.b_u
        pulled = (problem.weights * problem.y + h) / (1.0 + problem.weights)
        self.u = np.where(problem.censored & (h >= problem.y), h, pulled)
        self.b_u = h - self.u
        h = _relax(x, self.z) + self.b_z
        threshold = problem.lam[:, None, None] / rho
        self.z = np.maximum(h - threshold, 0.0) if problem.positive else _shrink(h, threshold)
        self.b_z = h - self.z

    def _step_differences(self, x: FloatArray) -> None:
        before = _differences(self.s)
        self.d = _shrink(before + self.b_d, self.solver.lam_tv / self.solver._rho)
        d = _relax(self.d, before)
        h = _relax(x, self.s) + self.b_s
        self.s = _solve_smooth(h + _differences_adjoint(d - self.b_d))
        self.b_s = h - self.s
        self.b_d = self.b_d + _differences(self.s) - d

    def evaluate(self) -> tuple[FloatArray, FloatArray]:
        """Objective of the whole problem at ``z``, and its relative gap."""
        problem, solver, z = self.problem, self.solver, self.z
        maps = z.reshape(-1, *problem.map_shape)
        r = problem.residual(z)
        correlation, penalty = problem.adjoint(problem.weights * r), problem.penalty(z)
        if self.wavelet is not None:
            multiplier = self.wavelet.adjoint(solver._rho * self.b_v)
            correlation = correlation - multiplier.reshape(z.shape)
            size = np.abs(self.wavelet.forward(maps)) * self.wavelet.details
            penalty = penalty + solver.lam_wavelet * size.sum(axis=(1, 2))
        if solver.lam_tv:
            limit = solver.lam_tv
            multiplier = np.clip(solver._rho * self.b_d, -limit, limit)
            correlation = correlation - _differences_adjoint(multiplier).reshape(z.shape)
            penalty = penalty + limit * np.abs(_differences(maps)).sum(axis=(1, 2, 3))
        alone = self.wavelet is None and not solver.lam_tv
        return problem.certify(r, correlation, penalty, np.inf if alone else 1.0)


def _relax(new: FloatArray, old: FloatArray) -> FloatArray:
    return _RELAXATION * new + (1.0 - _RELAXATION) * old


def _shrink(a: FloatArray, threshold: Any) -> FloatArray:
    return np.asarray(np.sign(a) * np.maximum(np.abs(a) - threshold, 0.0))


class _Normal:
    """Minimises ``|u - A x|^2 + c |x - v|^2`` by the eigenvectors of the factors of ``A A^T``.

    With ``(A A^T + c I) s = u - A v``, a system as large as an image, ``x = v + A^T s`` and
    ``A x = u - c s``.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        a_y, a_x = problem.dictionary.factors
        values_y, self._vectors_y = np.linalg.eigh(a_y @ a_y.T)
        values_x, self._vectors_x = np.linalg.eigh(a_x @ a_x.T)
        self._eigenvalues = np.outer(values_y, values_x)

    def solve(self, c: float, u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """``x`` and ``A x`` for a batch of images ``u`` (b, p, q) and of maps ``v`` (b, k, l)."""
        e_y, e_x = self._vectors_y, self._vectors_x
        inside = (e_y.T @ (u - self._problem.forward(v)) @ e_x) / (self._eigenvalues + c)
        s = e_y @ inside @ e_x.T
        return v + self._problem.adjoint(s), u - c * s


class _WaveletTerm:
    """``Psi``: an orthogonal wavelet transform of zero-padded maps, as one array per map."""

    def __init__(self, wavelet: str, level: int, map_shape: tuple[int, int]) -> None:
        import pywt

        self._wavelet, self._level, self._map_shape = wavelet, level, map_shape
        block = 2**level
        self._pad = tuple((0, -n % block) for n in map_shape)
        highest = pywt.dwt_max_level(min(map_shape), wavelet)
        if level > highest:
            raise ValueError(
                f"level must be at most {highest} for wavelet {wavelet!r} and maps of shape "
                f"{map_shape}, got {level}"
            )
        coefficients, self._slices = self._transform(np.zeros((1, *map_shape)))
        self.details = np.ones(coefficients.shape[1:], bool)
        rows, cols = (n // block for n in coefficients.shape[1:])
        self.details[:rows, :cols] = False

    def forward(self, maps: FloatArray) -> FloatArray:
        """``Psi x`` for maps (b, m_y, m_x)."""
        return self._transform(maps)[0]

    def adjoint(self, coefficients: FloatArray) -> FloatArray:
        """``Psi^T v``, maps (b, m_y, m_x)."""
        import pywt

        slices: list[Any] = [
            tuple(slice(None) if i == 0 else s for i, s in enumerate(self._slices[0]))
        ]
        slices += [
            {k: (slice(None), *s[1:]) for k, s in level.items()} for level in self._slices[1:]
        ]
        parts = pywt.array_to_coeffs(coefficients, slices, output_format="wavedec2")
        maps = pywt.waverec2(parts, self._wavelet, mode="periodization", axes=(-2, -1))
        return np.asarray(maps[:, : self._map_shape[0], : self._map_shape[1]])

    def _transform(self, maps: FloatArray) -> tuple[FloatArray, Any]:
        import pywt

        padded = np.pad(maps, ((0, 0), *self._pad))
        parts = pywt.wavedec2(
            padded, self._wavelet, mode="periodization", level=self._level, axes=(-2, -1)
        )
        coefficients, slices = pywt.coeffs_to_array(parts, axes=(-2, -1))
        return np.asarray(coefficients), slices


def _check_wavelet(name: Any) -> None:
    import pywt

    if name not in pywt.wavelist(kind="discrete") or not pywt.Wavelet(name).orthogonal:
        raise ValueError(f"wavelet must be an orthogonal wavelet of PyWavelets, got {name!r}")


def _differences(maps: FloatArray) -> FloatArray:
    """``D x``: first differences along y and x, shape (b, 2, m_y, m_x), the last ones 0."""
    out = np.zeros((len(maps), 2, *maps.shape[1:]))
    out[:, 0, :-1] = maps[:, 1:] - maps[:, :-1]
    out[:, 1, :, :-1] = maps[:, :, 1:] - maps[:, :, :-1]
    return out


def _differences_adjoint(d: FloatArray) -> FloatArray:
    """``D^T d``."""
    out = np.zeros((len(d), *d.shape[2:]))
    out[:, 1:] += d[:, 0, :-1]
    out[:, :-1] -= d[:, 0, :-1]
    out[:, :, 1:] += d[:, 1, :, :-1]
    out[:, :, :-1] -= d[:, 1, :, :-1]
    return out


def _solve_smooth(q: FloatArray) -> FloatArray:
    """Solve ``(I + D^T D) s = q``: the cosine transform makes it diagonal."""
    eigenvalues = [2.0 - 2.0 * np.cos(np.pi * np.arange(n) / n) for n in q.shape[1:]]
    diagonal = 1.0 + eigenvalues[0][:, None] + eigenvalues[1][None, :]
    spectrum = dctn(q, axes=(1, 2), norm="ortho") / diagonal
    return np.asarray(idctn(spectrum, axes=(1, 2), norm="ortho"))
