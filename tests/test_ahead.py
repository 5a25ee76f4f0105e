"""Kernels compiled ahead of a run, in processes side by side."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import csunmix as cu
from csunmix import _ahead
from csunmix._ahead import Step
from csunmix._kernels import compiler, jit
from csunmix.continuous import SlidingFrankWolfe, ahead
from csunmix.solvers import ahead as of_solvers

SCRIPT = """
from numba.core import event

import csunmix as cu
from csunmix._ahead import missing, prepare
s = cu.presets.csist_100k()
images = cu.simulate(s.psf, s.sensor, s.scene, shape=s.shape, n=20, rng=1).images
unmix = {method}
steps = missing(unmix)
prepare(unmix, progress=True)
with event.install_recorder("numba:compile") as recorder:
    unmix(images)
compiled = [e.data["dispatcher"] for _, e in recorder.buffer if e.is_start]
print(len(steps), missing(unmix), compiled)
"""
METHODS = {
    "cu.grid_unmixer(psf=s.psf, shape=s.shape, prior=s.prior, refine=True)": 3,
    "cu.PosteriorUnmixer(s.psf, s.sensor, s.prior)": 2,
}


@pytest.mark.skipif(_ahead.processors() < 2, reason="one processor compiles one after the other")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_finds_all_compiled(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(method=method))
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    argv = [sys.executable, str(script)]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == (
        f"{METHODS[method]} [] []\n",
        f"csunmix: {_ahead.NOTICE}\n",
    )


def making(path: Path) -> Step:
    """A step that makes a folder."""
    return Step(None, ("os", "mkdir", str(path)))


def test_garbage_is_looked_for_again_after_compiling() -> None:
    before = gc.isenabled()
    gc.enable()
    try:
        with _ahead.no_collection():
            with _ahead.no_collection():
                assert not gc.isenabled()
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() == 0
    finally:
        (gc.enable if before else gc.disable)()


def test_a_step_that_fails_is_left_to_the_run(tmp_path: Path, capfd: Any) -> None:
    for order in (1, -1):
        mark = tmp_path / f"mark{order}"
        _ahead.compile_ahead([making(tmp_path / "no" / "folder"), making(mark)][::order])
        assert mark.exists() is (_ahead.processors() > 1)
    assert capfd.readouterr() == ("", "")


def test_a_single_step_is_left_to_the_run(monkeypatch: Any, tmp_path: Path) -> None:
    step = making(tmp_path / "mark")
    _ahead.compile_ahead([step, Step(None)])
    monkeypatch.setattr(_ahead, "processors", lambda: 1)
    _ahead.compile_ahead([step, step])
    assert not (tmp_path / "mark").exists()


def test_no_more_processes_than_processors(monkeypatch: Any, tmp_path: Path) -> None:
    started = list[Any]()
    start = _ahead._start
    monkeypatch.setattr(_ahead, "_start", lambda calls: started.append(calls) or start(calls))
    for n in (2, 3, 9):
        monkeypatch.setattr(_ahead, "processors", lambda n=n: n)
        marks = [tmp_path / f"{n}-{i}" for i in range(5)]
        _ahead.compile_ahead([making(marks[0]), *map(making, marks)])  # the second fails
        assert [mark.exists() for mark in marks] == 5 * [True]
    assert [len(calls) for calls in started] == [5, 3, 2, 1, 1, 1, 1, 1]


def test_where_no_process_can_be_started(monkeypatch: Any, tmp_path: Path) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(_ahead, "processors", lambda: 2)
    monkeypatch.setattr(_ahead, "Popen", refused)
    marks = [tmp_path / str(i) for i in range(2)]
    _ahead.compile_ahead([making(mark) for mark in marks])
    assert [mark.exists() for mark in marks] == [True, False]


def test_a_step_that_hangs_is_left_to_the_run(monkeypatch: Any, tmp_path: Path) -> None:
    module = tmp_path / "waiting.py"
    module.write_text("import time\ndef wait(seconds): time.sleep(float(seconds))\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_ahead, "processors", lambda: 2)
    monkeypatch.setattr(_ahead, "_PATIENCE", 0.1)
    calls = ("waiting", "wait", "0"), ("waiting", "wait", "1000")
    _ahead.compile_ahead([Step(None, call) for call in calls])  # comes back


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_no_step_outlives_the_program(sent: signal.Signals, tmp_path: Path) -> None:
    module = tmp_path / "waiting.py"
    module.write_text("import time\ndef wait(seconds): time.sleep(float(seconds))\n")
    code = (
        f"import sys; sys.path.append({str(tmp_path)!r}); from csunmix import _ahead;"
        "_ahead.processors = lambda: 2; call = 'waiting', 'wait', '1000';"
        "_ahead.compile_ahead(2 * [_ahead.Step(None, call)])"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as program:
        assert any(children_of(program.pid) or time.sleep(0.1) for _ in range(600))
        children = children_of(program.pid)
        program.send_signal(sent)
    assert any(not any(map(running, children)) or time.sleep(0.1) for _ in range(100))


def children_of(pid: int) -> list[int]:
    told = Path(f"/proc/{pid}/task/{pid}/children")
    if not told.exists():
        pytest.skip("the system does not tell the children of a process")
    return [int(child) for child in told.read_text().split()]


def running(pid: int) -> bool:
    """Whether a process is there, and has not ended without its parent's notice."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_is_compiled_side_by_side() -> None:
    setup = cu.presets.csist_100k()
    optics: dict[str, Any] = {"psf": setup.psf, "shape": setup.shape, "sensor": setup.sensor}
    told = setup.psf, setup.sensor, setup.prior
    kernels = {
        cu.grid_unmixer(**optics): ["active_set"],
        cu.grid_unmixer(**optics, prior=setup.prior, refine=True): [
            "refine",
            "explore",
            "active_set",
        ],
        cu.grid_unmixer("omp", **optics): ["orthogonal_matching_pursuit"],
        cu.grid_unmixer("matching-pursuit", **optics): ["matching_pursuit"],
        cu.grid_unmixer("fista", **optics): ["proximal_steps"],
        cu.grid_unmixer("ista", **optics): ["spectral_steps"],
        cu.grid_unmixer("split-bregman", **optics): [],
        cu.MomentUnmixer(*told): ["fit_moments"],
        cu.ContinuousUnmixer(*told): ["search", "scatter"],
        cu.ContinuousUnmixer(*told, n_effective=0): ["search", "judge"],
        cu.PosteriorUnmixer(*told, sampler="hops"): ["search", "scatter"],
        cu.PosteriorUnmixer(*told, sampler="smc"): ["search", "sample"],
        SlidingFrankWolfe(setup.psf): ["frank_wolfe"],
    }
    for unmixer, names in kernels.items():
        assert [step.kernel.__name__ for step in unmixer._to_compile()] == names


