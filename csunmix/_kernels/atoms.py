"""What the methods that choose atom by atom share: a weighted image, and the atoms chosen for it.

Images, columns and coefficients are flat, row-major vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from csunmix._kernels.linalg import add
from csunmix._validation import FloatArray, IntArray

_LARGE_BOX = 1024  # cells; what is known of a box should stay in the cache


class View(NamedTuple):
    """An image and the dictionary, both seen through the square roots of the pixels' weights.

    Behind the dictionary's atoms stands one for each pixel, the negative of that pixel alone: where
    a pixel is a lower bound, it takes up what the fit has above the bound.
    """

    a_y: FloatArray
    a_x: FloatArray
    root: FloatArray  # (p, q)
    target: FloatArray  # (p q,), the weighted image
    even: float  # the weight that all pixels have; NaN where they differ
    weighted: FloatArray  # (q, p), scratch
    along_x: FloatArray


class Box(NamedTuple):
    """Cells of the map, from `top` and `left` to before `bottom` and `right`."""

    top: int
    bottom: int
    left: int
    right: int


class Chosen(NamedTuple):
    """Atoms in use and their normal equations; the first ``number[0]`` entries of each count."""

    number: IntArray
    atoms: IntArray
    x: FloatArray
    columns: FloatArray
    gram: FloatArray
    rhs: FloatArray
    lower: FloatArray  # room for the Cholesky factor of gram


@numba.njit(cache=True, nogil=True)
def new_view(a_y: FloatArray, a_x: FloatArray, y: FloatArray, weights: FloatArray) -> View:
    """See an image through its weights."""
    root, target, even = np.sqrt(weights), np.empty(y.size), weights[0, 0]
    for p in range(y.shape[0]):
        for q in range(y.shape[1]):
            target[p * y.shape[1] + q] = root[p, q] * y[p, q]
            if weights[p, q] != even:
                even = np.nan
    room = y.shape[0] * a_x.shape[1] + a_y.shape[1]
    return View(a_y, a_x, root, target, even, np.empty(y.shape[::-1]), np.empty(room))


@numba.njit(cache=True, nogil=True)
def new_chosen(capacity: int, n_pixels: int) -> Chosen:
    """Room for `capacity` atoms."""
    return Chosen(
        np.zeros(1, np.int64),
        np.empty(capacity, np.int64),
        np.empty(capacity),
        np.empty((capacity, n_pixels)),
        np.empty((capacity, capacity)),
        np.empty(capacity),
        np.empty((capacity, capacity)),
    )


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def long_inner(a: FloatArray, b: FloatArray) -> float:
    """``sum a b`` of two vectors as long as an image, in the order that is fastest."""
    s = 0.0
    for p in range(a.size):
        s += a[p] * b[p]
    return s


@numba.njit(cache=True, nogil=True)
def write_atom(view: View, atom: int, out: FloatArray) -> None:
    """Weighted column of one atom."""
    n_p, n_q = view.root.shape
    pixel = atom - view.a_y.shape[1] * view.a_x.shape[1]
    if pixel >= 0:
        for p in range(out.size):
            out[p] = -view.root[p // n_q, p % n_q] if p == pixel else 0.0
        return
    i, j = atom // view.a_x.shape[1], atom % view.a_x.shape[1]
    for p in range(n_p):
        for q in range(n_q):
            out[p * n_q + q] = view.a_y[p, i] * view.a_x[q, j] * view.root[p, q]


@numba.njit(cache=True, nogil=True)
def append(view: View, chosen: Chosen, atom: int, value: float, price: float) -> None:
    """Take an atom in, at the end; `price` is what a unit of its coefficient costs."""
    k = chosen.number[0]
    chosen.atoms[k], chosen.x[k] = atom, value
    write_atom(view, atom, chosen.columns[k])
    update_equations(view, chosen, k)
    chosen.rhs[k] -= price
    chosen.number[0] = k + 1


@numba.njit(cache=True, nogil=True)
def update_equations(view: View, chosen: Chosen, k: int) -> None:
    """Row, column and right-hand side of atom k in the normal equations of atoms 0 to k."""
    for m in range(k + 1):
        product = long_inner(chosen.columns[k], chosen.columns[m])
        chosen.gram[k, m] = product
        chosen.gram[m, k] = product
    chosen.rhs[k] = long_inner(chosen.columns[k], view.target)


@numba.njit(cache=True, nogil=True)
def drop(chosen: Chosen, position: int) -> None:
    """Take the atom at `position` out."""
    k = chosen.number[0] - 1
    for m in range(position, k):
        chosen.atoms[m], chosen.x[m] = chosen.atoms[m + 1], chosen.x[m + 1]
        chosen.rhs[m] = chosen.rhs[m + 1]
        for p in range(chosen.columns.shape[1]):
            chosen.columns[m, p] = chosen.columns[m + 1, p]
        for n in range(k + 1):
            chosen.gram[m, n] = chosen.gram[m + 1, n]
    for m in range(position, k):
        for n in range(k):
            chosen.gram[n, m] = chosen.gram[n, m + 1]
    chosen.number[0] = k


@numba.njit(cache=True, nogil=True)
def contains(chosen: Chosen, atom: int) -> bool:
    """Whether an atom is among those chosen."""
    found = False
    for m in range(chosen.number[0]):
        found |= chosen.atoms[m] == atom
    return found


@numba.njit(cache=True, nogil=True)
def residual(view: View, chosen: Chosen, out: FloatArray) -> None:
    """Weighted image less the chosen atoms."""
    for p in range(out.size):
        out[p] = view.target[p]
    for m in range(chosen.number[0]):
        add(-chosen.x[m], chosen.columns[m], out)


@numba.njit(cache=True, nogil=True)
def write_coefficients(chosen: Chosen, out: FloatArray) -> None:
    """Coefficients of the dictionary's atoms, into an `out` of zeros."""
    for m in range(chosen.number[0]):
        if chosen.atoms[m] < out.size:
            out[chosen.atoms[m]] = chosen.x[m]


