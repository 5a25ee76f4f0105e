"""What the methods that choose atom by atom share: a weighted image, and the atoms chosen for it.

Images, columns and coefficients are flat, row-major vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from csunmix._kernels.arrays import filled, integers
from csunmix._kernels.jit import leaf, part
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
    even: FloatArray  # (1,), the weight that all pixels have; NaN where they differ
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


@part()
def new_view(a_y: FloatArray, a_x: FloatArray, y: FloatArray, weights: FloatArray) -> View:
    """See an image through its weights."""
    room = y.shape[0] * a_x.shape[1] + a_y.shape[1]
    root, target, even = np.empty(y.shape), np.empty(y.size), filled(1, np.nan)
    view = View(a_y, a_x, root, target, even, np.empty(y.shape[::-1]), np.empty(room))
    look(view, y, weights)
    return view


@leaf()
def look(view: View, y: FloatArray, weights: FloatArray) -> None:
    """See another image."""
    root, target, alike = view.root, view.target, 0
    n_p, n_q, first = np.uint64(y.shape[0]), np.uint64(y.shape[1]), weights[0, 0]
    for p in range(n_p):
        for q in range(n_q):
            alike += 1 if weights[p, q] == first else 0
    even = first if alike == y.size else np.nan
    if even != view.even[0]:  # else roots are those of the image before
        view.even[0] = even
        for p in range(n_p):
            for q in range(n_q):
                root[p, q] = np.sqrt(weights[p, q])
    for p in range(n_p):
        for q in range(n_q):
            target[p * n_q + q] = root[p, q] * y[p, q]


@part()
def new_chosen(capacity: int, n_pixels: int) -> Chosen:
    """Room for `capacity` atoms."""
    return Chosen(
        integers(1, 0),
        np.empty(capacity, np.int64),
        np.empty(capacity),
        np.empty((capacity, n_pixels)),
        np.empty((capacity, capacity)),
        np.empty(capacity),
        np.empty((capacity, capacity)),
    )


@leaf(fastmath={"reassoc", "nsz", "contract"})
def long_inner(a: FloatArray, b: FloatArray) -> float:
    """``sum a b`` of two vectors as long as an image, in the order that is fastest."""
    s = 0.0
    for p in range(a.size):
        s += a[p] * b[p]
    return s


@leaf()
def write_atom(view: View, atom: int, out: FloatArray) -> None:
    """Weighted column of one atom."""
    a_y, a_x, root = view.a_y, view.a_x, view.root
    n_p, n_q = root.shape
    pixel = atom - a_y.shape[1] * a_x.shape[1]
    if pixel >= 0:
        out[:] = 0.0
        out[pixel] = -root[pixel // n_q, pixel % n_q]
        return
    i, j = atom // a_x.shape[1], atom % a_x.shape[1]
    for p in range(n_p):
        factor = a_y[p, i]
        for q in range(n_q):
            out[p * n_q + q] = factor * a_x[q, j] * root[p, q]


@leaf()
def append(view: View, chosen: Chosen, atom: int, value: float, price: float) -> None:
    """Take an atom in, at the end; `price` is what a unit of its coefficient costs."""
    k = chosen.number[0]
    chosen.atoms[k], chosen.x[k] = atom, value
    write_atom(view, atom, chosen.columns[k])
    update_equations(view, chosen, k)
    chosen.rhs[k] -= price
    chosen.number[0] = k + 1


@leaf()
def update_equations(view: View, chosen: Chosen, k: int) -> None:
    """Row, column and right-hand side of atom k in the normal equations of atoms 0 to k."""
    column, columns, gram = chosen.columns[k], chosen.columns, chosen.gram
    for m in range(k + 1):
        product = long_inner(column, columns[m])
        gram[k, m] = product
        gram[m, k] = product
    chosen.rhs[k] = long_inner(column, view.target)


@leaf()
def drop(chosen: Chosen, position: int) -> None:
    """Take the atom at `position` out."""
    k = chosen.number[0] - 1
    atoms, x, rhs, columns, gram = chosen.atoms, chosen.x, chosen.rhs, chosen.columns, chosen.gram
    n_pixels, n_kept = np.uint64(columns.shape[1]), np.uint64(k)
    for m in range(position, k):
        atoms[m], x[m], rhs[m] = atoms[m + 1], x[m + 1], rhs[m + 1]
        here, behind = np.uint64(m), np.uint64(m + 1)
        for p in range(n_pixels):
            columns[here, p] = columns[behind, p]
        for n in range(n_kept + np.uint64(1)):
            gram[here, n] = gram[behind, n]
    for n in range(n_kept):
        for m in range(np.uint64(position), n_kept):
            gram[n, m] = gram[n, m + np.uint64(1)]
    chosen.number[0] = k


@leaf()
def contains(chosen: Chosen, atom: int) -> bool:
    """Whether an atom is among those chosen."""
    found = False
    for m in range(chosen.number[0]):
        found |= chosen.atoms[m] == atom
    return found


@leaf(fastmath={"contract"})
def residual(view: View, chosen: Chosen, out: FloatArray) -> None:
    """Weighted image less the chosen atoms."""
    target, columns, x, k = view.target, chosen.columns, chosen.x, chosen.number[0]
    for p in range(np.uint64(out.size)):
        out[p] = target[p]
    for m in range(0, k, 4):  # four at a time, to load and store less
        i0, i1 = np.uint64(m), np.uint64(min(m + 1, k - 1))
        i2, i3 = np.uint64(min(m + 2, k - 1)), np.uint64(min(m + 3, k - 1))
        x0, x1 = x[i0], x[i1] if m + 1 < k else 0.0
        x2, x3 = x[i2] if m + 2 < k else 0.0, x[i3] if m + 3 < k else 0.0
        for p in range(np.uint64(out.size)):
            out[p] -= (x0 * columns[i0, p] + x1 * columns[i1, p]) + (
                x2 * columns[i2, p] + x3 * columns[i3, p]
            )


@leaf()
def write_coefficients(chosen: Chosen, out: FloatArray) -> None:
    """Coefficients of the dictionary's atoms, into an `out` of zeros."""
    for m in range(chosen.number[0]):
        if chosen.atoms[m] < out.size:
            out[chosen.atoms[m]] = chosen.x[m]


