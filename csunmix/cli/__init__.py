"""The command line: ``csunmix demo | unmix | simulate | evaluate | compare | info``.

Exit code 0 on success, 2 with one line on standard error on bad input, 130 on Ctrl-C. Output files
appear whole or not at all. Heavy modules are imported by the commands that need them, so that
``csunmix --help`` is quick.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from csunmix import __version__
from csunmix.cli.options import (
    check_brightness,
    default_method,
    make_parser,
    method_text,
    setting_text,
    unmixer_from,
    unused,
)

_FLAG_TEXT = {
    "SATURATED": "with saturated pixels",
    "BORDER": "with a target in the outermost ring of pixels",
    "COUNT_AMBIGUOUS": "with an ambiguous number of targets",
    "NOT_CONVERGED": "where a solver did not converge, or samples do not agree",
    "NOT_FINITE": "with NaN or infinite pixels, not unmixed",
    "NO_TARGET": "without a target",
    "BAD_PIXELS": "with bad pixels",
    "AT_BOUND": "with a target that leans on a bound of the prior",
    "FLAT": "with a target of which the image hardly tells the place or flux",
    "MISFIT": "that no scene explains: PSF, sensor or prior may be wrong",
}
# What the library calls arguments, and what they are here.
_OPTIONS = (
    "background|count|extent|factor|flux|gain|lam|min_separation|min_share|n_effective|n_nonzero|"
    "offset|origin|psf_error|read_noise|saturation|seed|threshold"
)
_ARGUMENTS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(?<![-\w])sigma(?= must )", "--psf-sigma"),
    (r"(?<![-\w])oversampling(?= must )", "--psf-oversampling"),
    (
        rf"(?:\bprior\.)?(?<![-\w])({_OPTIONS})(\[\d\])?(?= must )",
        lambda m: "--" + m[1].replace("_", "-"),
    ),
    (r"\b(array|rank_by)='(\w+)'", lambda m: f"--{m[1].replace('_', '-')} {m[2]}"),
    (r"\bwith array:", "with --array:"),
    (r"\bmust be given with names\b", "must be given with --images"),
    (r"\bn_cases(?= must )", "--cases"),
    (r"\bruns\[(['\"])(.*)\1\]", r"\2"),
)
_INTERRUPTED, _BROKEN_PIPE = 130, 141  # what shells report for SIGINT and SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; by default those of the process.

    Returns
    -------
    int
        The exit code: 0 on success, 2 on bad input, 130 if interrupted, 141 if whoever reads the
        output stopped reading.
    """
    try:
        options = make_parser((demo, unmix, simulate, evaluate, compare, info)).parse_args(argv)
        options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor at exit
        return _BROKEN_PIPE
    except (ValueError, TypeError, OSError, MemoryError) as error:
        if os.environ.get("CSUNMIX_DEBUG") == "1":
            raise
        _say(f"error: {_one_line(error)}")
        return 2
    except KeyboardInterrupt as stop:
        _say(": ".join(["interrupted", *map(str, stop.args)]))
        return _INTERRUPTED
    return 0


def program() -> int:
    """Run `main` in a process of its own, as ``csunmix`` does.

    Modules and what compiling makes last to its end, and take a second to look through for garbage.
    """
    gc.set_threshold(20_000)
    atexit.register(gc.freeze)
    return main()


# Commands


def unmix(options: argparse.Namespace) -> None:
    """Find the targets in images; write them as a table, CSV or Parquet."""
    from csunmix._ahead import NOTICE, missing
    from csunmix.cli.inputs import assumed, cluster, hints, largest_value
    from csunmix.cli.output import output_file
    from csunmix.cli.run import Run
    from csunmix.io import read_images

    options.method = options.method or default_method(options)
    inputs = [options.input, *filter(None, [options.psf])]
    out = output_file(options.out, "--out", inputs=inputs)
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"--out {options.out}: must end in .csv or .parquet")
    stack = read_images(options.input, array=options.array)
    unmixer = unmixer_from(options, stack.images.shape[1:])
    check_brightness(options, largest_value(stack, options.input), unmixer)
    run = Run(unmixer, stack, out, resume=options.resume)
    if idle := unused(options):
        _say(f"method {options.method} does not use {', '.join(idle)}")
    for hint in (*assumed(options, unmixer, stack.images.shape[1:]), *hints(stack, unmixer)):
        _say(f"warning: {hint}")
    begin = f", going on at image {run.state.frames}" if run.state.frames else ""
    _say(f"{setting_text(options)}, method {method_text(options, unmixer)}{begin}")
    if options.scheduler is None and missing(unmixer):
        _say(NOTICE)
    with cluster(options.scheduler) as client:
        state = run.execute(progress=_on_terminal() and not options.no_progress, client=client)
    print(f"{_count(state.frames, 'image')}, {_count(state.targets, 'target')} -> {out}")
    for name, (n, *frames) in state.flagged.items():
        skipped = name == "NOT_FINITE"
        which = _frames(frames, n, stack.names) if skipped else f"first frame {frames[0]}"
        print(f"  {name}: {_count(n, 'image')} {_FLAG_TEXT[name]}, {which}")


