"""Point targets in compiled loops: their image, its derivatives, and what pixels say of it.

A scene is a flat vector ``theta = (y_1, x_1, f_1, ..., y_K, x_K, f_K[, b])``: positions (px, in the
window), fluxes (DN) and, where it is fitted, a constant background (DN).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled
from csunmix._kernels.jit import kernel, leaf, part
from csunmix._kernels.linalg import add_up
from csunmix._validation import FloatArray

_SQRT_HALF = math.sqrt(0.5)
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_NARROW = 0.5  # intervals below this share of the noise are Gaussian to 1e-3 in log likelihood
_ROUGH = 3.0  # the same where noise is added: any way to the posterior will do
_EDGE = 1.18  # times the noise, from an interval's end to where a soft one begins to fall
_FAR = 30.0  # standard deviations from where tails are asymptotic
_PHASES = 4  # along each axis, at which a share is looked at
_CERTAIN = 6.0  # standard deviations that a normal variable keeps within, but for 1e-9
_RATHER = 5.0  # standard deviations beyond an end up to where chances are multiplied
_RARELY = 1e-200  # product of them from where no further one is
_LOST = 37.0  # logarithm below which a number is lost against another


class Optics(NamedTuple):
    """A PSF as a sum of products of one factor in y and one in x, tabulated along each axis.

    Tables are (rank, n_phases, 4, 2 reach + 2): phase p holds the factor at the offsets
    ``j - reach - (p + h)/n_phases`` px as cubics in h, which goes from 0 to 1: their coefficients.
    """

    y: FloatArray
    x: FloatArray


class Pixels(NamedTuple):
    """What was recorded: the value of a pixel before rounding and clipping lay in an interval.

    A point where ``low == high``, no information where both ends are infinite.
    """

    low: FloatArray  # (n_y, n_x), DN above the offset
    high: FloatArray
    variance: float  # of the noise in the dark, DN^2
    per_light: float  # variance per DN of light, 1/gain


@leaf()
def axis_factor(table: FloatArray, position: float, k: int, out: FloatArray) -> None:
    """Factors (rank, n) of target k at `position` along an axis."""
    p, h, first, start, stop = _locate(table, position, out.shape[2])
    out[k] = 0.0
    for r in range(table.shape[0]):
        cubic, value, skip = table[r, p], out[k, r, start:stop], np.uint64(start - first)
        for n in range(np.uint64(value.size)):
            q = skip + n
            value[n] = cubic[0, q] + h * (cubic[1, q] + h * (cubic[2, q] + h * cubic[3, q]))


@leaf()
def axis_factors(
    table: FloatArray, position: float, k: int, out: FloatArray, by: FloatArray
) -> None:
    """The same, and their derivatives by the position, 1/px."""
    p, h, first, start, stop = _locate(table, position, out.shape[2])
    n_phases = table.shape[1]
    out[k] = 0.0
    by[k] = 0.0
    for r in range(table.shape[0]):
        cubic, skip = table[r, p], np.uint64(start - first)
        value, rise = out[k, r, start:stop], by[k, r, start:stop]
        for n in range(np.uint64(value.size)):
            q = skip + n
            c1, c2, c3 = cubic[1, q], cubic[2, q], cubic[3, q]
            value[n] = cubic[0, q] + h * (c1 + h * (c2 + h * c3))
            rise[n] = n_phases * (c1 + h * (2.0 * c2 + 3.0 * h * c3))


@leaf(forceinline=True)
def _locate(table: FloatArray, position: float, n: int) -> tuple[int, float, int, int, int]:
    """Phase and what is beyond it, and in n pixels where the table begins and counts."""
    n_phases, width = table.shape[1], table.shape[3]
    whole = math.floor(position)
    place = (position - whole) * n_phases
    p = min(int(place), n_phases - 1)
    first = int(whole) - (width - 2) // 2
    start, stop = min(max(first, 0), n), max(min(first + width, n), 0)
    return p, place - p, first, start, stop


@leaf(forceinline=True)
def varying(pixels: Pixels) -> bool:
    """Whether the noise of a pixel depends on its light."""
    return pixels.per_light > 0.0


@leaf(forceinline=True)
def noise_variance(pixels: Pixels, light: float) -> float:
    """Variance of the noise of a pixel of so much light, DN^2."""
    return pixels.variance + pixels.per_light * max(light, 0.0)


class Room(NamedTuple):
    """Space for one scene: factors of every target, its image, Jacobian and metric."""

    y: FloatArray  # (K, rank, n_y) factors and slopes
    y_slope: FloatArray
    x: FloatArray
    x_slope: FloatArray
    light: FloatArray  # (n_y, n_x)
    jacobian: FloatArray  # (d, n_y n_x)
    weight: FloatArray  # (n_y n_x), what each pixel tells
    row: FloatArray  # (n_y n_x)
    column: FloatArray  # (d)


@part()
def new_room(optics: Optics, count: int, d: int, n_y: int, n_x: int) -> Room:
    """Space for scenes of `count` targets and `d` parameters."""
    rank = optics.y.shape[0]
    return Room(
        np.empty((count, rank, n_y)),
        np.empty((count, rank, n_y)),
        np.empty((count, rank, n_x)),
        np.empty((count, rank, n_x)),
        np.empty((n_y, n_x)),
        np.empty((d, n_y * n_x)),
        np.empty(n_y * n_x),
        np.empty(n_y * n_x),
        np.empty(d),
    )


@leaf()
def illuminate(optics: Optics, theta: FloatArray, room: Room) -> None:
    """Image of a scene, into ``room.light``; leaves the targets' factors in the room."""
    for k in range(room.y.shape[0]):
        place(optics, theta, k, room)
    shine(theta, room)


