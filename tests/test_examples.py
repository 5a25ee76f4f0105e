"""The example scripts run, and the notebooks beside them are made from them."""

import importlib.util
import sys
from pathlib import Path

import pytest

for module in ("matplotlib", "ipykernel", "jupytext", "nbclient", "nbformat"):
    pytest.importorskip(module)

import nbformat  # noqa: E402

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    """Import a script of the examples folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notebooks = load("make_notebooks")
every_script = pytest.mark.parametrize("script", notebooks.SCRIPTS, ids=lambda path: path.stem)


def committed(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def outputs(notebook):
    return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


def figures(notebook):
    return [out for out in outputs(notebook) if "image/png" in out.get("data", {})]


def complaints(notebook):
    """Warnings and errors that a reader of the notebook would see."""
    return [
        out.get("text", out.get("evalue"))
        for out in outputs(notebook)
        if out.output_type == "error" or out.get("name") == "stderr"
    ]


def test_there_are_three_examples():
    stems = [path.stem for path in notebooks.SCRIPTS]
    assert stems == ["01_one_image", "02_compare_solvers", "03_your_network"]


@every_script
def test_notebook_has_the_cells_of_its_script(script):
    made, expected = committed(script), notebooks.read_script(script)
    assert [(c.cell_type, c.source) for c in made.cells] == [
        (c.cell_type, c.source) for c in expected.cells
    ], "run: python examples/make_notebooks.py"


@every_script
def test_committed_notebook_is_whole(script):
    made = committed(script)
    nbformat.validate(made)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert complaints(made) == []
    assert len(figures(made)) >= 2
    assert script.with_suffix(".ipynb").stat().st_size < 1_000_000


@every_script
def test_script_runs_in_this_interpreter(script):
    notebook = notebooks.read_script(script)
    notebook.cells.append(nbformat.v4.new_code_cell("import sys; print(sys.prefix)"))
    notebooks.execute(notebook)
    assert outputs(notebook)[-1].text.strip() == sys.prefix
    assert complaints(notebook) == []
    assert len(figures(notebook)) == len(figures(committed(script)))


def test_overview_is_drawn_as_committed(tmp_path):
    from matplotlib.image import imread

    overview = load("make_overview")
    overview.main(tmp_path / "figures" / "overview.png")
    drawn = imread(tmp_path / "figures" / "overview.png")
    assert drawn.shape == imread(overview.FIGURE).shape
    assert overview.FIGURE.stat().st_size < 150_000
