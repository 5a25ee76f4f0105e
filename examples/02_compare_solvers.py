# %% [markdown]
# # All solvers on the same images
#
# csunmix has several solvers for the same sparse problem, and greedy ones for a related problem.
# This notebook runs them on the same 40 images and compares
#
# 1. how they approach the optimum, against iterations and against time,
# 2. what they reach: objective, duality gap, number of non-zero cells,
# 3. what targets come out, for every solver and every peak rule.
#
# Everything said here holds for these images, on the machine that ran it. For larger tables see
# `benchmarks/`.

# %%
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import csunmix as cu
from csunmix.solvers import kkt_violation

plt.rcParams["figure.dpi"] = 80
pd.set_option("display.precision", 3)

# %% [markdown]
# ## The problem
#
# Forty images by the protocol of CSIST-100K (see the first notebook), and a grid of 3 x 3 cells a
# pixel. All l1 solvers minimise
#
# $$P(x) = \tfrac12 \sum_p r_p^2 + \lambda \sum_j x_j, \qquad x \ge 0, \qquad r = y - A x,$$
#
# with $r_p$ replaced by $\max(r_p, 0)$ in clipped pixels.

# %%
setup = cu.presets.csist_100k()
scenes = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=40, rng=5)
images, truth = scenes.images, scenes.truth
censored = setup.sensor.censored(images)
dictionary = cu.Dictionary(setup.psf, setup.shape, factor=3)
lam = 1.0
print(f"{len(truth)} targets in {len(images)} images, {censored.any((1, 2)).sum()} of them clipped")
print(f"{dictionary.shape[1]} atoms, {dictionary.shape[0]} pixels")

# %% [markdown]
# FISTA and split Bregman go on until the relative duality gap of each image is below `tol`. The
# active-set method ends at the optimum by itself. ISTA with its textbook step 1/L would take very
# long; it gets a limited number of iterations and is stopped before it has converged. (By default
# `ISTA` chooses its steps by the curvature and does converge.)

# %%
l1_solvers = {
    "ISTA, fixed step": cu.ISTA(lam=lam, max_iter=1000, step="fixed"),
    "ISTA": cu.ISTA(lam=lam, tol=1e-5),
    "FISTA": cu.FISTA(lam=lam, tol=1e-5),
    "SplitBregman": cu.SplitBregman(lam=lam, tol=1e-5),
    "ActiveSet": cu.ActiveSet(lam=lam),
}
greedy_solvers = {
    "MatchingPursuit": cu.MatchingPursuit(n_nonzero=5),
    "OMP": cu.OMP(n_nonzero=5),
    "OMP, optimised": cu.OMP(
        n_nonzero=5, bounds=setup.prior.flux, locally_optimised=True, search_radius=1.0
    ),
}

# %% [markdown]
# ## Convergence
#
# A solver that is given a `callback` reports its progress; `history` keeps the reports. Two things
# to know before times are compared:
#
# - The kernels are compiled on their first use, which takes seconds. So every solver takes a
#   few steps on two images before it is timed.
# - Looking costs time too. The active-set method looks after every atom, the others after every ten
#   iterations; each look evaluates objective and gap of all images.


# %%
def watch(stats):
    """Look, and go on: returning True would stop the solver."""


results, seconds = {}, {}
for name, solver in l1_solvers.items():
    first = replace(solver, max_iter=10)
    first.solve(dictionary, images[:2], censored=censored[:2], callback=watch)  # compile
    start = time.perf_counter()
    results[name] = solver.solve(dictionary, images, censored=censored, callback=watch)
    seconds[name] = time.perf_counter() - start

# %% [markdown]
# The height of the curves is how far the objective lies above the lowest one that any solver
# reached for that image, relative to it; the median over the images. An iteration is not the same
# thing for all: one step of all cells for ISTA, FISTA and split Bregman, one atom that enters for
# the active-set method.

# %%
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
cu.plots.plot_convergence(results, ax=axes[0])
cu.plots.plot_convergence(results, x="time", ax=axes[1])
plt.show()
# %% [markdown]
# ## What is reached
#
# The table lists for each solver the mean objective, the largest duality gap and the largest
# violation of the optimality conditions (KKT, DN, to be seen beside `lam` = 1), the mean number of
# cells above 0.001 DN, and the time for all images, progress reports included.
#
# The last two columns say by how much the maps `x` and the fitted images `A x` differ at most from
# those of the active-set method, in DN; clipped pixels are left out, as the fit is free there.


