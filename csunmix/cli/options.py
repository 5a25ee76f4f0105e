"""The options of the command line, and the unmixer that those of ``csunmix unmix`` describe."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from csunmix import __version__
from csunmix.names import (
    DEFAULT_GRID_METHOD,
    DEFAULT_METHOD,
    GRID_METHODS,
    OFF_GRID_METHODS,
    PEAK_RULES,
    PRESETS,
    PURSUITS,
)

if TYPE_CHECKING:
    from csunmix.cli.run import Unmixer
    from csunmix.psf import PSF

_ABSENT = argparse.SUPPRESS  # so that "not given" differs from None, which means "none"
_NONE: dict[str, Any] = {"action": "store_const", "const": None, "default": _ABSENT}


# Parsing


def make_parser(
    commands: Sequence[Callable[[argparse.Namespace], None]],
) -> argparse.ArgumentParser:
    """The parser; each command stands in ``options.command``, its docstring is its help."""
    main = _Parser(
        prog="csunmix",
        description="Unmix closely-spaced infrared small targets.",
        epilog="With CSUNMIX_DEBUG=1 in the environment errors show where they come from.",
        allow_abbrev=False,
    )
    main.add_argument("--version", action="version", version=f"csunmix {__version__}")
    subparsers = main.add_subparsers(metavar="COMMAND", required=True)
    for command in commands:
        name, text = command.__name__, (command.__doc__ or "").strip()
        sub = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=command)
        _ARGUMENTS[name](sub)
    return main


class _Parser(argparse.ArgumentParser):
    """Bad usage is bad input like any other: one line, through `main`."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", metavar="DIR", default="csunmix-demo", help="folder to write to (%(default)s)"
    )


def _unmix_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        metavar="INPUT",
        help="PNG, TIFF, FITS, NPY or NPZ file, Zarr array, or a folder of images (natural order)",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="target table, .csv or .parquet; replaces an older one, but no input",
    )
    parser.add_argument(
        "--array", metavar="NAME", help="array of an NPZ file or Zarr group, extension of a FITS"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on where a stopped run left OUT.part"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="do the work on the Dask cluster of this scheduler"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        default=_ABSENT,
        help="of the random numbers of a grid-free method (0)",
    )

    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        choices=(*OFF_GRID_METHODS, *GRID_METHODS),
        metavar="NAME",
        help=f"off the grid: {', '.join(OFF_GRID_METHODS)}; on a grid: {', '.join(GRID_METHODS)} "
        f"(default: {DEFAULT_METHOD} where fluxes are known to lie in a range, as in the presets, "
        f"else {DEFAULT_GRID_METHOD}; continuous draws fewer scenes than posterior: faster, and "
        "less accurate where targets are hard to tell apart; moments, a few fits of each image: "
        "hundreds of times faster, less accurate still, and for known fluxes alone)",
    )
    method.add_argument(
        "--n-effective",
        type=int,
        metavar="N",
        default=_ABSENT,
        help="scenes of an image's posterior that are to count, off the grid (500, or 400 by "
        "continuous; 30: much quicker, nearly as good where there is little noise; 0, for "
        "continuous: normal approximations, quicker still and less accurate)",
    )
    method.add_argument(
        "--factor",
        type=int,
        metavar="C",
        help="grid cells per pixel; suits the PSF where not given",
    )
    method.add_argument(
        "--lam",
        type=_number_or("auto"),
        metavar="L",
        help="weight of the l1 norm, DN, or auto: from the detector's noise where it is given, "
        "else from each image's; by default 0.07 times the noise with a saturation, else auto",
    )
    method.add_argument("--n-nonzero", type=int, metavar="K", help="most atoms of a pursuit")
    method.add_argument(
        "--peaks",
        choices=PEAK_RULES,
        metavar="RULE",
        help=f"from map to targets: {', '.join(PEAK_RULES)}",
    )
    method.add_argument("--threshold", type=float, metavar="V", help="smallest flux, DN")
    method.add_argument(
        "--min-share",
        type=float,
        metavar="F",
        help="smallest flux as a share of the image's brightest target",
    )
    method.add_argument(
        "--refine",
        action="store_true",
        default=_ABSENT,
        help="take the targets of a grid method off the grid by a joint fit, with errors",
    )

    optics = parser.add_argument_group("optics, detector and background")
    optics.add_argument(
        "--preset",
        choices=PRESETS,
        metavar="NAME",
        help=f"{' or '.join(PRESETS)}; {PRESETS[0]} where no PSF is given. "
        "Options given override it",
    )
    psf = optics.add_mutually_exclusive_group()
    psf.add_argument("--psf-sigma", type=float, metavar="S", help="width of a Gaussian PSF, px")
    psf.add_argument("--psf", metavar="FILE", help="sampled PSF: NPY, NPZ (FILE:NAME), FITS, TIFF")
    optics.add_argument(
        "--psf-oversampling", type=float, metavar="K", help="its samples per pixel (1)"
    )
    optics.add_argument(
        "--psf-error",
        type=float,
        metavar="E",
        default=_ABSENT,
        help="error of the PSF as a share of the brightest pixel, off the grid (0)",
    )
    optics.add_argument("--read-noise", type=float, metavar="S", default=_ABSENT, help="noise, DN")
    optics.add_argument(
        "--gain",
        type=float,
        metavar="E",
        default=_ABSENT,
        help="electrons per DN, for shot noise, off the grid or with --refine (no shot noise)",
    )
    optics.add_argument(
        "--offset", type=float, metavar="V", default=_ABSENT, help="value of a dark pixel, DN (0)"
    )
    limit = optics.add_mutually_exclusive_group()
    limit.add_argument(
        "--saturation", type=float, metavar="V", default=_ABSENT, help="largest value, DN"
    )
    limit.add_argument("--no-saturation", dest="saturation", help="no largest value", **_NONE)
    optics.add_argument(
        "--background",
        type=_number_or("border", "fit"),
        default=0.0,
        metavar="V",
        help="level to take off, DN, or border: the median of each image's outermost pixels, "
        "or fit: with the targets, off the grid (0)",
    )

    prior = parser.add_argument_group("what is known of the targets")
    prior.add_argument(
        "--count",
        nargs=2,
        type=int,
        metavar=("MIN", "MAX"),
        default=_ABSENT,
        help="number of targets; without --refine, grid methods use MAX, as the limit of a pursuit",
    )
    flux = prior.add_mutually_exclusive_group()
    flux.add_argument(
        "--flux",
        nargs=2,
        type=float,
        metavar=("MIN", "MAX"),
        default=_ABSENT,
        help="flux of each, DN",
    )
    flux.add_argument("--no-flux-prior", dest="flux", help="of any flux", **_NONE)
    prior.add_argument(
        "--min-separation", type=float, metavar="D", default=_ABSENT, help="smallest distance, px"
    )
    place = prior.add_mutually_exclusive_group()
    place.add_argument(
        "--extent", type=float, metavar="E", default=_ABSENT, help="they lie in a box this size, px"
    )
    place.add_argument(
        "--cell", action="store_true", default=_ABSENT, help="they lie in one pixel's cell"
    )