@kernel()
def render(optics: Optics, theta: FloatArray, count: int, n_y: int, n_x: int) -> FloatArray:
    """Image (n_y, n_x) of a scene of `count` targets."""
    room = new_room(optics, count, theta.size, n_y, n_x)
    illuminate(optics, theta, room)
    return room.light


@leaf()
def glow(optics: Optics, theta: FloatArray, room: Room) -> None:
    """The same, without the slopes of the factors."""
    for k in range(room.y.shape[0]):
        axis_factor(optics.y, theta[3 * k], k, room.y)
        axis_factor(optics.x, theta[3 * k + 1], k, room.x)
    shine(theta, room)


@leaf(forceinline=True)
def place(optics: Optics, theta: FloatArray, k: int, room: Room) -> None:
    """Factors of target k and their slopes, into the room."""
    axis_factors(optics.y, theta[3 * k], k, room.y, room.y_slope)
    axis_factors(optics.x, theta[3 * k + 1], k, room.x, room.x_slope)


@leaf(forceinline=True)
def shine(theta: FloatArray, room: Room) -> None:
    """Image of the targets whose factors are in the room, into ``room.light``."""
    count, rank = room.y.shape[0], room.y.shape[1]
    n_y, n_x = room.light.shape
    room.light[:] = theta[3 * count] if theta.size > 3 * count else 0.0
    for k in range(count):
        for r in range(rank):
            for i in range(n_y):
                a = theta[3 * k + 2] * room.y[k, r, i]
                for j in range(n_x):
                    room.light[i, j] += a * room.x[k, r, j]