# %%
def fit(result):
    """Fitted images, 0 in clipped pixels."""
    return np.where(censored, 0.0, dictionary.forward(result.x))


exact = results["ActiveSet"]
rows = {
    name: {
        "objective": result.objective.mean(),
        "gap": result.gap.max(),
        "KKT": kkt_violation(dictionary, images, result.x, lam=lam, censored=censored).max(),
        "non-zeros": (result.x > 1e-3).sum((1, 2)).mean(),
        "converged": result.converged.mean(),
        "time [s]": seconds[name],
        "x differs": np.abs(result.x - exact.x).max(),
        "A x differs": np.abs(fit(result) - fit(exact)).max(),
    }
    for name, result in results.items()
}
pd.DataFrame(rows).T

# %% [markdown]
# **Compare objectives, not maps.** Neighbouring atoms are nearly the same image, so quite different
# maps have nearly the same fitted image and objective: see how much more the maps differ than the
# fits. The duality gap is the honest measure; it needs no other solver to compare with.
#
# An independent check: CVXPY with Clarabel, an interior-point solver, on the first three images.

# %%
oracle = cu.CvxpyLasso(lam=lam).solve(dictionary, images[:3], censored=censored[:3])
for name, result in results.items():
    excess = np.abs(result.objective[:3] / oracle.objective - 1)
    print(f"{name:13s} differs from CVXPY's objective by {excess.max():.1e}, relative")

# %% [markdown]
# The greedy solvers have another aim, a small residual with few atoms, and no duality gap. What can
# be said of them is the residual and the number of atoms.

# %%
for name, solver in greedy_solvers.items():
    solver.solve(dictionary, images[:2], censored=censored[:2])  # compile
    start = time.perf_counter()
    results[name] = solver.solve(dictionary, images, censored=censored)
    seconds[name] = time.perf_counter() - start
pd.DataFrame(
    {
        name: {
            "residual norm [DN]": np.median(results[name].residual_norm),
            "atoms": (results[name].x > 0).sum((1, 2)).mean(),
            "time [s]": seconds[name],
        }
        for name in greedy_solvers
    }
).T.round(3)

# %% [markdown]
# Plain OMP leaves little residual and yet, as the next table shows, few of its targets are right:
# on a coherent dictionary the best first atom lies *between* two targets, and it never moves.
# `locally_optimised=True` lets the chosen atoms move; `bounds` uses the known range of fluxes.
#
# ## Targets
#
# The maps are read by the three peak rules and scored. `EveryCell` is the published protocol: each
# cell at or above 50 DN is a detection.

# %%
rules = {
    "every cell": cu.EveryCell(threshold=50.0),
    "local maxima": cu.LocalMaxima(threshold=50.0),
    "mass merging": cu.MassMerging(threshold=50.0, radius=0.35),
}
runs = {}
for solver_name, result in results.items():
    flux_maps = dictionary.to_flux(result.x)
    for rule_name, rule in rules.items():
        found = rule.find(flux_maps, dictionary.grid)
        runs[f"{solver_name}, {rule_name}"] = cu.targets.make_table(*found, n_frames=len(images))

table = cu.compare(runs, truth)
table.round(2)

# %% [markdown]
# The same CSO-mAP at a glance:

# %%
scores = table["CSO-mAP"].to_numpy().reshape(len(results), len(rules))
pd.DataFrame(scores, index=list(results), columns=list(rules)).round(1)

# %% [markdown]
# Average precision against the distance that counts as a hit, for the best peak rule of each
# solver, and precision against recall at 0.25 px:

# %%
best = {
    name: f"{name}, {list(rules)[k]}" for name, k in zip(results, scores.argmax(1), strict=True)
}
best_runs = {name: runs[run] for name, run in best.items()}
fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
cu.plots.plot_ap(best_runs, truth, ax=axes[0])
cu.plots.plot_precision_recall(best_runs, truth, 0.25, ax=axes[1])
plt.show()

# %% [markdown]
# How to read this:
#
# - Solvers that reach the same objective give nearly the same targets here; which of them to take
#   is a question of time and of certainty, not of accuracy.
# - A lower objective need not mean better targets: compare ISTA with the fixed step, stopped early,
#   with the solvers that went to the end. The l1 problem stands in for the question, it is not the
#   question.
# - Forty images are few: on other forty the figures move by several points. Change `rng` in the
#   second cell and see.
# - Choosing the best rule on the images that are scored flatters every solver alike.
# - The grid of 3 x 3 cells limits all of them; the first notebook shows where its ceiling lies.
