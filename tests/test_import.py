"""What the package offers, and what importing it does not load."""

import doctest
import importlib
import subprocess
import sys

import pytest

import csunmix as cu

HEAVY = (
    *("numba", "cvxpy", "pandas", "matplotlib", "scipy", "astropy", "PIL", "pywt", "tqdm"),
    *("pyarrow", "zarr", "dask", "distributed", "torch"),
)


def run(code: str) -> str:
    """Run code in a new interpreter that takes warnings for errors; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    loaded = run(
        "import sys, csunmix; assert csunmix.__version__; assert 'simulate' in dir(csunmix);"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    assert "csunmix" in loaded.split()
    assert not set(HEAVY) & set(loaded.split())


def test_forward_model_loads_no_tables_and_no_compiler() -> None:
    loaded = run(
        "import sys, csunmix as cu;"
        "d = cu.Dictionary(cu.GaussianPSF(sigma=0.5), shape=(11, 11), factor=3);"
        "d.forward(d.adjoint([[0.0] * 11] * 11)); cu.Sensor().expose([[1.0]], 0);"
        "cu.presets.csist_100k();"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    assert not {"numba", "cvxpy", "pandas", "matplotlib", "PIL"} & set(loaded.split())


def test_function_is_not_hidden_by_its_module_of_the_same_name() -> None:
    for first in ("import csunmix.simulate", "import csunmix; csunmix.simulate"):
        code = f"{first}; from csunmix.simulate import Simulation; import csunmix as cu;"
        assert run(code + "print(type(cu.simulate).__name__)") == "function"


def test_using_the_library_prints_nothing() -> None:
    code = (
        "import csunmix as cu; s = cu.presets.csist_100k();"
        "made = cu.simulate(s.psf, s.sensor, s.scene, shape=s.shape, n=3, rng=0).images;"
        "made[1, 2, 3] = float('nan');"  # which is logged
        "t = cu.grid_unmixer(psf=s.psf, shape=s.shape, sensor=s.sensor, prior=s.prior)(made);"
        "assert 1 in t.attrs['frame_flags']"
    )
    assert run(code) == ""


@pytest.mark.parametrize("name", sorted(set(dir(cu)) - {"annotations"}))
def test_every_public_name_resolves(name: str) -> None:
    value = getattr(cu, name)
    assert value is not None
    if not name.startswith("_"):
        assert value.__doc__, f"{name} has no docstring"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="Gaussian"):
        _ = cu.Gaussian


@pytest.mark.parametrize(
    "name",
    [
        "_validation",
        "background",
        "dictionary",
        "grid",
        "presets",
        "prior",
        "psf",
        "sensor",
        "simulate",
        "targets",
    ],
)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"csunmix.{name}")
    assert doctest.testmod(module).failed == 0