@kernel()
def least_share(optics: Optics, area: FloatArray, n_y: int, n_x: int) -> float:
    """Share of a target's light that falls into the window near the worst corner of `area`.

    Within a pixel from each corner, as that of a coarsely sampled PSF depends on the phase.
    """
    share, theta = 1.0, filled(3, 1.0)
    room = new_room(optics, 1, theta.size, n_y, n_x)
    for first in range(2):
        for second in range(2):
            for n in range(_PHASES * _PHASES):
                for axis, end, step in ((0, first, n // _PHASES), (1, second, n % _PHASES)):
                    place = area[axis, end] + (1 - 2 * end) * step / _PHASES
                    theta[axis] = min(max(place, area[axis, 0]), area[axis, 1])
                illuminate(optics, theta, room)
                light = 0.0
                for i in range(n_y):
                    light += add_up(room.light[i])
                share = min(share, light)
    return share


@leaf()
def differentiate(theta: FloatArray, room: Room) -> None:
    """Jacobian of the image that `illuminate` left, into ``room.jacobian``."""
    count, rank = room.y.shape[0], room.y.shape[1]
    n_y, n_x = room.light.shape
    jacobian = room.jacobian
    jacobian[:] = 1.0  # of the background
    jacobian[: 3 * count] = 0.0
    for k in range(count):
        flux = theta[3 * k + 2]
        by_y, by_x, by_f = jacobian[3 * k], jacobian[3 * k + 1], jacobian[3 * k + 2]
        for r in range(rank):
            for i in range(n_y):
                a, s, at = room.y[k, r, i], flux * room.y_slope[k, r, i], i * n_x
                b = flux * a
                for j in range(n_x):
                    by_y[at + j] += s * room.x[k, r, j]
                    by_x[at + j] += b * room.x_slope[k, r, j]
                    by_f[at + j] += a * room.x[k, r, j]


@leaf()
def log_tail(z: float) -> float:
    """Logarithm of the probability above `z` of a standard normal variable."""
    if z < -_CERTAIN:
        return 0.0
    if z > _FAR:
        return -0.5 * z * z - _LOG_SQRT_2PI - math.log(z) + math.log1p(-1.0 / (z * z + 2.5))
    return math.log(0.5 * math.erfc(z * _SQRT_HALF))


@leaf()
def log_interval(a: float, b: float) -> float:
    """Logarithm of the probability between `a` and `b` > `a` of a standard normal variable."""
    if a + b < 0.0:
        a, b = -b, -a
    if a < -_CERTAIN:
        return 0.0
    if 0.5 * (b - a) * (b + a) > _LOST:
        return log_tail(a)
    if a > _FAR:
        return log_tail(a) + math.log1p(-math.exp(log_tail(b) - log_tail(a)))
    return math.log(0.5 * (math.erfc(a * _SQRT_HALF) - math.erfc(b * _SQRT_HALF)))


@leaf()
def log_pixel(low: float, high: float, light: float, variance: float, narrow: float) -> float:
    """Log likelihood of one pixel, but for what `log_scale` says.

    A point and an interval below `narrow` times the noise: ``-r^2/2v``, ``v`` with the rounding's
    own.
    """
    width = high - low
    if width * width < narrow**2 * variance:
        r = 0.5 * (low + high) - light
        return -0.5 * r * r / (variance + width * width / 12.0)
    noise = math.sqrt(variance)
    if high == np.inf:
        return 0.0 if low == -np.inf else log_tail((low - light) / noise)
    if low == -np.inf:
        return log_tail((light - high) / noise)
    return log_interval((low - light) / noise, (high - light) / noise)


@leaf(forceinline=True)
def soft(low: float, high: float, variance: float, extra: float) -> bool:
    """Whether an interval is made easy: where noise is added and does not hide it."""
    return extra > 0.0 and _ROUGH**2 * variance <= (high - low) ** 2 < np.inf


@leaf()
def log_soft(low: float, high: float, light: float, variance: float) -> float:
    """Log likelihood of an interval made easy: 0 inside, a parabola that begins before its ends.

    As the exact one it is ``log(1/2)`` at these.
    """
    beyond = abs(0.5 * (low + high) - light) - 0.5 * (high - low) + _EDGE * math.sqrt(variance)
    return -0.5 * beyond * beyond / variance if beyond > 0.0 else 0.0


@leaf()
def soft_score(low: float, high: float, light: float, variance: float) -> float:
    """Derivative of `log_soft` by the light, 1/DN."""
    r = 0.5 * (low + high) - light
    beyond = abs(r) - 0.5 * (high - low) + _EDGE * math.sqrt(variance)
    return math.copysign(max(beyond, 0.0) / variance, r)


@leaf()
def log_scale(low: float, high: float, variance: float, narrow: float = _NARROW) -> float:
    """What the noise adds to `log_pixel` whatever the light."""
    width = high - low
    if width * width < narrow**2 * variance:
        blurred = variance + width * width / 12.0
        return (math.log(width) if width > 0.0 else 0.0) - 0.5 * math.log(blurred) - _LOG_SQRT_2PI
    return 0.0


@leaf()
def information(low: float, high: float, light: float, variance: float) -> float:
    """What a pixel tells of its light, 1/DN^2: observed for a bound, expected for an interval."""
    if low == -np.inf or high == np.inf:
        if low == -np.inf and high == np.inf:
            return 0.0
        noise = math.sqrt(variance)
        z = (low - light) / noise if high == np.inf else (light - high) / noise
        hazard = math.exp(-0.5 * z * z - _LOG_SQRT_2PI - log_tail(z))
        return max(hazard * (hazard - z), 0.0) / variance
    return 1.0 / (variance + (high - low) ** 2 / 12.0)


@leaf()
def log_likelihood(
    pixels: Pixels, light: FloatArray, extra: float, floor: float = -np.inf
) -> float:
    """Log likelihood of an image of `light`, the noise's variance raised by `extra` (DN^2).

    Any number below `floor` stands for one that is lower still. With `extra`, intervals below
    three times the noise are taken as normal errors, others are soft (`log_soft`): only the end of
    the way need be exact.

    Where the noise is the same whatever the light, it lacks what depends on `extra` alone, see
    `log_scales`.
    """
    total, variance = 0.0, pixels.variance + extra
    of_point, of_unit = 0.5 / variance, 0.5 / (variance + 1.0 / 12.0)  # the commonest widths
    varies = varying(pixels)
    narrow = _NARROW if extra == 0.0 else _ROUGH
    unit_is_narrow, reach = variance > 1.0 / narrow**2, _CERTAIN * math.sqrt(variance)
    per_noise, chance = 1.0 / math.sqrt(variance), 1.0
    for i in range(light.shape[0]):
        total, chance = total + math.log(chance), 1.0
        if total < floor and not varies:  # where noise is fixed, pixels only take away
            break
        for j in range(light.shape[1]):
            low, high, at = pixels.low[i, j], pixels.high[i, j], light[i, j]
            if varies:
                variance = extra + noise_variance(pixels, at)
                total += log_scale(low, high, variance, narrow)
            elif low == high:
                total -= of_point * (low - at) ** 2
                continue
            elif unit_is_narrow and high - low == 1.0:
                total -= of_unit * (low + 0.5 - at) ** 2
                continue
            elif low + reach < at < high - reach:  # for sure
                continue
            elif extra == 0.0 and high - low > 2.0 * reach:  # the other end is too far to matter
                z = max(low - at, at - high) * per_noise
                if z < _RATHER and chance > _RARELY:  # one logarithm will do for many
                    chance *= 0.5 * math.erfc(z * _SQRT_HALF)
                else:
                    total += log_tail(z)
                continue
            if soft(low, high, variance, extra):
                total += log_soft(low, high, at, variance)
            else:
                total += log_pixel(low, high, at, variance, narrow)
    return total + math.log(chance)


@leaf()
def log_scales(pixels: Pixels, extra: float) -> float:
    """What `log_likelihood` leaves out: the part that is the same for all scenes."""
    total = 0.0
    narrow = _NARROW if extra == 0.0 else _ROUGH
    if not varying(pixels):
        for i in range(pixels.low.shape[0]):
            for j in range(pixels.low.shape[1]):
                variance = pixels.variance + extra
                total += log_scale(pixels.low[i, j], pixels.high[i, j], variance, narrow)
    return total


@leaf()
def fisher(pixels: Pixels, extra: float, theta: FloatArray, room: Room, out: FloatArray) -> None:
    """``J^T W J`` of the scene in the room, into the lower triangle of `out`.

    With a PSF that is one product, and pixels that weigh the same but for a few, inner products
    along the axes make it: ``<a_k b_k, a_l b_l> = <a_k, a_l> <b_k, b_l>``.
    """
    alike = _weigh_pixels(pixels, extra, room)
    if room.y.shape[1] == 1 and not varying(pixels):
        _uniform_gram(theta, room, alike, out)
        n_x = room.light.shape[1]
        for p in range(room.weight.size):
            if room.weight[p] != alike:
                _add_pixel(theta, room, p // n_x, p % n_x, room.weight[p] - alike, out)
    else:
        differentiate(theta, room)
        _weighted_gram(room, out)


@leaf()
def _weigh_pixels(pixels: Pixels, extra: float, room: Room) -> float:
    """What each pixel tells, into the room; returns that of the first which is no bound, or 0."""
    n_y, n_x = room.light.shape
    varies, variance, alike = varying(pixels), extra + pixels.variance, 0.0
    of_point = 1.0 / variance  # the commonest width
    for i in range(n_y):
        for j in range(n_x):
            low, high, told = pixels.low[i, j], pixels.high[i, j], of_point
            if varies:
                variance = extra + noise_variance(pixels, room.light[i, j])
            if varies or low != high:
                told = information(low, high, room.light[i, j], variance)
            room.weight[i * n_x + j] = told
            if alike == 0.0 and high - low < np.inf:
                alike = told
    return alike


@leaf(fastmath={"reassoc", "contract", "nsz"})
def _uniform_gram(theta: FloatArray, room: Room, weight: float, out: FloatArray) -> None:
    """``weight J^T J`` into the lower triangle of `out`, where the PSF is one product."""
    count = room.y.shape[0]
    n_y, n_x = room.light.shape
    for k in range(count):
        f = weight * theta[3 * k + 2]
        for m in range(k + 1):
            g = theta[3 * m + 2]
            # Inner products of values (0) and slopes (1) of target k with those of target m.
            y00, y01, y10, y11 = _products(room.y, room.y_slope, k, m, n_y)
            x00, x01, x10, x11 = _products(room.x, room.x_slope, k, m, n_x)
            a, b = 3 * k, 3 * m
            out[a, b], out[a, b + 1] = f * g * y11 * x00, f * g * y10 * x01
            out[a + 1, b], out[a + 1, b + 1] = f * g * y01 * x10, f * g * y00 * x11
            out[a, b + 2], out[a + 1, b + 2] = f * y10 * x00, f * y00 * x10
            out[a + 2, b], out[a + 2, b + 1] = weight * g * y01 * x00, weight * g * y00 * x01
            out[a + 2, b + 2] = weight * y00 * x00
    if theta.size > 3 * count:
        b = 3 * count
        for k in range(count):
            f = weight * theta[3 * k + 2]
            of_y, of_x = add_up(room.y[k, 0]), add_up(room.x[k, 0])
            out[b, 3 * k] = f * add_up(room.y_slope[k, 0]) * of_x
            out[b, 3 * k + 1] = f * of_y * add_up(room.x_slope[k, 0])
            out[b, 3 * k + 2] = weight * of_y * of_x
        out[b, b] = weight * n_y * n_x


@leaf(forceinline=True)
def _products(
    value: FloatArray, slope: FloatArray, k: int, m: int, n: int
) -> tuple[float, float, float, float]:
    s00, s01, s10, s11 = 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        s00 += value[k, 0, i] * value[m, 0, i]
        s01 += value[k, 0, i] * slope[m, 0, i]
        s10 += slope[k, 0, i] * value[m, 0, i]
        s11 += slope[k, 0, i] * slope[m, 0, i]
    return s00, s01, s10, s11


@leaf()
def _add_pixel(
    theta: FloatArray, room: Room, i: int, j: int, weight: float, out: FloatArray
) -> None:
    """Add what one pixel more, of this weight, makes of a Gram matrix."""
    column, count = room.column, room.y.shape[0]
    column[theta.size - 1] = 1.0  # of the background
    for k in range(count):
        flux, y, x = theta[3 * k + 2], room.y[k, 0, i], room.x[k, 0, j]
        column[3 * k] = flux * room.y_slope[k, 0, i] * x
        column[3 * k + 1] = flux * y * room.x_slope[k, 0, j]
        column[3 * k + 2] = y * x
    for a in range(column.size):
        for b in range(a + 1):
            out[a, b] += weight * column[a] * column[b]


@leaf(fastmath={"reassoc", "contract", "nsz"})
def _weighted_gram(room: Room, out: FloatArray) -> None:
    """``J^T W J`` of the Jacobian and weights in the room, into the lower triangle of `out`."""
    jacobian, weight, row = room.jacobian, room.weight, room.row
    for a in range(jacobian.shape[0]):
        for p in range(row.size):
            row[p] = weight[p] * jacobian[a, p]
        for b in range(a + 1):
            s = 0.0
            for p in range(row.size):
                s += row[p] * jacobian[b, p]
            out[a, b] = s


@leaf()
def score(low: float, high: float, light: float, variance: float, change: float) -> float:
    """Derivative of the log likelihood of a pixel by its light, 1/DN.

    `change` is that of the variance by the light.
    """
    width = high - low
    if width * width < _NARROW**2 * variance:
        blurred = variance + width * width / 12.0
        r = 0.5 * (low + high) - light
        return r / blurred + 0.5 * change * (r * r / blurred - 1.0) / blurred
    if low == -np.inf and high == np.inf:
        return 0.0
    noise = math.sqrt(variance)
    a, b = (low - light) / noise, (high - light) / noise
    log_mass = log_pixel(low, high, light, variance, _NARROW)
    total = 0.0
    if a > -np.inf:
        total += (1.0 + 0.5 * change * a / noise) * math.exp(
            -0.5 * a * a - _LOG_SQRT_2PI - log_mass
        )
    if b < np.inf:
        total -= (1.0 + 0.5 * change * b / noise) * math.exp(
            -0.5 * b * b - _LOG_SQRT_2PI - log_mass
        )
    return total / noise
