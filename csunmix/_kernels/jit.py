"""How kernels are compiled.

numba makes machine code of every function by itself, with all that this calls, and wraps it for
Python: of one that is called by others at five levels, five times. Here only a `kernel` is, which
Python calls, or another one by its address (see `pointer`); what it is made of, each `part`, `glue`
and `leaf`, goes into it as it is, and the first call on a machine waits less long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

from csunmix._kernels.compiler import Glue, Kernel, Part, Pointer, Unrolled, compile_kernel

F = TypeVar("F", bound=Callable[..., Any])

_CONFIG: Any = numba.config  # which has what the environment says
_OPTIONS = {
    "nopython": True,
    "nogil": True,
    "no_cfunc_wrapper": True,
    "error_model": "numpy",
    # Said although they are the defaults: a function that does not say takes them from whichever
    # caller is compiled first, and results would depend on the order of calls in the last digit.
    "fastmath": False,
    "_nrt": True,
}


def kernel(unrolled: bool = False, **options: Any) -> Callable[[F], F]:
    """Compile a function, kept on disk for the next process, that lets other threads run.

    Division by zero gives an infinity or NaN, as NumPy has it. `unrolled` is for what spends its
    time in long loops over arrays; others take longer to compile and are none the faster for it.
    A part that may reorder sums (`fastmath`) differs in the last digit between the two.
    """
    kind = Unrolled if unrolled else Kernel
    return _decorator(lambda function, told: compile_kernel(function, told, kind), options)


def pointer(kernel: Callable[..., Any], given: tuple[Any, ...], returned: Any) -> Any:
    """A kernel for another to call that is given it, and compiled without it.

    It takes arguments by position, of the types of these examples, and returns such. It is one made
    with ``no_cfunc_wrapper=False``. An error in it is printed, not raised, and what it returns has
    no elements then.
    """
    return Pointer(kernel, given, returned) if isinstance(kernel, Kernel) else kernel


def part(**options: Any) -> Callable[[F], F]:
    """Make a function a part of the kernels that call it.

    numba compiles it once more for an argument left to its default, so that callers say that too.
    """
    return _decorator(lambda function, told: Part(function, targetoptions=told), options)


def glue(**options: Any) -> Callable[[F], F]:
    """Make a part that runs seldom, as what leads from one descent to the next.

    It is hardly optimised, which takes less long.
    """
    return _decorator(lambda function, told: Glue(function, targetoptions=told), options)


def leaf(**options: Any) -> Callable[[F], F]:
    """Make a part of a function that neither makes arrays nor returns one, and calls leaves alone.

    It need not count references to those it is given: with named tuples of them, numba would do so
    at every call, which costs more than what a short function has to do, and longer to compile.
    """
    return part(_nrt=False, **options)


def _decorator(
    make: Callable[[Any, dict[str, Any]], Any], options: dict[str, Any]
) -> Callable[[F], F]:
    """What makes something of a function, or leaves it be where compilation is turned off."""

    def decorate(function: F) -> F:
        return function if _CONFIG.DISABLE_JIT else cast(F, make(function, _OPTIONS | options))

    return decorate