def test_steps_call_what_there_is(monkeypatch: Any) -> None:
    solvers = cu.ActiveSet(lam=0.1), cu.OMP(n_nonzero=2), cu.FISTA(lam=0.1), cu.ISTA(lam=0.1)
    steps = [step for solver in solvers for step in of_solvers.steps_for(solver)]
    steps += [*ahead.REFINEMENT, *ahead.ESTIMATION, *ahead.SMC]
    called = []
    for module, function, *given in (step.call for step in steps):
        monkeypatch.setattr(f"{module}.{function}", lambda *told: called.append(told))
        _ahead._do((module, function, *given))
        assert called.pop() == tuple(given)


def test_a_grid_method_is_compiled_by_its_name() -> None:
    of_solvers.compile_method("matching-pursuit")
    assert of_solvers.matching_pursuit.is_there
    with pytest.raises(ValueError, match="method must be one of"):
        of_solvers.compile_method("guessing")


def test_solvers_of_others_are_left_to_the_run() -> None:
    class Own(cu.ActiveSet):
        pass

    assert of_solvers.steps_for(Own(lam=0.1)) == ()


@pytest.mark.skipif(jit._CONFIG.DISABLE_JIT, reason="nothing is compiled")
def test_kernels_are_looked_for_where_numba_keeps_them(tmp_path: Path) -> None:
    """Nothing counts that is of an older file, or of another processor."""
    folder = tmp_path / "csunmix"
    shutil.copytree(Path(cu.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys, numpy as np; from csunmix._kernels.labels import describe;"
        "print(describe.is_there); 'call' in sys.argv and describe(np.ones((1, 1, 3)), np.ones(1),"
        " 0.1); print(describe.is_there); describe.targetctx.codegen().__class__.magic_tuple = "
        "lambda _: ('another',); describe.overloads.clear(); print(describe.is_there)"
    )
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": str(tmp_path),
    }

    def told(*given: str) -> str:
        argv = [sys.executable, "-c", code, *given]
        done = subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=tmp_path)
        return done.stdout

    assert told("call") == "False\nTrue\nFalse\n"
    assert told() == "True\nTrue\nFalse\n"
    with (folder / "_kernels" / "linalg.py").open("a") as file:
        file.write("# changed\n")
    assert told() == "False\nFalse\nFalse\n"


