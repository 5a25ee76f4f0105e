"""The README's Python code runs, block by block, as a new user would paste it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1])
def test_python_block_runs(block, capsys):
    namespace: dict[str, object] = {}
    exec(block, namespace)
    assert {"frame", "y", "x", "flux"} <= set(namespace["targets"].columns)
    assert len(namespace["targets"]) > 0


def test_there_are_two_snippets():
    assert len(BLOCKS) >= 2


def test_files_and_pictures_named_in_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        if "://" not in target:
            assert (README.parent / target).exists(), target


def test_make_targets_named_in_the_readme_exist():
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README.read_text(), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
