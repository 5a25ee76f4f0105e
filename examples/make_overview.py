"""Make the picture of the README, ``examples/figures/overview.png``.

    python examples/make_overview.py

Four targets within one pixel: the image, the flux map on the sub-pixel grid, and the targets found
beside the true ones. Needs the extra ``csunmix[plot]``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import csunmix as cu

FIGURE = Path(__file__).parent / "figures" / "overview.png"


def main(path: Path = FIGURE) -> None:
    """Simulate, unmix, draw, save."""
    setup = cu.presets.csist_100k()
    four = replace(setup.scene, count=(4, 4))
    scene = cu.simulate(setup.psf, setup.sensor, four, shape=setup.shape, n=1, rng=1)
    unmix = cu.grid_unmixer(
        psf=setup.psf, shape=setup.shape, sensor=setup.sensor, prior=setup.prior
    )
    dictionary, image = unmix.dictionary, scene.images[0]
    targets = unmix(image)
    axes = cu.plots.plot_unmixing(
        image,
        targets=targets,
        truth=scene.truth,
        coefficients=dictionary.to_flux(unmix.solve(image).x),
        grid=dictionary.grid,
    )
    titles = ("one blob ...", "... a few cells of a grid ...", f"... {len(targets)} targets")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    path.parent.mkdir(exist_ok=True)
    axes[0].figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
