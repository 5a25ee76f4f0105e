"""Kernels compiled ahead of a run, in processes side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import csunmix as cu
from csunmix import _ahead

SCRIPT = """
from numba.core import event

import csunmix as cu
from csunmix._ahead import compile_ahead, compiles
s = cu.presets.csist_100k()
images = cu.simulate(s.psf, s.sensor, s.scene, shape=s.shape, n=20, rng=1).images
unmix = {method}
before = compiles()
compile_ahead([unmix], images[0])
with event.install_recorder("numba:compile") as recorder:
    unmix(images)
print(before, compiles(), [e.data["dispatcher"] for _, e in recorder.buffer if e.is_start])
"""
METHODS = {
    "refined": "cu.grid_unmixer(psf=s.psf, shape=s.shape, prior=s.prior, refine=True)",
    "posterior": "cu.PosteriorUnmixer(s.psf, s.sensor, s.prior)",
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_finds_all_compiled(method: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(method=METHODS[method]))
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    argv = [sys.executable, str(script)]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("True False []\n", "")


def test_a_task_that_fails_is_left_to_the_run(monkeypatch: Any, tmp_path: Path, capfd: Any) -> None:
    tasks = [partial(os.mkdir, tmp_path / "no" / "folder"), partial(os.mkdir, tmp_path / "mark")]
    monkeypatch.setattr(_ahead, "_tasks", lambda unmixer, image: iter(tasks))
    _ahead.compile_ahead([None], np.zeros((3, 3)))
    assert (tmp_path / "mark").exists()
    assert capfd.readouterr() == ("", "")


def test_a_single_part_is_left_to_the_run(monkeypatch: Any, tmp_path: Path) -> None:
    started = partial(os.mkdir, tmp_path / "mark")
    monkeypatch.setattr(_ahead, "_tasks", lambda unmixer, image: iter([started]))
    _ahead.compile_ahead([None], np.zeros((3, 3)))
    monkeypatch.setattr(_ahead, "_tasks", lambda unmixer, image: iter([started, started]))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    _ahead.compile_ahead([None], np.zeros((3, 3)))
    assert not (tmp_path / "mark").exists()


def test_what_has_no_parts() -> None:
    setup = cu.presets.csist_100k()
    optics = {"psf": setup.psf, "shape": setup.shape, "sensor": setup.sensor}
    chains = cu.PosteriorUnmixer(setup.psf, setup.sensor, setup.prior, sampler="smc")
    for unmixer, parts in ((cu.grid_unmixer(**optics), 1), (chains, 1), (object(), 0)):
        assert len(list(_ahead._tasks(unmixer, np.zeros(setup.shape)))) == parts
