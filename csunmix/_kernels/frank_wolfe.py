"""Sliding Frank-Wolfe on one image: atoms are added where the certificate is highest, and slide.

The unknowns are ``theta = (y_1, x_1, f_1, ..., y_K, x_K, f_K)``, px and DN; K changes on the way.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled
from csunmix._kernels.jit import kernel, leaf, part
from csunmix._kernels.linalg import cholesky, cholesky_solve, inner
from csunmix._kernels.scene import (
    Optics,
    Room,
    axis_factor,
    axis_factors,
    differentiate,
    illuminate,
    new_room,
)
from csunmix._validation import BoolArray, FloatArray

_PHASES_PER_STEP = 8  # of the tables, from one point to the next where the certificate is searched
_PHASES_APART = 4  # within which two atoms are tried as one
_PROMISING = 0.9  # of the highest point of that grid, from where one climbs
_STEPS = (50, 200)  # most Newton steps of a climb, of a slide
_FLAT = 1e-13  # relative change of the objective that counts as none
_SHORT = 1e-10  # px, likewise
_DAMPING = (1e-12, 1e-3, 1e9)  # least, first and largest


class Task(NamedTuple):
    """What is to be minimised: ``1/2 sum w r^2 + lam sum f``, and where to look."""

    optics: Optics
    image: FloatArray  # (n_y, n_x), DN
    weights: FloatArray
    censored: BoolArray
    lam: float
    grid_y: FloatArray  # (m_y, rank, n_y) factors of the positions searched
    grid_x: FloatArray


class Slope(NamedTuple):
    """Correlation of an atom with a residual, and its derivatives by the atom's position."""

    value: float
    y: float
    x: float
    yy: float
    yx: float
    xx: float


@kernel()
def new_task(
    optics: Optics, image: FloatArray, weights: FloatArray, censored: BoolArray, lam: float
) -> Task:
    """Set up an image."""
    grid_y = _grid_factors(optics.y, image.shape[0])
    grid_x = _grid_factors(optics.x, image.shape[1])
    return Task(optics, image, weights, censored, lam, grid_y, grid_x)


@part()
def _grid_factors(table: FloatArray, n: int) -> FloatArray:
    """Factors (m, rank, n) at equal steps from -0.5 to n - 0.5."""
    rank, n_phases = table.shape[0], table.shape[1]
    m = math.ceil(n * n_phases / _PHASES_PER_STEP) + 1
    factors = np.empty((m, rank, n))
    for k in range(m):
        axis_factor(table, -0.5 + n * k / (m - 1), k, factors)
    return factors


@kernel()
def frank_wolfe(
    task: Task, max_targets: int, max_iter: int, tol: float
) -> tuple[FloatArray, float, float, int]:
    """Minimise; returns theta, the objective, its relative duality gap and the atoms added."""
    theta: FloatArray = np.empty(0)
    n_iter, value, stalled = 0, objective(task, theta, _room(task, theta)), False
    while True:
        pull = residual(task, theta)
        y, x, highest = summit(task, pull)
        gap = relative_gap(task, pull, highest, value)
        full = n_iter == max_iter or theta.size >= 3 * max_targets
        if gap <= tol or full or stalled:
            break
        n_iter, before = n_iter + 1, value
        theta, _ = slide(task, np.append(theta, np.array([y, x, 0.0])), False)
        theta, value = slide(task, theta, True)
        theta, value = merge(task, theta, value)
        stalled = value >= before * (1.0 - _FLAT)
    return theta, value, gap, n_iter