def test_tables_of_any_optics_have_one_layout() -> None:
    """Kernels are compiled once more for another."""
    setup = cu.presets.csist_100k()
    for psf in (setup.psf, cu.AiryPSF(1.2)):
        unmixer = cu.MomentUnmixer(psf, setup.sensor, setup.prior)
        for table in unmixer._setting(setup.shape).optics:
            assert table.flags.c_contiguous


@pytest.mark.parametrize("method", ["grid", "moments", "continuous", "posterior", "frank-wolfe"])
@pytest.mark.parametrize("progress", [False, True])
def test_a_call_compiles_first_and_says_so(
    method: str, progress: bool, monkeypatch: Any, caplog: Any, capsys: Any
) -> None:
    setup, asked = cu.presets.csist_100k(), list[Any]()
    told = setup.psf, setup.sensor, setup.prior
    unmixer: Any = {
        "grid": cu.grid_unmixer(psf=setup.psf, shape=setup.shape),
        "moments": cu.MomentUnmixer(*told),
        "continuous": cu.ContinuousUnmixer(*told, n_effective=0),
        "posterior": cu.PosteriorUnmixer(*told, n_effective=30),
        "frank-wolfe": SlidingFrankWolfe(setup.psf, lam=0.1),
    }[method]
    image = np.rint(230.0 * setup.psf.response(5.2, 4.7, setup.shape))
    unmixer(image)
    monkeypatch.setattr(_ahead, "compile_ahead", asked.append)
    with caplog.at_level(logging.INFO, logger="csunmix"):
        unmixer(image, progress=progress)
        assert (caplog.messages, asked) == ([], [])
        monkeypatch.setattr(compiler.Kernel, "is_there", False)
        unmixer(image, progress=progress)
    assert caplog.messages == [_ahead.NOTICE]
    assert asked == [list(unmixer._to_compile())]
    assert (_ahead.NOTICE in capsys.readouterr().err) is progress


@pytest.mark.parametrize("name", ["", "/opt/viewer/viewer", "C:/PythonEditor.exe"])
def test_no_other_program_is_started(name: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", name)
    step = making(tmp_path / "mark")
    _ahead.compile_ahead([step, step])
    assert not (tmp_path / "mark").exists()


def test_no_process_starts_another_while_it_begins(tmp_path: Path) -> None:
    """One that is spawned runs the program once more."""
    script = tmp_path / "script.py"
    script.write_text(
        "from multiprocessing import get_context\n"
        "from csunmix._ahead import _can_start_python\n"
        "print(_can_start_python(), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    process = get_context('spawn').Process(target=print)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"]
