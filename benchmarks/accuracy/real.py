"""The default method on real and third-party images with independent truth.

    CSUNMIX_DATA=/path/to/data python -m benchmarks.accuracy.real

Each set is given its own PSF and what is declared of it; no setting was chosen on these images but
the smallest share of the brightest target (see the column). Distances are those of pairs matched
within one PSF width; for the WISE blends the common shift of each group against its truth, which
comes from another survey, is taken off as well (second row); that flatters, as the shift is the
mean of the same pairs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import csunmix as cu
from benchmarks.report import to_markdown, write_report
from csunmix.metrics import match


class Case(NamedTuple):
    """One data set: images, truth, and what the unmixer is told."""

    name: str
    images: np.ndarray
    truth: pd.DataFrame
    psf: cu.PSF
    sensor: cu.Sensor
    min_share: float
    shift: bool = False


def truth_table(xy: np.ndarray, flux: np.ndarray, count: np.ndarray) -> pd.DataFrame:
    """Target table from padded arrays ``xy`` (n, k, 2), ``flux`` (n, k) and ``count`` (n,)."""
    frame = np.repeat(np.arange(len(count)), count)
    used = np.arange(xy.shape[1]) < count[:, None]
    return cu.targets.make_table(
        frame, xy[used][:, 1], xy[used][:, 0], flux[used], n_frames=len(count)
    )


def cases(folder: Path) -> list[Case]:
    """The data sets, with the settings that their descriptions state."""
    plain = cu.Sensor()
    out = []
    with np.load(folder / "wise_2mass_blends" / "blends.npz") as data:
        psf = cu.SampledPSF(data["psf_os"], int(data["psf_oversampling"]))
        truth = truth_table(data["gt_xy"], data["gt_flux_pred_dn"], data["gt_count"])
        blends = Case("WISE blends (real)", data["images"], truth, psf, plain, 0.06)
        out += [blends, blends._replace(name=blends.name + ", shift removed", shift=True)]
    with np.load(folder / "wise_2mass_blends" / "singles.npz") as data:
        xy, flux = data["fit_xy"][:, None], data["fit_flux"][:, None]
        truth = truth_table(xy, flux, np.ones(len(flux), int))
        out.append(Case("WISE single stars (real)", data["images"], truth, psf, plain, 0.06))
    for name, share in (("wise", 0.06), ("spitzer", 0.2)):
        with np.load(folder / f"composites_{name}" / "composites.npz") as data:
            psf = cu.SampledPSF(data["psf_os"], int(data["psf_oversampling"]))
            truth = truth_table(data["gt_xy"], data["gt_flux"], data["gt_count"])
            label = f"{name} composites of real stars"
            out.append(Case(label, data["images"], truth, psf, plain, share))
    with np.load(folder / "storm_analysis_sim" / "crops.npz") as data:
        truth = truth_table(data["gt_xy"], data["gt_flux"], data["gt_count"])
        sensor = cu.Sensor(offset=100.0, gain=1.0, read_noise=7.0)
        psf = cu.GaussianPSF(sigma=1.0)
        out.append(
            Case("storm-analysis crops (simulated)", data["images"], truth, psf, sensor, 0.1)
        )
    return out


def row(case: Case) -> dict[str, object]:
    """Figures of one data set."""
    unmix = cu.grid_unmixer(
        psf=case.psf,
        shape=case.images.shape[-2:],
        sensor=case.sensor,
        background="border",
        min_share=case.min_share,
    )
    targets = unmix(case.images)
    if case.shift:
        targets = remove_shift(targets, case.truth, case.psf.width)
    pairs = match(targets, case.truth, max_distance=case.psf.width)
    found, true = (t.groupby("frame").size() for t in (targets, case.truth))
    found = found.reindex(range(len(case.images)), fill_value=0)
    flux = targets["flux"].to_numpy()[pairs.detection], case.truth["flux"].to_numpy()[pairs.truth]
    return {
        "data": case.name,
        "images": len(case.images),
        "smallest share": case.min_share,
        "count right %": 100.0 * float((found == true).mean()),
        "called multiple %": 100.0 * float((found > 1).mean()),
        "recall %": 100.0 * len(pairs) / len(case.truth),
        "precision %": 100.0 * len(pairs) / len(targets),
        "median distance px": float(np.median(pairs.distance)),
        "90 % distance px": float(np.quantile(pairs.distance, 0.9)),
        "median flux error %": 100.0 * float(np.median(np.abs(flux[0] / flux[1] - 1.0))),
    }


def remove_shift(targets: pd.DataFrame, truth: pd.DataFrame, reach: float) -> pd.DataFrame:
    """Take the mean offset of each frame's matched pairs off its targets."""
    pairs = match(targets, truth, max_distance=reach)
    shifted = targets.copy()
    frame = targets["frame"].to_numpy()[pairs.detection]
    for axis in ("y", "x"):
        offset = targets[axis].to_numpy()[pairs.detection] - truth[axis].to_numpy()[pairs.truth]
        mean = pd.Series(offset).groupby(frame).mean()
        shifted[axis] = targets[axis] - targets["frame"].map(mean).fillna(0.0)
    return shifted


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    if "CSUNMIX_DATA" not in os.environ:
        raise SystemExit("set CSUNMIX_DATA to the folder with the data")
    table = pd.DataFrame([row(case) for case in cases(Path(os.environ["CSUNMIX_DATA"]))])
    title = "The default method on real and third-party images"
    write_report(options.out, title, "python -m benchmarks.accuracy.real", __doc__, table)
    print(to_markdown(table))


if __name__ == "__main__":
    main()
