"""How kernels are compiled: what goes into them, what is kept, and what is left as numba has it."""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import pkgutil
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import llvmlite
import numba
import numpy as np
import pytest
from numba.core import event
from numba.core.caching import NullCache

from csunmix import _kernels
from csunmix._kernels import (
    compiler,
    jit,
    linalg,
    shortcuts,
)


def test_leaves_call_no_kernel() -> None:
    """What a leaf is the first to call is compiled as it is, and could not make an array."""
    names = [each.name for each in pkgutil.iter_modules(_kernels.__path__)]
    found = [vars(importlib.import_module(f"csunmix._kernels.{name}")) for name in names]
    leaves = 0
    for module in found:
        compiled = {name: each for name, each in module.items() if hasattr(each, "py_func")}
        plain = {name for name, each in compiled.items() if each.targetoptions.get("_nrt", True)}
        for name in set(compiled) - plain:
            if compiled[name].py_func.__module__ == module["__name__"]:
                leaves += 1
                assert not plain & set(compiled[name].py_func.__code__.co_names), name
    assert leaves > 50


@pytest.mark.parametrize("alone_first", [False, True])
def test_parts_serve_kernels_and_python(alone_first: bool) -> None:
    @jit.leaf()
    def double(x: float) -> float:
        return x + x

    @jit.part()
    def doubled(a: Any) -> Any:
        out = np.empty(a.size)
        for i in range(a.size):
            out[i] = double(a[i])
        return out

    @jit.kernel()
    def total(a: Any) -> float:
        return float(doubled(a).sum() + double(1.0))

    a = np.arange(4.0)
    calls = [lambda: total(a) == 14.0, lambda: double(2.5) == 5.0, lambda: sum(doubled(a)) == 12.0]
    assert all(call() for call in (calls[::-1] if alone_first else calls))
    assert all(call() for call in calls)


def test_a_part_that_one_caller_never_reaches_is_there_for_another() -> None:
    @jit.part()
    def inner(x: float) -> float:
        return 2.0 * x

    @jit.part()
    def never(x: float) -> float:
        return inner(x) if x != x and x == x else x

    @jit.part()
    def always(x: float) -> float:
        return inner(x)

    @jit.kernel()
    def both(x: float) -> float:
        return never(x) + always(x)

    assert both(1.5) == 4.5


def test_a_part_is_compiled_once_for_literals_and_variables() -> None:
    @jit.part()
    def times(x: float, n: int, twice: bool) -> float:
        return x * n * (2 if twice else 1)

    @jit.kernel()
    def summed(x: float, n: int) -> float:
        return times(x, n, n > 3) + times(x, 2, False) + times(x, twice=True, n=3)

    assert summed(1.0, 5) == 10.0 + 2.0 + 6.0
    assert len(times.overloads) == 1  # type: ignore[attr-defined]


@pytest.mark.skipif(jit._CONFIG.DISABLE_JIT, reason="nothing is compiled")
def test_a_kernel_is_called_by_its_address() -> None:
    def twice(function: Any, a: Any) -> float:
        out, by = function(a, 2.0)
        return float(out.sum() + by)

    a, caller = np.arange(3.0), anew(twice)
    scaled = anew(lambda a, by: (by * a, by), no_cfunc_wrapper=False)
    pointer = jit.pointer(scaled, (a, 1.0), (a, 1.0))
    caller.compile_for(pointer, a)
    assert (len(caller.signatures), len(scaled.signatures)) == (1, 0)
    assert caller(pointer, a) == caller(pointer, a) == 8.0
    assert caller(jit.pointer(scaled, (a, 1.0), (a, 1.0)), a) == 8.0
    assert (len(caller.signatures), len(scaled.signatures)) == (1, 1)
    with pytest.raises(TypeError, match="has the signature"):
        caller(jit.pointer(scaled, (a, 1.0), (a, 1)), a)


@pytest.mark.skipif(jit._CONFIG.DISABLE_JIT, reason="nothing is compiled")
def test_what_runs_seldom_is_left_as_it_is() -> None:
    @jit.glue()
    def rare(a: Any) -> float:
        return float(a[0] + a[1])

    @jit.part()
    def frequent(a: Any) -> float:
        return float(a[0] * a[1])

    kernel = anew(lambda a: rare(a) + frequent(a))
    assert kernel(np.array([2.0, 3.0])) == 11.0
    (written,) = kernel.inspect_llvm().values()
    kept = [line for line in written.splitlines() if re.match(r"define.*(rare|frequent)", line)]
    if tuple(map(int, llvmlite.__version__.split(".")[:2])) >= (0, 48):
        assert len(kept) == 1
        (attributes,) = re.findall(r"#\d+", kept[0])
        (told,) = re.findall(rf"attributes {attributes} = .*", written)
        assert "rare" in kept[0]
        assert {"noinline", "optnone"} <= set(told.split())


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_looked_for_as_before_once_a_kernel_is_compiled(collects: bool) -> None:
    @jit.kernel()
    def half(x: float) -> float:
        return 0.5 * x

    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        assert half(3.0) == 1.5
        assert gc.isenabled() is collects
        with pytest.raises(numba.TypingError):
            half("three")  # type: ignore[arg-type]
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()


