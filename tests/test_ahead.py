"""Kernels compiled ahead of a run, in processes side by side."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import csunmix as cu
from csunmix import _ahead
from csunmix.continuous import SlidingFrankWolfe

SCRIPT = """
from numba.core import event

import csunmix as cu
from csunmix._ahead import missing, prepare
s = cu.presets.csist_100k()
images = cu.simulate(s.psf, s.sensor, s.scene, shape=s.shape, n=20, rng=1).images
unmix = {method}
steps = missing(unmix, images[0])
prepare(unmix, images[0], progress=True)
with event.install_recorder("numba:compile") as recorder:
    unmix(images)
compiled = [e.data["dispatcher"] for _, e in recorder.buffer if e.is_start]
print(len(steps), missing(unmix, images[0]), compiled)
"""
METHODS = {
    "refined": "cu.grid_unmixer(psf=s.psf, shape=s.shape, prior=s.prior, refine=True)",
    "posterior": "cu.PosteriorUnmixer(s.psf, s.sensor, s.prior)",
}


@pytest.mark.skipif(_ahead.processors() < 2, reason="one processor compiles one after the other")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_finds_all_compiled(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(method=METHODS[method]))
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    argv = [sys.executable, str(script)]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("2 [] []\n", f"csunmix: {_ahead.NOTICE}\n")


def test_a_step_that_fails_is_left_to_the_run(tmp_path: Path, capfd: Any) -> None:
    makers = partial(os.mkdir, tmp_path / "no" / "folder"), partial(os.mkdir, tmp_path / "mark")
    _ahead.compile_ahead([_ahead.Step(make, "") for make in makers])
    assert (tmp_path / "mark").exists() is (_ahead.processors() > 1)
    assert capfd.readouterr() == ("", "")


def test_a_single_step_is_left_to_the_run(monkeypatch: Any, tmp_path: Path) -> None:
    step = _ahead.Step(partial(os.mkdir, tmp_path / "mark"), "")
    _ahead.compile_ahead([step])
    monkeypatch.setattr(_ahead, "processors", lambda: 1)
    _ahead.compile_ahead([step, step])
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_no_step_outlives_the_program(sent: signal.Signals, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = (
        "from csunmix import _ahead; from functools import partial; import os, time;"
        f"_ahead.processors = lambda: 2; mark = partial(os.mkdir, {str(mark)!r});"
        "_ahead.compile_ahead([_ahead.Step(mark, ''), _ahead.Step(partial(time.sleep, 1000), '')])"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as program:
        assert any(mark.exists() or time.sleep(0.1) for _ in range(600))
        children = children_of(program.pid)
        program.send_signal(sent)
    assert children
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
    optics = {"psf": setup.psf, "shape": setup.shape, "sensor": setup.sensor}
    chains = cu.PosteriorUnmixer(setup.psf, setup.sensor, setup.prior, sampler="hops")
    kept = {
        cu.grid_unmixer(**optics): ["active_set.*.nbi"],
        cu.grid_unmixer("omp", **optics): ["pursuit.*.nbi"],
        cu.grid_unmixer("split-bregman", **optics): ["*.nbi"],
        chains: ["importance.scatter-*.nbi", "hops.wander-*.nbi"],
    }
    for unmixer, files in kept.items():
        found = unmixer._to_compile(np.zeros(setup.shape))
        assert [step.kept for step in found] == files


def test_what_is_not_the_projects_own_is_left_to_the_run() -> None:
    setup = cu.presets.csist_100k()

    class Own:
        def solve(self, dictionary: cu.Dictionary, images: Any) -> Any: ...

    dictionary, peaks = cu.Dictionary(setup.psf, setup.shape, 3), cu.EveryCell(threshold=1.0)
    unmixer = cu.GridUnmixer(dictionary, solver=Own(), peaks=peaks)
    assert not list(unmixer._to_compile(np.zeros(setup.shape)))

    class Mine(cu.GridUnmixer):
        def __init__(self) -> None:
            super().__init__(dictionary, solver=cu.ActiveSet(lam=0.1), peaks=peaks)

    assert not list(Mine()._to_compile(np.zeros(setup.shape)))
    Mine()(np.ones(setup.shape))
    large = cu.grid_unmixer(psf=setup.psf, shape=(100, 100))
    assert not list(large._to_compile(np.zeros((100, 100))))


@pytest.mark.parametrize("method", ["grid", "continuous", "posterior", "frank-wolfe"])
@pytest.mark.parametrize("progress", [False, True])
def test_a_call_compiles_first_and_says_so(
    method: str, progress: bool, monkeypatch: Any, caplog: Any, capsys: Any
) -> None:
    setup, ahead = cu.presets.csist_100k(), list[Any]()
    told = setup.psf, setup.sensor, setup.prior
    unmixer: Any = {
        "grid": cu.grid_unmixer(psf=setup.psf, shape=setup.shape),
        "continuous": cu.ContinuousUnmixer(*told, n_effective=0),
        "posterior": cu.PosteriorUnmixer(*told, n_effective=30),
        "frank-wolfe": SlidingFrankWolfe(setup.psf, lam=0.1),
    }[method]
    image = np.rint(230.0 * setup.psf.response(5.2, 4.7, setup.shape))
    unmixer(image)
    monkeypatch.setattr(_ahead, "compile_ahead", ahead.append)
    with caplog.at_level(logging.INFO, logger="csunmix"):
        unmixer(image, progress=progress)
        assert (caplog.messages, ahead) == ([], [])
        monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
        unmixer(image, progress=progress)
    assert caplog.messages == [_ahead.NOTICE]
    steps = [step.kept for step in unmixer._to_compile(image)]
    assert [[step.kept for step in each] for each in ahead] == [steps]
    assert (_ahead.NOTICE in capsys.readouterr().err) is progress


def test_what_cannot_be_sent_is_left_to_the_run(tmp_path: Path) -> None:
    marks = [tmp_path / str(i) for i in range(3)]
    steps = [_ahead.Step(partial(os.mkdir, mark), "") for mark in marks]
    steps[0] = _ahead.Step(lambda: os.mkdir(marks[0]), "")
    _ahead.compile_ahead(steps)
    made = [mark.exists() for mark in marks]
    assert made == [False, *[_ahead.processors() > 1] * 2]


@pytest.mark.parametrize("name", ["", "/opt/viewer/viewer"])
def test_no_other_program_is_started(name: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", name)
    step = _ahead.Step(partial(os.mkdir, tmp_path / "mark"), "")
    _ahead.compile_ahead([step, step])
    assert not (tmp_path / "mark").exists()
