"""What the methods that choose atom by atom share: a weighted image, and the atoms chosen for it.

Images, columns and coefficients are flat, row-major vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from csunmix._kernels.linalg import add, inner
from csunmix._validation import FloatArray, IntArray


class View(NamedTuple):
    """An image and the dictionary, both seen through the square roots of the pixels' weights.

    Behind the dictionary's atoms stands one for each pixel, the negative of that pixel alone: where
    a pixel is a lower bound, it takes up what the fit has above the bound.
    """

    a_y: FloatArray
    a_x: FloatArray
    root: FloatArray  # (p, q)
    target: FloatArray  # (p q,), the weighted image


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
    root, target = np.sqrt(weights), np.empty(y.size)
    for p in range(y.shape[0]):
        for q in range(y.shape[1]):
            target[p * y.shape[1] + q] = root[p, q] * y[p, q]
    return View(a_y, a_x, root, target)


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
        product = inner(chosen.columns[k], chosen.columns[m])
        chosen.gram[k, m] = product
        chosen.gram[m, k] = product
    chosen.rhs[k] = inner(chosen.columns[k], view.target)


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
    """Coefficients of the dictionary's atoms."""
    for atom in range(out.size):
        out[atom] = 0.0
    for m in range(chosen.number[0]):
        if chosen.atoms[m] < out.size:
            out[chosen.atoms[m]] = chosen.x[m]


@numba.njit(cache=True, nogil=True)
def correlate(view: View, r: FloatArray, out: FloatArray) -> float:
    """Inner products of all weighted atoms with `r`; returns the largest."""
    # Plain loops: BLAS would use threads of its own for these small products, and with other
    # processes at work it then waits more than it computes.
    n_p, n_q = view.root.shape
    width = view.a_x.shape[1]
    n_atoms = view.a_y.shape[1] * width
    along_x = np.zeros((n_p, width))
    for p in range(n_p):
        for q in range(n_q):
            add(view.root[p, q] * r[p * n_q + q], view.a_x[q], along_x[p])
    for atom in range(n_atoms):
        out[atom] = 0.0
    for p in range(n_p):
        if width == 1:  # a dense dictionary: all its atoms stand in a_y
            add(along_x[p, 0], view.a_y[p], out)
        else:
            for i in range(view.a_y.shape[1]):
                add(view.a_y[p, i], along_x[p], out[i * width : (i + 1) * width])
    largest = -np.inf
    for atom in range(n_atoms):
        largest = max(largest, out[atom])
    return largest


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