@leaf()
def whole(view: View) -> Box:
    """Every cell of the map."""
    return Box(0, view.a_y.shape[1], 0, view.a_x.shape[1])


@leaf()
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


@leaf()
def largest_box(a_y: FloatArray, a_x: FloatArray) -> int:
    """Most cells that a box of `widen` can have."""
    height, width = a_y.shape[1], a_x.shape[1]
    if width == 1:
        return int(height)
    around = (2 * (height // a_y.shape[0]) + 1) * (2 * (width // a_x.shape[0]) + 1)
    return int(min(max(around, _LARGE_BOX), height * width))


@leaf()
def correlate_box(view: View, r: FloatArray, box: Box, out: FloatArray) -> None:
    """Inner products of the weighted atoms in a box with `r`, row after row of cells."""
    # Plain loops: BLAS would use threads of its own for these small products, and with other
    # processes at work it then waits more than it computes.
    height, width = box.bottom - box.top, box.right - box.left
    along_x = view.along_x[: len(view.root) * width].reshape(len(view.root), width)
    correlate_rows(view, r, box, along_x)
    if view.a_x.shape[1] == 1:  # a dense dictionary: all its atoms stand in a_y
        sum_rows(along_x, view.a_y, Box(0, 1, box.top, box.bottom), out[:height])
    else:
        cells = out[: height * width].reshape(height, width)
        multiply(view.a_y, along_x, Box(box.top, box.bottom, 0, width), cells)


@leaf()
def correlate_atom(view: View, atom: int, column: FloatArray, box: Box, out: FloatArray) -> None:
    """Inner products of the weighted atoms in a box with the atom whose column is given.

    With even weights a product is one along y times one along x.
    """
    width = box.right - box.left
    if np.isnan(view.even[0]) or view.a_x.shape[1] == 1:
        correlate_box(view, column, box, out)
        return
    height = box.bottom - box.top
    along_y, along_x = view.along_x[:height], view.along_x[height : height + width]
    pixel = atom - view.a_y.shape[1] * view.a_x.shape[1]
    if pixel >= 0:
        p, q = pixel // view.a_x.shape[0], pixel % view.a_x.shape[0]
        for i in range(height):
            along_y[i] = -view.a_y[p, box.top + i]
        for j in range(width):
            along_x[j] = view.a_x[q, box.left + j]
    else:
        i, j = atom // view.a_x.shape[1], atom % view.a_x.shape[1]
        sum_rows(view.a_y, view.a_y, Box(i, i + 1, box.top, box.bottom), along_y)
        sum_rows(view.a_x, view.a_x, Box(j, j + 1, box.left, box.right), along_x)
    for i in range(height):
        factor = view.even[0] * along_y[i]
        for j in range(width):
            out[i * width + j] = factor * along_x[j]


@leaf()
def correlate_rows(view: View, r: FloatArray, box: Box, out: FloatArray) -> None:
    """Inner products along x of the weighted `r` with a box's columns of cells, (p, right - left).

    Along y a column of `a_y` sums them up.
    """
    root, weighted = view.root, view.weighted
    n_p, n_q = root.shape
    for p in range(n_p):
        for q in range(n_q):
            weighted[q, p] = root[p, q] * r[p * n_q + q]
    multiply(weighted, view.a_x, Box(0, n_p, box.left, box.right), out)


@leaf(fastmath={"reassoc", "contract"})
def multiply(a: FloatArray, b: FloatArray, box: Box, out: FloatArray) -> None:
    """The box of ``a^T b`` into `out`: from columns ``top`` on of `a` and ``left`` on of `b`."""
    n, height, width = len(a), box.bottom - box.top, box.right - box.left
    if height == 1:
        sum_rows(a, b, box, out[0])
        return
    if n == 0:
        out[:] = 0.0
    # Indices that may be negative keep loops from being vectorised, and slices count references.
    first, last, start, stop = box.top, n - 1, np.uint64(box.left), np.uint64(width)
    for pair in range(0, height, 2):  # two rows and four terms at a time, to load and store less
        i = min(pair, height - 2)
        u, v, top, bottom = first + i, first + i + 1, np.uint64(i), np.uint64(i + 1)
        for term in range(0, n, 4):
            p, q = np.uint64(term), np.uint64(min(term + 1, last))
            r, s = np.uint64(min(term + 2, last)), np.uint64(min(term + 3, last))
            # Beyond the last term there are zeros of it.
            f = 1.0 if term < last else 0.0
            g = 1.0 if term + 1 < last else 0.0
            h = 1.0 if term + 2 < last else 0.0
            u0, u1, u2, u3 = a[p, u], f * a[q, u], g * a[r, u], h * a[s, u]
            v0, v1, v2, v3 = a[p, v], f * a[q, v], g * a[r, v], h * a[s, v]
            if term == 0:
                for j in range(stop):
                    b0, b1, b2, b3 = (
                        b[p, start + j],
                        b[q, start + j],
                        b[r, start + j],
                        b[s, start + j],
                    )
                    out[top, j] = (u0 * b0 + u1 * b1) + (u2 * b2 + u3 * b3)
                    out[bottom, j] = (v0 * b0 + v1 * b1) + (v2 * b2 + v3 * b3)
            else:
                for j in range(stop):
                    b0, b1, b2, b3 = (
                        b[p, start + j],
                        b[q, start + j],
                        b[r, start + j],
                        b[s, start + j],
                    )
                    out[top, j] += (u0 * b0 + u1 * b1) + (u2 * b2 + u3 * b3)
                    out[bottom, j] += (v0 * b0 + v1 * b1) + (v2 * b2 + v3 * b3)


@leaf(fastmath={"reassoc", "contract"})
def sum_rows(a: FloatArray, b: FloatArray, box: Box, out: FloatArray) -> None:
    """The first row of the box of ``a^T b``: a sum of rows of `b`, from column ``left`` on."""
    i, last = np.uint64(box.top), len(a) - 1
    start, stop = np.uint64(box.left), np.uint64(box.right - box.left)
    out[:] = 0.0
    for term in range(0, len(a), 4):  # four at a time, to load and store less
        p, q = np.uint64(term), np.uint64(min(term + 1, last))
        r, s = np.uint64(min(term + 2, last)), np.uint64(min(term + 3, last))
        u0 = a[p, i]
        u1 = a[q, i] if term < last else 0.0
        u2 = a[r, i] if term + 1 < last else 0.0
        u3 = a[s, i] if term + 2 < last else 0.0
        for j in range(stop):
            b0, b1 = b[p, start + j], b[q, start + j]
            b2, b3 = b[r, start + j], b[s, start + j]
            out[j] += (u0 * b0 + u1 * b1) + (u2 * b2 + u3 * b3)


@leaf(fastmath={"nnan", "nsz", "reassoc"})
def extremes(a: FloatArray) -> tuple[float, float]:
    """Smallest and largest entry of a vector."""
    least, most = np.inf, -np.inf
    for j in range(a.size):
        least = a[j] if a[j] < least else least
        most = a[j] if a[j] > most else most
    return least, most


@leaf()
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