class Pair(NamedTuple):
    rows: Any
    weight: Any
    level: float


def weighted() -> Any:
    """A kernel and a part of it, compiled anew."""

    @jit.part()
    def times(pair: Pair, i: int) -> Any:
        out = np.empty(pair.rows.shape[1])
        for j in range(out.size):
            out[j] = pair.weight[i] * max(pair.rows[i, j], pair.level)
        return out

    def total(pair: Pair) -> float:
        s = 0.0
        for i in range(pair.rows.shape[0]):
            s += times(pair, i)[0] + 2.0 * pair.weight[0] ** 2
        return s

    return anew(total)


def anew(function: Any, **options: Any) -> Any:
    """A kernel that is not kept on disk, where there may be one of the same name."""
    kernel: Any = jit.kernel(**options)(function)
    kernel._cache = NullCache()
    return kernel


def code(kernel: Any) -> str:
    """Machine code of a kernel that was called, without names."""
    (written,) = kernel.inspect_asm().values()
    return re.sub(r"\.size.*|_Z\w+|\.L\w+|numba\.\S+|\.const\.\S+", "", written)


@pytest.mark.parametrize("value", [1.5, 3])
def test_squares_are_products(value: float) -> None:
    square = anew(lambda x: x**2)
    product = anew(lambda x: x * x)
    cube = anew(lambda x: x**3)
    exact = anew(lambda x: x**2.0)
    assert square(value) == product(value) == value * value
    assert code(square) == code(product)
    assert cube(value) == value**3
    assert exact(value) == value**2.0
    assert isinstance(exact(value), float)


def test_shortcuts_do_not_change_code(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(np.arange(6.0).reshape(3, 2), np.array([1.0, 2.0, 3.0]), 0.5)
    short = weighted()
    assert short(pair) == 0.5 + 4.0 + 12.0 + 6.0
    monkeypatch.setattr(compiler, "shortcuts", nullcontext)
    plain = weighted()
    plain(pair)
    assert code(short) == code(plain)


def test_only_long_loops_are_unrolled() -> None:
    def total(a: Any) -> float:
        s = 0.0
        for i in range(a.size):
            s += a[i] * a[i]
        return s

    a = np.arange(9.0)
    rolled: Any = anew(total)
    unrolled: Any = compiler.Unrolled(total, targetoptions=rolled.targetoptions)
    assert rolled(a) == unrolled(a) == 204.0
    if numba.version_info.short >= (0, 62):
        assert len(code(rolled)) < len(code(unrolled))


def test_timers_of_other_threads_go_on() -> None:
    timers: list[Any] = []

    def timed() -> None:
        with event.install_timer("numba:compile", print) as timer:
            timers.append(timer)

    with shortcuts.shortcuts():
        other = Thread(target=timed)
        other.start()
        other.join()
    assert isinstance(timers[0], event.TimingListener)


def test_numba_is_its_own_again_once_a_kernel_is_compiled() -> None:
    @jit.kernel()
    def half(x: float) -> float:
        return 0.5 * x

    ways = [(owner, name) for owner, name, _ in shortcuts._SHORTCUTS]
    before = [getattr(owner, name) for owner, name in ways]
    assert half(3.0) == 1.5
    with pytest.raises(numba.TypingError):
        half("three")  # type: ignore[arg-type]
    assert [getattr(owner, name) for owner, name in ways] == before


def run(code: str, cache: Path) -> str:
    """What a new process prints that keeps its kernels in a folder."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_kernels_are_kept_until_a_file_of_theirs_changes(tmp_path: Path) -> None:
    call = (
        "import numpy as np; from csunmix._kernels.claims import envelope as f;"
        "f(np.ones(3, bool), np.empty(3)); print(*map(sum, map(dict.values, f.stats[1:])))"
    )
    changed = "from csunmix._kernels import compiler; compiler._digest = lambda: 'other'; "
    assert [run(c + call, tmp_path) for c in ("", "", changed)] == ["0 1", "1 0", "0 1"]


OTHERS = """
import numba
from csunmix._kernels.jit import kernel

@kernel()
def first(x, y):
    return max(x, y) + 1.0

@numba.njit(fastmath=True)
def hasty(x, y):
    return max(x, y)

@kernel()
def second(x, y):
    return max(x, y) - 1.0

for each in (first, hasty, second):
    each(1.0, 2.0)
    print(" fast " in str(each.inspect_llvm()))
"""


def test_a_kernel_is_the_same_whatever_was_compiled_before(tmp_path: Path) -> None:
    (tmp_path / "others.py").write_text(OTHERS)
    call = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import others"
    assert run(call, tmp_path / "cache") == "False\nTrue\nFalse"


def test_parts_reach_other_processes(tmp_path: Path) -> None:
    file = tmp_path / "part.pkl"
    file.write_bytes(pickle.dumps(linalg.inner))
    load = f"import pickle; inner = pickle.load(open({str(file)!r}, 'rb'));"
    call = "import numpy as np; print(inner(np.array([1.0, 2.0]), np.array([1.0, 2.0])))"
    assert run(load + call, tmp_path) == "5.0"