def _simulate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", choices=PRESETS, required=True, metavar="NAME", help=" or ".join(PRESETS)
    )
    parser.add_argument(
        "--n",
        type=int,
        required=True,
        metavar="N",
        help=f"number of images ({PRESETS[0]}) or of tracks of 20 frames ({PRESETS[1]})",
    )
    parser.add_argument("--seed", type=int, required=True, metavar="S", help="same seed, same data")
    parser.add_argument("--out", required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument(
        "--count-model",
        choices=("uniform", "normal"),
        default="uniform",
        help="distribution of the number of targets (%(default)s); "
        "normal is round(N(3, 1)) within the preset's range",
    )


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("targets", metavar="targets.csv", help="target table, CSV or Parquet")
    parser.add_argument(
        "--truth", required=True, metavar="DIR_OR_CSV", help="data set folder, or target table"
    )
    parser.add_argument(
        "--n-images",
        type=int,
        metavar="N",
        help="number of images that a CSV truth speaks of, where the last have no targets",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here, too")
    parser.add_argument(
        "--rank-by",
        choices=("flux", "score"),
        default="flux",
        help="what ranks the targets in CSO-mAP (%(default)s)",
    )


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="NAME=FILE",
        help="a method and its answer: maps (NPY, NPZ, MAT), text 'x y brightness' (a folder, one "
        "file an image; or one file with the image in front), COCO-like JSON, or a target table",
    )
    parser.add_argument(
        "--truth", required=True, metavar="DIR_OR_CSV", help="data set folder, or target table"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="write the leaderboard here, as text, CSV, Markdown and HTML"
    )
    parser.add_argument(
        "--images",
        metavar="FILE_OR_DIR",
        help="the images, where the truth is a table: for pictures, names and shape",
    )
    parser.add_argument(
        "--n-images",
        type=int,
        metavar="N",
        help="number of images: of a table of truth whose last ones have no targets, or, if "
        "fewer than the truth has, the first N of it",
    )
    parser.add_argument(
        "--rank-by",
        choices=("flux", "score"),
        default="flux",
        help="what ranks the targets in CSO-mAP (%(default)s)",
    )
    parser.add_argument("--title", default="Comparison of methods", help="heading of the page")
    parser.add_argument(
        "--cases", type=int, default=6, metavar="N", help="hardest images shown (%(default)s)"
    )
    parser.add_argument(
        "--published", metavar="CSV", help="table of published figures to show on the page, as is"
    )
    about = parser.add_argument_group("about a method, may be given for each")
    about.add_argument(
        "--time", action="append", default=[], metavar="NAME=SECONDS", help="for all images"
    )
    about.add_argument(
        "--parameters", action="append", default=[], metavar="NAME=N", help="of a network"
    )
    answers = parser.add_argument_group("how answers are read")
    answers.add_argument(
        "--factor",
        type=int,
        metavar="C",
        help="cells per pixel of maps; fits the images where these are known, else 3",
    )
    answers.add_argument(
        "--peaks",
        choices=PEAK_RULES,
        default="every-cell",
        metavar="RULE",
        help=f"from map to targets: {', '.join(PEAK_RULES)} (%(default)s, the published protocol)",
    )
    answers.add_argument(
        "--threshold",
        type=float,
        default=50.0,
        metavar="V",
        help="smallest flux of a target in a map, DN (%(default)g; for SeqCSIST 70)",
    )
    answers.add_argument(
        "--first",
        action="append",
        default=[],
        metavar="[NAME=]row|column",
        help="what the first axis of maps, or the x of a file, is (of JSON the column, as in "
        "COCO; of all else the row, as xc in the data sets); may be given for each method",
    )
    answers.add_argument(
        "--origin",
        type=float,
        default=0.0,
        metavar="V",
        help="coordinate of the first pixel's centre in text and JSON (%(default)g; MATLAB: 1; "
        "boxes that count from the image's corner: 0.5)",
    )


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


_ARGUMENTS = {
    "demo": _demo_arguments,
    "unmix": _unmix_arguments,
    "simulate": _simulate_arguments,
    "evaluate": _evaluate_arguments,
    "compare": _compare_arguments,
    "info": _no_arguments,
}


def _number_or(*words: str) -> Callable[[str], float | str]:
    def parse(text: str) -> float | str:
        try:
            return text if text in words else float(text)
        except ValueError:
            known = " or ".join(words)
            raise argparse.ArgumentTypeError(f"must be a number or {known}, got {text!r}") from None

    return parse


# From options to objects


def unmixer_from(options: argparse.Namespace, shape: tuple[int, int]) -> Unmixer:
    """The unmixer that the options of `unmix` describe, for images of `shape`."""
    from csunmix import (
        ContinuousUnmixer,
        MomentUnmixer,
        PosteriorUnmixer,
        Prior,
        Sensor,
        grid_unmixer,
        presets,
    )
    from csunmix._ahead import processors

    psf = _given_psf(options)
    preset = preset_name(options)
    if preset is not None:
        setup = presets.PRESETS[preset]()
        psf, sensor, prior = psf or setup.psf, setup.sensor, setup.prior
    else:
        sensor, prior = Sensor(), Prior()
    assert psf is not None  # without a PSF there is a preset
    place = _given(options, "extent", "cell")
    sensor = replace(sensor, **_given(options, "read_noise", "gain", "offset", "saturation"))
    prior = replace(
        prior,
        **_given(options, "count", "flux", "min_separation"),
        **({"extent": None, "cell": False} | place if place else {}),
    )
    n_jobs = processors() if options.scheduler is None else 1
    given = _given(options, "seed", "psf_error", "n_effective")
    kind = PosteriorUnmixer if options.method == "posterior" else ContinuousUnmixer
    off_grid = partial(kind, psf, sensor, prior, n_jobs=n_jobs, **given)
    on_grid = partial(
        grid_unmixer,
        psf=psf,
        shape=shape,
        sensor=sensor,
        prior=prior,
        factor=options.factor,
        lam=options.lam,
        n_nonzero=options.n_nonzero,
        peaks=options.peaks,
        threshold=options.threshold,
        min_share=options.min_share,
        refine=hasattr(options, "refine"),
    )
    idle = bool(unused(options))  # what is not used is refused all the same where it is wrong
    if options.method in OFF_GRID_METHODS and idle:
        on_grid(DEFAULT_GRID_METHOD)
    if options.method not in ("continuous", "posterior") and idle:
        off_grid()
    if options.method == "moments":
        if prior.flux is None:
            raise ValueError(
                "--method moments needs a range of fluxes: --flux MIN MAX, or a preset"
            )
        given = _given(options, "psf_error") | {"background": options.background}
        return MomentUnmixer(psf, sensor, prior, n_jobs=n_jobs, **given)
    if options.method in OFF_GRID_METHODS:
        return off_grid(background=options.background)
    return replace(on_grid(options.method, background=options.background), n_jobs=n_jobs)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options of these names that stand on the command line; the ``--no-...`` ones give None."""
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _given_psf(options: argparse.Namespace) -> PSF | None:
    from csunmix import GaussianPSF, SampledPSF
    from csunmix.io import read_psf

    if options.psf_oversampling is not None and options.psf is None:
        raise ValueError("--psf-oversampling needs --psf FILE")
    if options.psf_sigma is not None:
        return GaussianPSF(sigma=options.psf_sigma)
    if options.psf is not None:
        values = read_psf(options.psf)
        oversampling = 1.0 if options.psf_oversampling is None else options.psf_oversampling
        try:
            return SampledPSF(values, oversampling=oversampling)
        except ValueError as error:
            raise ValueError(f"--psf {options.psf}: {error}") from None
    return None


def preset_name(options: argparse.Namespace) -> str | None:
    """The preset that is asked for; the first one where no PSF is given either."""
    psf_given = options.psf is not None or options.psf_sigma is not None
    name: str | None = options.preset
    return name if name is not None or psf_given else PRESETS[0]


def check_brightness(options: argparse.Namespace, largest: float, unmixer: Unmixer) -> None:
    """Refuse images brighter than the preset's detector can make them: they are of another one."""
    preset, sensor = preset_name(options), unmixer.sensor
    if preset is None or "saturation" in vars(options) or sensor is None:
        return
    if sensor.saturation is not None and largest > sensor.saturation:
        optics = "--psf, --psf-sigma, --preset" if options.preset is None else "another --preset"
        raise ValueError(
            f"{options.input}: its largest value, {largest:g}, is above the saturation of preset "
            f"{preset}{', assumed for want of a PSF' if options.preset is None else ''} "
            f"({sensor.saturation:g}); give {optics}, --saturation or --no-saturation"
        )


def default_method(options: argparse.Namespace) -> str:
    """The most accurate method: off the grid given a range of fluxes, which settles the count.

    Without one an imperfect PSF makes false targets off the grid, which the grid methods drop.
    """
    return DEFAULT_METHOD if _has_flux_prior(options) else DEFAULT_GRID_METHOD


def _has_flux_prior(options: argparse.Namespace) -> bool:
    return getattr(options, "flux", preset_name(options)) is not None  # presets have one


def unused(options: argparse.Namespace) -> list[str]:
    """The options of `unmix` on the command line that make no difference to its method."""
    given = {name for name, value in vars(options).items() if value is not None}
    # What the border shows holds the offset; where electrons are counted, light begins above it.
    counted = "gain" in given and (options.method in OFF_GRID_METHODS or "refine" in given)
    border = {"offset"} if options.background == "border" and not counted else set()
    if options.method in OFF_GRID_METHODS:
        idle = {"factor", "lam", "n_nonzero", "peaks", "threshold", "min_share", "refine"}
        if options.method == "moments":
            idle |= {"seed", "n_effective"}
        return _options((idle | border) & given)
    idle = border | {"seed", "psf_error", "n_effective", "gain", "min_separation", "extent", "cell"}
    flux_prior = _has_flux_prior(options)
    if options.method in PURSUITS:
        idle |= {"lam"} | ({"count"} if "n_nonzero" in given else set())
    else:
        idle |= {"count", "n_nonzero"}
        if options.lam not in (None, "auto") and ("threshold" in given or flux_prior):
            idle |= {"read_noise"}
    if options.method != "omp" and {"threshold", "min_share"} <= given:
        idle |= {"flux"}
    if "refine" in given:  # uses the detector and all of the prior
        idle -= {"read_noise", "gain", "flux", "min_separation", "extent", "cell", "count"}
    return _options(idle & given)


def _options(names: set[str]) -> list[str]:
    return sorted("--" + name.replace("_", "-") for name in names)


def method_text(options: argparse.Namespace, unmixer: Unmixer) -> str:
    """Method in words, with the grid where it has one."""
    dictionary = getattr(unmixer, "dictionary", None)
    method: str = options.method
    return method + (f", factor {dictionary.grid.factor}" if dictionary else "")


def setting_text(options: argparse.Namespace) -> str:
    """Preset and PSF in words."""
    preset = preset_name(options)
    parts = [] if preset is None else [f"preset {preset}"]
    if options.psf_sigma is not None:
        parts.append(f"PSF sigma {options.psf_sigma:g} px")
    if options.psf is not None:
        parts.append(f"PSF {options.psf}")
    return ", ".join(parts)
