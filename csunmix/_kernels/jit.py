"""How kernels are compiled."""

from __future__ import annotations

from functools import partial

import numba

kernel = partial(
    numba.njit,
    cache=True,
    nogil=True,
    no_cfunc_wrapper=True,
    error_model="numpy",
    # Said although they are the defaults: a function that does not say takes them from whichever
    # caller is compiled first, and results would depend on the order of calls in the last digit.
    fastmath=False,
    _nrt=True,
)
"""Compile a function, kept on disk for the next process, that lets other threads run.

Division by zero gives an infinity or NaN, as NumPy has it.

numba compiles a function once more for an argument that is a literal or left to its default, so
that kernels call each other with variables, and say what a default would.
"""

leaf = partial(kernel, _nrt=False)
"""Compile a function that neither makes arrays nor returns one, and calls leaves alone.

It need not count references to those it is given: with named tuples of them, numba would do so at
every call, which costs more than what a short function has to do, and longer to compile.
"""
