"""Chains that hop between the optima of a posterior."""

from __future__ import annotations

import math

import numpy as np

from csunmix._kernels.arrays import filled
from csunmix._kernels.billiards import Chain, Mass, new_chain, settle, to_mass, travel, weigh
from csunmix._kernels.jit import glue, kernel, leaf
from csunmix._kernels.linalg import copy, inner_gram
from csunmix._kernels.model import Model
from csunmix._kernels.modes import Modes
from csunmix._kernels.prior import log_prior
from csunmix._kernels.scene import illuminate, log_likelihood
from csunmix._validation import FloatArray, IntArray

_ACCEPTANCE = 0.85
_LEAP = (0.02, 0.25, 1.0)  # shortest, first and longest, standard deviations
_DRAWS = (10, 100)  # that a chain's start is the likeliest of, and at most until one is possible
_OWN = 0.5  # of the paths have the mass of the mode that the chain started from
_ADAPTING = 0.1  # share of a chain that adapts its leaps and is not kept


@kernel()
def wander(
    model: Model, modes: Modes, starts: IntArray, n_steps: int, n_hops: int, extra: float, seed: int
) -> tuple[FloatArray, FloatArray]:
    """States (n_chains, n, d) of chains that start at the modes `starts`.

    Every step is a path and `n_hops` hops. A hop maps one mode's approximation onto another's; a
    path has the mass of the chain's first mode, or of any of them, or the Fisher information where
    a chain so far began to be kept. The noise's variance is raised by `extra`; the log weights
    (n_chains, n) make up for it. Without room around any mode there are no states.
    """
    np.random.seed(seed)
    n_modes, d = modes.mean.shape
    chain, trial = new_chain(model), new_chain(model)
    skipped = int(_ADAPTING * n_steps)
    states = np.empty((starts.size, n_steps - skipped, d))
    logs = np.empty(states.shape[:2])
    leap, weight = _LEAP[1], 0.0
    n_masses, gram = n_modes, filled((d, d), 0.0)
    factors = np.empty((n_modes + starts.size, d, d))
    inverses = np.empty((n_modes + starts.size, d, d))
    for k in range(n_modes):
        inner_gram(modes.inverse[k], gram)
        to_mass(gram, Mass(factors[k], inverses[k]))
    same = np.arange(model.n_targets)
    for c in range(starts.size):
        begun = _begin(model, modes, starts[c], extra, chain, trial)
        begun = begun or c > 0  # it goes on where the last chain ended
        for k in range(n_modes):
            begun = begun or _begin(model, modes, k, extra, chain, trial)
        if not begun:
            return states[:0], logs[:0]
        for s in range(n_steps):
            if s == skipped:  # what is kept has the same masses all along
                mass = Mass(factors[n_masses], inverses[n_masses])
                weigh(model, extra, chain.theta, same, trial, gram)
                to_mass(gram, mass)
                n_masses += 1
            own = np.random.random() < _OWN
            at = starts[c] if own else np.random.randint(n_masses)
            moved = travel(model, extra, leap, Mass(factors[at], inverses[at]), chain, trial)
            if moved:
                chain, trial = trial, chain
            if s < skipped:
                change = 0.3 * ((1.0 if moved else 0.0) - _ACCEPTANCE)
                leap = min(max(leap * math.exp(change), _LEAP[0]), _LEAP[2])
            for _ in range(n_hops if n_modes > 1 else 0):
                if _hop(model, modes, extra, chain, trial):
                    settle(model, extra, trial.theta, chain)
                    moved = True
            if s >= skipped:
                copy(chain.theta, states[c, s - skipped])
                if moved or s == skipped:
                    weight = (
                        log_likelihood(model.pixels, chain.room.light, 0.0, -np.inf)
                        - chain.value[0]
                    )
                logs[c, s - skipped] = weight
    return states, logs


@glue()
def _begin(model: Model, modes: Modes, k: int, extra: float, chain: Chain, trial: Chain) -> bool:
    """Put a chain at the likeliest of some draws around a mode; False if the prior has none."""
    best, d = -np.inf, modes.mean.shape[1]
    for n in range(_DRAWS[1]):
        if n >= _DRAWS[0] and best > -np.inf:
            break
        copy(modes.theta[k] if n % 2 == 0 else modes.mean[k], trial.theta)
        for b in range(d):
            z = n / _DRAWS[1] * np.random.normal()
            for a in range(b, d):
                trial.theta[a] += modes.factor[k, a, b] * z
        if log_prior(model.box, trial.theta, model.n_targets) == -np.inf:
            continue
        illuminate(model.optics, trial.theta, trial.room)
        value = log_likelihood(model.pixels, trial.room.light, extra, -np.inf)
        if value > best:
            best = value
            copy(trial.theta, chain.theta)
    if best == -np.inf:
        return False
    copy(chain.theta, trial.theta)
    settle(model, extra, trial.theta, chain)
    return True


@leaf()
def _hop(model: Model, modes: Modes, extra: float, chain: Chain, trial: Chain) -> bool:
    """Whether to hop from the scene of `chain` to that put into `trial`."""
    n_modes, d = modes.mean.shape
    k = np.random.randint(n_modes)
    m = (k + 1 + np.random.randint(n_modes - 1)) % n_modes
    log_volume = 0.0
    unit = trial.velocity
    for a in range(d):
        s = 0.0
        for b in range(a + 1):
            s += modes.inverse[k, a, b] * (chain.theta[b] - modes.mean[k, b])
        unit[a] = s
        log_volume += math.log(modes.factor[m, a, a] * modes.inverse[k, a, a])
    for a in range(d):
        s = modes.mean[m, a]
        for b in range(a + 1):
            s += modes.factor[m, a, b] * unit[b]
        trial.theta[a] = s
    after = log_prior(model.box, trial.theta, model.n_targets)
    if after == -np.inf:
        return False
    before = log_prior(model.box, chain.theta, model.n_targets)
    floor = chain.value[0] + before - after - log_volume + math.log(np.random.random())
    illuminate(model.optics, trial.theta, trial.room)
    trial.value[0] = log_likelihood(model.pixels, trial.room.light, extra, floor)
    return bool(trial.value[0] >= floor)
