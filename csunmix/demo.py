"""The job of ``csunmix demo``: from images to targets, metrics and a picture, on simulated data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from csunmix import PosteriorUnmixer, compare, grid_unmixer, presets, simulate
from csunmix._ahead import prepare
from csunmix.datasets import Dataset, read_csist, write_csist
from csunmix.io import atomic_write
from csunmix.names import DEFAULT_GRID_METHOD, DEFAULT_METHOD
from csunmix.psf import GaussianPSF
from csunmix.targets import write_csv

if TYPE_CHECKING:
    import pandas as pd

    from csunmix.presets import Preset
    from csunmix.unmixer import GridUnmixer

N_IMAGES = 100
_SEED = 2025
_PICTURED_COUNTS = (2, 4, 5)  # targets of the images in the picture
_PUBLISHED = {"DISTA-Net": 46.74, "ISTA": 7.46}  # CSO-mAP, DISTA-Net, ICCV 2025, test set
_README = """\
Made by `csunmix demo`; the next run replaces it.

data/        simulated images and their annotations, in the layout of CSIST-100K
targets.csv  the targets found in them
demo.png     some images: image, flux map on the sub-pixel grid, truth and targets
"""


def run(out: Path, *, progress: bool = False) -> None:
    """Make images, unmix them, and show how good the targets are.

    Prints the first targets and the metrics; writes the images and annotations to ``out/data``,
    the targets to ``out/targets.csv`` and, where matplotlib is installed, ``out/demo.png``.

    Parameters
    ----------
    out : Path
        The folder; new, empty, or of an earlier demo, whose files are replaced.
    progress : bool
        Show progress bars.

    Raises
    ------
    ValueError
        If the folder holds other files.
    OSError
        If a file cannot be written.
    """
    _claim(out)
    setup = presets.csist_100k()
    data = _make_data(out / "data", setup, progress=progress)
    print(f"{len(data.images)} simulated images after the protocol of CSIST-100K -> {out / 'data'}")

    unmixer = PosteriorUnmixer(setup.psf, setup.sensor, setup.prior, n_jobs=2)
    on_grid = grid_unmixer(psf=setup.psf, shape=setup.shape, sensor=setup.sensor, prior=setup.prior)
    prepare(unmixer, on_grid, progress=True)
    print("unmixing ...", flush=True)
    targets = unmixer(data.images, progress=progress)
    targets["image"] = [data.names[frame] for frame in targets["frame"]]
    with atomic_write(out / "targets.csv") as temporary:
        write_csv(targets, temporary)
    print(f"{len(targets)} targets -> {out / 'targets.csv'}, the first of them:\n")
    shown = ["image", "y", "x", "flux", "y_err", "x_err", "flux_err", "score"]
    print(targets[shown].head(8).round(3).to_string(index=False))

    runs = {DEFAULT_METHOD: targets, f"{DEFAULT_GRID_METHOD} (grid)": on_grid(data.images)}
    metrics = compare(runs, data.truth)
    print("\nagainst the truth (percent; RMSE and GOSPA in px):\n")
    print(metrics.T.to_string(float_format="{:.3f}".format, na_rep="-"))
    published = ", ".join(f"{name} {value}" for name, value in _PUBLISHED.items())
    print(f"\nPublished CSO-mAP for comparison (DISTA-Net, ICCV 2025): {published}.")
    print("They are for the original test set; the images here are simulated after its protocol.")

    _draw(out / "demo.png", on_grid, data, targets)


def _claim(out: Path) -> None:
    """Make `out` the demo's folder, unless it is someone else's."""
    readme = out / "README.txt"
    if out.is_dir() and any(out.iterdir()):
        if not readme.is_file() or readme.read_bytes() != _README.encode():
            raise ValueError(f"--out {out}: the folder is not empty and not of an earlier demo")
        return
    out.mkdir(parents=True, exist_ok=True)
    readme.write_bytes(_README.encode())


def _make_data(folder: Path, setup: Preset, *, progress: bool) -> Dataset:
    """Simulate images, write them as a data set, and read it back."""
    scenes = simulate(
        setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=N_IMAGES, rng=_SEED
    )
    sigma = setup.psf.sigma_x if isinstance(setup.psf, GaussianPSF) else None
    write_csist(folder, scenes.images, scenes.truth, sigma=sigma, overwrite=True, progress=progress)
    return read_csist(folder, progress=progress)


def _draw(path: Path, on_grid: GridUnmixer, data: Dataset, targets: pd.DataFrame) -> None:
    """Draw an image of each of some counts, one below the other, the flux maps by `on_grid`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\nno picture: it needs matplotlib (pip install 'csunmix[plot]')")
        return
    from csunmix.plots import plot_unmixing

    counts = data.truth["frame"].value_counts().sort_index()
    frames = [int(counts.index[counts == count][0]) for count in _PICTURED_COUNTS]
    maps = on_grid.dictionary.to_flux(on_grid.solve(data.images[frames]).x)
    figure = Figure(figsize=(10, 3.3 * len(frames)), layout="constrained")
    rows = figure.subplots(len(frames), 3)
    for axes, frame, flux in zip(rows, frames, maps, strict=True):
        plot_unmixing(
            data.images[frame],
            targets=targets,
            truth=data.truth,
            frame=frame,
            coefficients=flux,
            grid=on_grid.dictionary.grid,
            n_sigma=2.45,
            margin=0.2,
            axes=axes,
        )
        axes[0].set_title(data.names[frame])
        axes[2].set_title("truth and targets, 95 % ellipses")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    print(f"\npicture -> {path}")