def simulate(options: argparse.Namespace) -> None:
    """Write simulated images and annotations in a data set's own layout."""
    import numpy as np

    from csunmix import presets
    from csunmix._validation import as_integer
    from csunmix.cli.output import new_folder
    from csunmix.datasets import write_csist, write_seq_csist
    from csunmix.simulate import simulate as simulate_images
    from csunmix.tracks import simulate_tracks

    setup = presets.PRESETS[options.preset]()
    n = as_integer(options.n, "--n", minimum=1)
    rng = np.random.default_rng(as_integer(options.seed, "--seed", minimum=0))
    model = options.count_model
    sigma = getattr(setup.psf, "sigma_x", None)
    with new_folder(Path(options.out)) as folder:
        write: Callable[..., None] = write_csist
        if setup.frames_per_track > 1:
            scenes = simulate_tracks(setup, n, rng, count_model=model)
            write = partial(write_seq_csist, frames_per_track=setup.frames_per_track)
        else:
            optics = (setup.psf, setup.sensor, setup.scene)
            scenes = simulate_images(*optics, shape=setup.shape, n=n, rng=rng, count_model=model)
        write(folder, scenes.images, scenes.truth, sigma=sigma, progress=_on_terminal())
    n_images, n_targets = len(scenes.images), len(scenes.truth)
    print(f"{_count(n_images, 'image')}, {_count(n_targets, 'target')} -> {options.out}")


def evaluate(options: argparse.Namespace) -> None:
    """Score a target table against the truth."""
    from csunmix.cli.output import output_file
    from csunmix.cli.truth import check_images, count_images, read_truth
    from csunmix.io import atomic_write, read_targets
    from csunmix.metrics import compare

    inputs = (options.targets, options.truth)
    report = output_file(options.json, "--json", inputs=inputs) if options.json else None
    targets = read_targets(options.targets)
    truth = read_truth(options.truth, progress=_on_terminal())
    check_images(targets, truth, options.targets)
    n_images = count_images(targets, truth, options.n_images, options.targets)
    truth.table.attrs["n_frames"] = n_images
    name = Path(options.targets).name
    metrics = compare({name: targets}, truth.table, rank_by=options.rank_by)
    print(metrics.T.to_string(float_format="{:.3f}".format, na_rep="-"))
    if report is not None:
        values = metrics.iloc[0].to_dict()
        content = {
            "targets": options.targets,
            "truth": options.truth,
            "rank_by": options.rank_by,
            "n_images": n_images,
            "n_targets": len(targets),
            "n_true_targets": len(truth.table),
            "metrics": {k: v if math.isfinite(v) else None for k, v in values.items()},
            "csunmix": __version__,
        }
        with atomic_write(report) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")


def compare(options: argparse.Namespace) -> None:
    """Compare the answers of several methods; print and write the leaderboard."""
    from csunmix.cli.leaderboard import make_report, swapped_axes

    report = make_report(options, progress=_on_terminal())
    for hint in swapped_axes(report):
        _say(f"warning: {hint}")
    print(report.to_text(), end="")
    if options.out is not None:
        for path in report.write(options.out):
            print(f"-> {path}")


def info(options: argparse.Namespace) -> None:
    """Print versions, for bug reports."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    packages = "numpy scipy numba pandas PyWavelets cvxpy pillow matplotlib astropy"
    packages += " pyarrow zarr distributed torch"
    lines = {"csunmix": __version__, "python": platform.python_version()}
    for name in packages.split():
        try:
            lines[name] = version(name)
        except PackageNotFoundError:
            lines[name] = "not installed"
    lines |= {"platform": platform.platform(), "CPUs": str(os.cpu_count())}
    for name, value in lines.items():
        print(f"{name:12}{value}")


def demo(options: argparse.Namespace) -> None:
    """Unmix images that the package makes; write table, CSV and picture."""
    from csunmix.demo import run

    run(Path(options.out), progress=_on_terminal())


# Words


def _say(text: str) -> None:
    print(f"csunmix: {text}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    """The error in one line that speaks of options and files, not of Python's arguments."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split()) or type(error).__name__
    for pattern, replacement in _ARGUMENTS:
        text = re.sub(pattern, replacement, text)
    return text


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _frames(frames: Sequence[int], n: int, names: Sequence[str]) -> str:
    """The frames in words, the first of `n`, with their file names where these differ."""
    named = len(set(names)) > 1
    listed = ", ".join(f"{frame} ({names[frame]})" if named else str(frame) for frame in frames)
    more = f" and {n - len(frames)} more" if n > len(frames) else ""
    return f"frame{'' if n == 1 else 's'} {listed}{more}"


def _on_terminal() -> bool:
    return sys.stderr.isatty()
