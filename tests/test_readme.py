"""The README's Python code and commands run, block by block, as a new user would paste them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from csunmix import GaussianPSF
from csunmix.cli import main

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.M | re.S)
COMMANDS = re.findall(r"^csunmix .*", README.read_text(), flags=re.M)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1])
def test_python_block_runs(block, capsys):
    namespace: dict[str, object] = {}
    exec(block, namespace)
    assert {"frame", "y", "x", "flux"} <= set(namespace["targets"].columns)
    assert len(namespace["targets"]) > 0


def test_there_are_two_snippets():
    assert len(BLOCKS) >= 2


def test_commands_run(tmp_path, monkeypatch, capsys):
    d = np.arange(-12, 13) / 4
    psf = GaussianPSF(sigma=0.8)
    np.save(tmp_path / "psf.npy", psf.kernel(d[:, None], d))
    image = 100.0 + 500.0 * psf.response(7.3, 6.8, (15, 15))
    np.savez(tmp_path / "frames.npz", images=[image, image.T], others=[image])
    monkeypatch.chdir(tmp_path)
    assert {command.split()[1] for command in COMMANDS} == {
        "simulate",
        "unmix",
        "evaluate",
        "compare",
        "info",
    }
    for command in COMMANDS:
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)
    assert "warning" not in capsys.readouterr().err


def test_files_and_pictures_named_in_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        if "://" not in target:
            assert (README.parent / target).exists(), target


def test_make_targets_named_in_the_readme_exist():
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README.read_text(), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