@part()
def _room(task: Task, theta: FloatArray) -> Room:
    return new_room(task.optics, theta.size // 3, theta.size, *task.image.shape)


@leaf()
def objective(task: Task, theta: FloatArray, room: Room) -> float:
    """``1/2 sum w r^2 + lam sum f``; leaves the scene in the room."""
    illuminate(task.optics, theta, room)
    total = 0.0
    for i in range(task.image.shape[0]):
        for j in range(task.image.shape[1]):
            r = task.image[i, j] - room.light[i, j]
            if r > 0.0 or not task.censored[i, j]:
                total += 0.5 * task.weights[i, j] * r * r
    for k in range(2, theta.size, 3):
        total += task.lam * theta[k]
    return total


@kernel()
def residual(task: Task, theta: FloatArray) -> FloatArray:
    """``w r`` of a scene, (n_y, n_x)."""
    room = _room(task, theta)
    illuminate(task.optics, theta, room)
    out = np.empty(task.image.shape)
    _weigh(task, room, out)
    return out


@leaf()
def _weigh(task: Task, room: Room, out: FloatArray) -> None:
    """``w r`` of the scene in the room, whose ``weight`` becomes 0 where a bound is exceeded."""
    n_x = out.shape[1]
    for i in range(out.shape[0]):
        for j in range(n_x):
            r = task.image[i, j] - room.light[i, j]
            free = task.censored[i, j] and r < 0.0
            room.weight[i * n_x + j] = 0.0 if free else task.weights[i, j]
            out[i, j] = room.weight[i * n_x + j] * r


@part()
def correlate(optics: Optics, pull: FloatArray, y: float, x: float) -> Slope:
    """Inner product of `pull` (n_y, n_x) with the atom at a position, and its derivatives."""
    y0, y1, y2 = _bent(optics.y, y, pull.shape[0])
    x0, x1, x2 = _bent(optics.x, x, pull.shape[1])
    value = by_y = by_x = by_yy = by_yx = by_xx = 0.0
    for r in range(y0.shape[0]):
        for i in range(pull.shape[0]):
            a0, a1, a2 = inner(pull[i], x0[r]), inner(pull[i], x1[r]), inner(pull[i], x2[r])
            value += y0[r, i] * a0
            by_y += y1[r, i] * a0
            by_x += y0[r, i] * a1
            by_yy += y2[r, i] * a0
            by_yx += y1[r, i] * a1
            by_xx += y0[r, i] * a2
    return Slope(value, by_y, by_x, by_yy, by_yx, by_xx)


@part()
def _bent(table: FloatArray, position: float, n: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Factors (rank, n) of an axis, their derivative, and the difference quotient of that."""
    half = 0.5 / table.shape[1]
    factor, slope = np.empty((3, table.shape[0], n)), np.empty((3, table.shape[0], n))
    for k in range(3):
        axis_factors(table, position + (k - 1) * half, k, factor, slope)
    return factor[1], slope[1], (slope[2] - slope[0]) / (2.0 * half)


@kernel()
def summit(task: Task, pull: FloatArray) -> tuple[float, float, float]:
    """Position of the atom that correlates most with `pull`, anywhere in the image, and how much.

    One climbs from the local maxima of a grid with steps of a quarter of the PSF's width.
    """
    found = search(task, pull)
    m_y, m_x = found.shape
    n_y, n_x = pull.shape
    highest = found.max()
    best = (0.0, 0.0, -np.inf)
    for i in range(m_y):
        for j in range(m_x):
            here = found[i, j]
            if here < highest - (1.0 - _PROMISING) * abs(highest):
                continue
            around = found[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            if here == around.max():
                y, x = n_y * i / (m_y - 1) - 0.5, n_x * j / (m_x - 1) - 0.5
                top = climb(task.optics, pull, y, x)
                if top[2] > best[2]:
                    best = top
    return best


@part()
def search(task: Task, pull: FloatArray) -> FloatArray:
    """Correlation of `pull` with the atoms of the grid, (m_y, m_x)."""
    m_y, rank, n_y = task.grid_y.shape
    m_x = task.grid_x.shape[0]
    out, row = filled((m_y, m_x), 0.0), np.empty(m_x)
    for r in range(rank):
        for p in range(n_y):
            for j in range(m_x):
                row[j] = inner(pull[p], task.grid_x[j, r])
            for i in range(m_y):
                for j in range(m_x):
                    out[i, j] += task.grid_y[i, r, p] * row[j]
    return out


@part()
def climb(optics: Optics, pull: FloatArray, y: float, x: float) -> tuple[float, float, float]:
    """Nearest maximum of the correlation by Newton's method, damped until it is an ascent."""
    here = correlate(optics, pull, y, x)
    for _ in range(_STEPS[0]):
        yy, yx, xx = here.yy, here.yx, here.xx
        by_y, by_x = here.y, here.x
        if _held(y, by_y, pull.shape[0]):
            by_y, yx = 0.0, 0.0
        if _held(x, by_x, pull.shape[1]):
            by_x, yx = 0.0, 0.0
        # Taking more than the largest eigenvalue off the diagonal makes any curvature negative.
        bend = 0.5 * (yy + xx) + math.hypot(0.5 * (yy - xx), yx)
        shift = max(2.0 * bend, 0.0) + 1e-12 * (abs(yy) + abs(xx))
        yy, xx = shift - yy, shift - xx
        determinant = yy * xx - yx * yx
        if determinant <= 0.0:  # flat, but for rounding
            break
        step_y = (xx * by_y + yx * by_x) / determinant
        step_x = (yy * by_x + yx * by_y) / determinant
        better = False
        while abs(step_y) + abs(step_x) > _SHORT:
            new_y, new_x = _inside(y + step_y, pull.shape[0]), _inside(x + step_x, pull.shape[1])
            new = correlate(optics, pull, new_y, new_x)
            if new.value > here.value:
                y, x, here, better = new_y, new_x, new, True
                break
            step_y, step_x = 0.25 * step_y, 0.25 * step_x
        if not better:
            break
    return y, x, here.value


@leaf()
def _inside(position: float, n: int) -> float:
    return min(max(position, -0.5), n - 0.5)


@leaf()
def _held(position: float, ascent: float, n: int) -> bool:
    """Whether the image's edge keeps a position from going where it wants to."""
    return (position <= -0.5 and ascent < 0.0) or (position >= n - 0.5 and ascent > 0.0)


@leaf()
def relative_gap(task: Task, pull: FloatArray, highest: float, value: float) -> float:
    """Relative duality gap, see `csunmix.solvers.base.Problem.certify`."""
    energy = product = 0.0
    for i in range(pull.shape[0]):
        for j in range(pull.shape[1]):
            if pull[i, j] != 0.0:
                energy += pull[i, j] ** 2 / task.weights[i, j]
                product += pull[i, j] * task.image[i, j]
    if energy == 0.0 or value <= 0.0:
        return 0.0 if value <= 0.0 else 1.0
    scale = product / energy
    if highest > 0.0:
        scale = min(scale, task.lam / highest)
    scale = max(scale, 0.0)
    return max(value - scale * product + 0.5 * scale**2 * energy, 0.0) / value


@part()
def _lit(theta: FloatArray) -> FloatArray:
    """The atoms that have a flux."""
    return theta.reshape(-1, 3)[theta[2::3] > 0.0].ravel()


@part()
def merge(task: Task, theta: FloatArray, value: float) -> tuple[FloatArray, float]:
    """Make the closest two atoms one, as often as that does not raise the objective."""
    closest = _PHASES_APART / task.optics.y.shape[1]
    while theta.size > 3:
        atoms = theta.reshape(-1, 3)
        a, b, least = 0, 0, closest
        for k in range(len(atoms)):
            for m in range(k):
                d = math.hypot(atoms[k, 0] - atoms[m, 0], atoms[k, 1] - atoms[m, 1])
                if d < least:
                    a, b, least = m, k, d
        if b == 0:
            break
        fewer = np.concatenate((atoms[:b], atoms[b + 1 :]))
        fewer[a, 2] += atoms[b, 2]
        fewer[a, :2] += (atoms[b, :2] - atoms[a, :2]) * (atoms[b, 2] / fewer[a, 2])
        one, new = slide(task, fewer.ravel(), True)
        if new > value * (1.0 + _FLAT):
            break
        theta, value = one, new
    return theta, value


@part()
def slide(task: Task, theta: FloatArray, moving: bool) -> tuple[FloatArray, float]:
    """Nearest minimum by damped Newton steps, without atoms of flux 0; positions if `moving`."""
    d = theta.size
    n_y, n_x = task.image.shape
    room, theta, trial = _room(task, theta), theta.copy(), np.empty(d)
    ascent, hessian, scale = np.empty(d), np.empty((d, d)), np.empty(d)
    damped, factor, reduced, step = np.empty((d, d)), np.empty((d, d)), np.empty(d), np.empty(d)
    free = np.empty(d, np.int64)
    value, damping = objective(task, theta, room), _DAMPING[1]
    for _ in range(_STEPS[1]):
        derive(task, theta, room, ascent, hessian, scale)
        n_free = 0
        for a in range(d):
            held = theta[a] <= 0.0 and ascent[a] <= 0.0
            if a % 3 < 2:
                held = not moving or _held(theta[a], ascent[a], n_y if a % 3 == 0 else n_x)
            if not held and scale[a] > 0.0:
                free[n_free] = a
                n_free += 1
        before = value
        while n_free > 0 and damping < _DAMPING[2]:
            for a in range(n_free):
                for b in range(a + 1):
                    damped[a, b] = hessian[free[a], free[b]]
                damped[a, a] += damping * scale[free[a]]
                reduced[a] = ascent[free[a]]
            if cholesky(damped, n_free, factor) == n_free:
                cholesky_solve(factor, n_free, reduced, step)
                trial[:] = theta
                for a in range(n_free):
                    trial[free[a]] += step[a]
                for k in range(0, d, 3):
                    trial[k] = _inside(trial[k], n_y)
                    trial[k + 1] = _inside(trial[k + 1], n_x)
                    trial[k + 2] = max(trial[k + 2], 0.0)
                new = objective(task, trial, room)
                if new < value:
                    theta[:], value = trial, new
                    damping = max(0.1 * damping, _DAMPING[0])
                    break
            damping *= 5.0
        if before - value <= _FLAT * before:
            break
    return _lit(theta), value


@part()
def derive(
    task: Task,
    theta: FloatArray,
    room: Room,
    ascent: FloatArray,
    hessian: FloatArray,
    scale: FloatArray,
) -> None:
    """Downhill gradient, Hessian (lower triangle) and its linear part's diagonal, at `theta`."""
    illuminate(task.optics, theta, room)
    differentiate(theta, room)
    pull = np.empty(task.image.shape)
    _weigh(task, room, pull)
    for a in range(theta.size):
        for p in range(room.row.size):
            room.row[p] = room.weight[p] * room.jacobian[a, p]
        for b in range(a + 1):
            hessian[a, b] = inner(room.row, room.jacobian[b])
        scale[a] = hessian[a, a]
    for k in range(0, theta.size, 3):
        flux, at = theta[k + 2], correlate(task.optics, pull, theta[k], theta[k + 1])
        ascent[k], ascent[k + 1], ascent[k + 2] = flux * at.y, flux * at.x, at.value - task.lam
        hessian[k, k] -= flux * at.yy
        hessian[k + 1, k] -= flux * at.yx
        hessian[k + 1, k + 1] -= flux * at.xx
        hessian[k + 2, k] -= at.y
        hessian[k + 2, k + 1] -= at.x
