"""Make the notebooks of this folder from its percent-format scripts, and execute them.

    python examples/make_notebooks.py

The scripts (``01_*.py``, ``02_*.py``, ...) are the source; edit those. Needs the extra
``csunmix[dev]``.
"""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SCRIPTS = sorted(HERE.glob("[0-9][0-9]_*.py"))


def read_script(path: Path) -> nbformat.NotebookNode:
    """Notebook of a script, not executed; its cells have the same names every time."""
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
    return notebook


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run all cells in a fresh kernel; raises `nbclient.exceptions.CellExecutionError`."""
    # Without a backend of its own choice the kernel embeds the figures.
    env = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False)
    return client.execute(env=env)


def main() -> None:
    """Write every notebook beside its script."""
    for script in SCRIPTS:
        notebook = execute(read_script(script))
        nbformat.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
