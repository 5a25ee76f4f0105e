"""What a benchmark ran on, in one line."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version


def describe() -> str:
    """Versions, processor count and platform."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("csunmix", "numpy", "numba"))
    return f"Python {platform.python_version()}, {packages}, {os.cpu_count()} CPUs"
