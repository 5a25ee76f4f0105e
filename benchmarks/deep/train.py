"""Train a network; a run that was stopped goes on where it was.

    python -m benchmarks.deep.train off-grid --setting clipped --steps 20000 --seed 1

A run has a folder of its own in `--runs`, `NAME-SETTING` (or `NAME-SETTING-LABEL`), with its last
checkpoint and a log of the loss, the CPU time, and the CSO-mAP on 2,000 validation images (seed
100, on which nothing else is reported). The learning rate rises over the first steps and falls to
zero as a cosine; answers are those of a running average of the weights. Every batch is drawn anew,
from the seed and its number: a run that was interrupted ends as one that was not.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

import csunmix as cu
from benchmarks.accuracy.protocol import TUNING_SEED
from benchmarks.deep import data
from benchmarks.deep.data import Stream
from benchmarks.deep.networks import NETWORKS
from csunmix.metrics import count_accuracy, cso_map

N_VALIDATION = 2000
_WARM_UP = 200  # steps


@dataclass(frozen=True, kw_only=True)
class Run:
    """What determines a trained network."""

    name: str
    setting: str
    steps: int
    batch: int = 2048
    rate: float = 1e-3
    seed: int = 1
    first: str = ""  # folder of the run whose weights it starts from
    label: str = ""  # tells runs of one network for the same data apart

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return "-".join(filter(None, (self.name, self.setting, self.label)))


class Trainer:
    """A network, its optimiser, and the running average of its weights.

    Parameters
    ----------
    run : Run
        What is trained.
    folder : Path
        Of all runs.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.path = run, folder / run.folder / "checkpoint.pt"
        setting = data.settings()[run.setting]
        torch.manual_seed(run.seed)
        self.network = NETWORKS[run.name](setting)
        self.stream = Stream(setting, run.seed, getattr(self.network, "shares", None))
        self.optimiser = torch.optim.AdamW(
            [each for each in self.network.parameters() if each.requires_grad],
            lr=run.rate,
            betas=(0.9, 0.99),
            weight_decay=1e-3,
        )
        self.step, self.seconds = 0, 0.0
        self.log: list[dict[str, float]] = []
        if self.path.exists():
            self._load()
        elif run.first:
            start = folder / run.first / "checkpoint.pt"
            if not start.exists():
                raise SystemExit(f"no run {run.first} in {folder}")
            first = torch.load(start, weights_only=True)
            missing = self.network.load_state_dict(first["average"], strict=False)
            if missing.unexpected_keys:
                raise SystemExit(f"{run.first} has other weights than {run.name}")
        elif getattr(self.network, "needs_first", False):
            raise SystemExit(f"{run.name} stands on another network: give its run, --first")
        if self.step == 0:
            self.average = copy.deepcopy(self.network)

    def advance(self, steps: int) -> float:
        """Train for so many steps and return their mean loss."""
        start, total = time.process_time(), 0.0
        self.network.train()
        for _ in range(steps):
            for group in self.optimiser.param_groups:
                group["lr"] = self.run.rate * self._schedule()
            batch = data.windows(self.stream.batch(self.step, self.run.batch))
            loss = self.network.loss(batch)
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimiser.step()
            self.step += 1
            self._average()
            total += loss.item()
        self.seconds += time.process_time() - start
        return total / steps

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        state = {
            "run": asdict(self.run),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "log": self.log,
        }
        torch.save(state, part)
        os.replace(part, self.path)
        pd.DataFrame(self.log).to_csv(self.path.parent / "log.csv", index=False)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.path, weights_only=True)
        if {"label": "", **state["run"]} != asdict(self.run):
            raise SystemExit(
                f"{self.path}: another run, {state['run']}; remove it or go on with it"
            )
        self.network.load_state_dict(state["network"])
        self.average = copy.deepcopy(self.network)
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    def _schedule(self) -> float:
        rise = min(1.0, (self.step + 1) / _WARM_UP)
        return rise * 0.5 * (1.0 + math.cos(math.pi * self.step / self.run.steps))

    def _average(self) -> None:
        keep = min(0.999, self.step / (self.step + 10))
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
            for old, new in pairs:
                old.lerp_(new, 1.0 - keep)


def validate(network: nn.Module, setting: data.Setting) -> dict[str, float]:
    """CSO-mAP and share of right counts on validation images, percent."""
    made = cu.simulate(
        setting.psf,
        setting.sensor,
        setting.scene,
        shape=setting.shape,
        n=N_VALIDATION,
        rng=TUNING_SEED,
    )
    found = network.eval().unmix(made.images)
    out = {"CSO-mAP": cso_map(found, made.truth).mean}
    if found["score"].notna().all():
        out["by score"] = cso_map(found, made.truth, rank_by="score").mean
    out["count"] = count_accuracy(found, made.truth)
    return {name: 100.0 * value for name, value in out.items()}


def train(
    run: Run, folder: Path, *, every: float, say: Callable[[str], None], until: int | None = None
) -> Trainer:
    """Train to the end, with a checkpoint and a validation each so many seconds."""
    trainer = Trainer(run, folder)
    setting = data.settings()[run.setting]
    end = run.steps if until is None else min(until, run.steps)
    while trainer.step < end:
        steps, total = 0, 0.0
        start = time.perf_counter()
        while trainer.step < end and time.perf_counter() - start < every:
            some = min(20, end - trainer.step)
            total, steps = total + some * trainer.advance(some), steps + some
        figures = {"loss": total / steps, **validate(trainer.average, setting)}
        trainer.log.append({"step": trainer.step, "CPU s": trainer.seconds, **figures})
        trainer.save()
        rate = steps * run.batch / (time.perf_counter() - start)
        told = ", ".join(f"{name} {value:.4g}" for name, value in trainer.log[-1].items())
        say(f"{run.folder}: {told} ({100 * trainer.step / run.steps:.0f} %, {rate:.0f} images/s)")
    return trainer


def main() -> None:
    """Train one network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NETWORKS)
    parser.add_argument("--setting", choices=data.settings(), default="clipped")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=Run.batch)
    parser.add_argument("--rate", type=float, default=Run.rate)
    parser.add_argument("--seed", type=int, default=Run.seed)
    parser.add_argument("--first", default="", help="run to start from, by its folder")
    parser.add_argument(
        "--label", default="", help="of its folder; only runs without are evaluated"
    )
    parser.add_argument("--runs", type=Path, default=Path("deep-runs"))
    parser.add_argument("--every", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    options = vars(parser.parse_args())
    torch.set_num_threads(options.pop("threads"))
    runs, every = options.pop("runs"), options.pop("every")
    train(Run(**options), runs, every=every, say=lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
