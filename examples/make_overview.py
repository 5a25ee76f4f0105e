"""Make the picture of the README, ``examples/figures/overview.png``.

    python examples/make_overview.py

Four targets within one pixel: the image, the flux map on the sub-pixel grid, the targets found on
the grid and off it (with ellipses that hold 95 %), beside the true ones. The dashed box is the next
panel. Needs the extra ``csunmix[plot]``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

import csunmix as cu

FIGURE = Path(__file__).parent / "figures" / "overview.png"


def main(path: Path = FIGURE) -> None:
    """Simulate, unmix, draw, save."""
    setup = cu.presets.csist_100k()
    four = replace(setup.scene, count=(4, 4))
    scene = cu.simulate(setup.psf, setup.sensor, four, shape=setup.shape, n=1, rng=3, margin=4)
    image = scene.images[0]
    on_grid = cu.grid_unmixer(
        psf=setup.psf, shape=setup.shape, sensor=setup.sensor, prior=setup.prior
    )
    off_grid = cu.PosteriorUnmixer(setup.psf, setup.sensor, setup.prior)
    axes = Figure(figsize=(14, 3.9), layout="constrained").subplots(1, 4)
    cu.plots.plot_unmixing(
        image,
        targets=on_grid(image),
        truth=scene.truth,
        coefficients=on_grid.dictionary.to_flux(on_grid.solve(image).x),
        grid=on_grid.dictionary.grid,
        margin=0.2,
        axes=axes[:3],
    )
    cu.plots.plot_image(image, ax=axes[3])
    cu.plots.plot_targets(scene.truth, ax=axes[3], marker="o", color="#0072b2")
    cu.plots.plot_targets(off_grid(image), ax=axes[3], errors="ellipses", n_sigma=2.45)
    axes[3].set(xlim=axes[2].get_xlim(), ylim=axes[2].get_ylim())
    titles = (
        "what the camera sees: one blob",
        f"flux map on a grid of 1/{on_grid.dictionary.grid.factor} px",
        "targets found on the grid",
        "targets found off it, 95 % ellipses",
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    path.parent.mkdir(exist_ok=True)
    axes[0].figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
