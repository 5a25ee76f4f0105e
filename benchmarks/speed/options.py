"""What the speed benchmarks are told on the command line, and how a report quotes it."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser(script: str, doc: str, *, n: int, repeats: int = 5) -> argparse.ArgumentParser:
    """Options that all have: images, rounds, and the report beside the `script`."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--n", type=int, default=n, help="images")
    made.add_argument("--repeats", type=int, default=repeats, help="interleaved rounds")
    made.add_argument("--out", type=Path, default=Path(script).with_suffix(".md"))
    return made


def command(script: str, options: argparse.Namespace) -> str:
    """The command that makes the report again."""
    name = Path(script).stem
    return f"python -m benchmarks.speed.{name} --n {options.n} --repeats {options.repeats}"