@numba.njit(cache=True, nogil=True)
def whole(view: View) -> Box:
    """Every cell of the map."""
    return Box(0, view.a_y.shape[1], 0, view.a_x.shape[1])


@numba.njit(cache=True, nogil=True)
def widen(view: View, box: Box, atom: int) -> Box:
    """Box that holds an atom too, with a pixel's width of cells around it.

    Where it would be too large, only what is around the atom.
    """
    height, width = view.a_y.shape[1], view.a_x.shape[1]
    if width == 1:  # neighbours in a dense dictionary's list may be far from each other
        return Box(0, height, 0, width)
    i, j = atom // width, atom % width
    di, dj = height // view.a_y.shape[0], width // view.a_x.shape[0]
    top, bottom = max(0, i - di), min(height, i + di + 1)
    left, right = max(0, j - dj), min(width, j + dj + 1)
    if box.bottom > 0:
        both = Box(
            min(top, box.top), max(bottom, box.bottom), min(left, box.left), max(right, box.right)
        )
        if (both.bottom - both.top) * (both.right - both.left) <= _LARGE_BOX:
            return both
    return Box(top, bottom, left, right)


@numba.njit(cache=True, nogil=True)
def largest_box(a_y: FloatArray, a_x: FloatArray) -> int:
    """Most cells that a box of `widen` can have."""
    height, width = a_y.shape[1], a_x.shape[1]
    if width == 1:
        return int(height)
    around = (2 * (height // a_y.shape[0]) + 1) * (2 * (width // a_x.shape[0]) + 1)
    return int(min(max(around, _LARGE_BOX), height * width))


@numba.njit(cache=True, nogil=True)
def correlate(view: View, r: FloatArray, out: FloatArray) -> float:
    """Inner products of all weighted atoms with `r`; returns the largest."""
    correlate_box(view, r, whole(view), out)
    return extremes(out)[1]


@numba.njit(cache=True, nogil=True)
def correlate_box(view: View, r: FloatArray, box: Box, out: FloatArray) -> None:
    """Inner products of the weighted atoms in a box with `r`, row after row of cells."""
    # Plain loops: BLAS would use threads of its own for these small products, and with other
    # processes at work it then waits more than it computes.
    along_x, width = correlate_rows(view, r, box), box.right - box.left
    if view.a_x.shape[1] == 1:  # a dense dictionary: all its atoms stand in a_y
        sum_rows(along_x[:, 0], view.a_y, box.top, out[: box.bottom - box.top])
    else:
        height = box.bottom - box.top
        cells = out[: height * width].reshape(height, width)
        multiply(view.a_y, box.top, along_x, 0, cells)


@numba.njit(cache=True, nogil=True)
def correlate_atom(view: View, atom: int, column: FloatArray, box: Box, out: FloatArray) -> None:
    """Inner products of the weighted atoms in a box with the atom whose column is given.

    With even weights a product is one along y times one along x.
    """
    width = box.right - box.left
    if np.isnan(view.even) or view.a_x.shape[1] == 1:
        correlate_box(view, column, box, out)
        return
    height = box.bottom - box.top
    along_y, along_x = view.along_x[:height], view.along_x[height : height + width]
    pixel = atom - view.a_y.shape[1] * view.a_x.shape[1]
    if pixel >= 0:
        p, q = pixel // view.a_x.shape[0], pixel % view.a_x.shape[0]
        along_y[:] = -view.a_y[p, box.top : box.bottom]
        along_x[:] = view.a_x[q, box.left : box.right]
    else:
        i, j = atom // view.a_x.shape[1], atom % view.a_x.shape[1]
        sum_rows(view.a_y[:, i], view.a_y, box.top, along_y)
        sum_rows(view.a_x[:, j], view.a_x, box.left, along_x)
    for i in range(height):
        factor = view.even * along_y[i]
        for j in range(width):
            out[i * width + j] = factor * along_x[j]


@numba.njit(cache=True, nogil=True)
def correlate_rows(view: View, r: FloatArray, box: Box) -> FloatArray:
    """Inner products along x of the weighted `r` with a box's columns of cells, (p, right - left).

    Along y a column of `a_y` sums them up. It is scratch of the view.
    """
    n_p, n_q = view.root.shape
    width = box.right - box.left
    out = view.along_x[: n_p * width].reshape(n_p, width)
    for p in range(n_p):
        for q in range(n_q):
            view.weighted[q, p] = view.root[p, q] * r[p * n_q + q]
    multiply(view.weighted, 0, view.a_x, box.left, out)
    return out


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def multiply(a: FloatArray, first: int, b: FloatArray, left: int, out: FloatArray) -> None:
    """``out = a^T b``, of the columns of `a` from `first` and those of `b` from `left` on."""
    n, (height, width) = len(a), out.shape
    if height == 1:
        sum_rows(a[:, first], b, left, out[0])
        return
    right = left + width
    for pair in range(0, height, 2):  # two rows and four terms at a time, to load and store less
        i = min(pair, height - 2)
        u, v, top, bottom = first + i, first + i + 1, out[i], out[i + 1]
        for j in range(width):
            top[j] = bottom[j] = 0.0
        for p in range(n % 4):
            # Slices, as indices that may be negative keep the loop from being vectorised.
            u0, v0, b0 = a[p, u], a[p, v], b[p, left:right]
            for j in range(width):
                top[j] += u0 * b0[j]
                bottom[j] += v0 * b0[j]
        for p in range(n % 4, n, 4):
            u0, u1, u2, u3 = a[p, u], a[p + 1, u], a[p + 2, u], a[p + 3, u]
            v0, v1, v2, v3 = a[p, v], a[p + 1, v], a[p + 2, v], a[p + 3, v]
            b0, b1 = b[p, left:right], b[p + 1, left:right]
            b2, b3 = b[p + 2, left:right], b[p + 3, left:right]
            for j in range(width):
                top[j] += (u0 * b0[j] + u1 * b1[j]) + (u2 * b2[j] + u3 * b3[j])
                bottom[j] += (v0 * b0[j] + v1 * b1[j]) + (v2 * b2[j] + v3 * b3[j])


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def sum_rows(factors: FloatArray, rows: FloatArray, left: int, out: FloatArray) -> None:
    """``out = sum_p factors_p rows_p``, of the rows from column `left` on."""
    n, right = factors.size, left + out.size
    out[:] = 0.0
    for p in range(n % 4):
        f, a = factors[p], rows[p, left:right]
        for j in range(out.size):
            out[j] += f * a[j]
    for p in range(n % 4, n, 4):  # four at a time, to load and store less
        f, g, h, k = factors[p], factors[p + 1], factors[p + 2], factors[p + 3]
        a, b = rows[p, left:right], rows[p + 1, left:right]
        c, d = rows[p + 2, left:right], rows[p + 3, left:right]
        for j in range(out.size):
            out[j] += (f * a[j] + g * b[j]) + (h * c[j] + k * d[j])


@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc"})
def extremes(a: FloatArray) -> tuple[float, float]:
    """Smallest and largest entry of a vector."""
    least, most = np.inf, -np.inf
    for j in range(a.size):
        least = a[j] if a[j] < least else least
        most = a[j] if a[j] > most else most
    return least, most


@numba.njit(cache=True, nogil=True)
def forward(a_y: FloatArray, a_x: FloatArray, x: FloatArray, out: FloatArray) -> None:
    """``A x`` (p, q) of flat coefficients of which most are zero."""
    for p in range(out.shape[0]):
        for q in range(out.shape[1]):
            out[p, q] = 0.0
    for atom in range(x.size):
        if x[atom] == 0.0:
            continue
        i, j = atom // a_x.shape[1], atom % a_x.shape[1]
        for p in range(out.shape[0]):
            for q in range(out.shape[1]):
                out[p, q] += x[atom] * a_y[p, i] * a_x[q, j]
