# %% [markdown]
# # One image, from start to finish
#
# Several point targets fall inside about one pixel of an infrared detector. The optics blur them
# and the detector integrates the blur over its pixels: one blob is left. *Unmixing* asks how many
# targets there are, where each one is within the pixel, and how bright it is.
#
# This notebook takes one such image through every step of csunmix: camera, dictionary, solver,
# peak rule, target table, comparison with the truth. The last part goes off the grid: that finds
# the targets more closely and knows its errors.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import csunmix as cu
from csunmix.solvers import duality_gap, kkt_violation

plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The camera
#
# A preset holds what is known of a benchmark. This one is CSIST-100K, which came with DISTA-Net
# (Han et al., ICCV 2025, arXiv:2505.19148): a Gaussian point spread function with sigma = 0.5 px,
# 11 x 11 pixels, values rounded to 8 bits. `prior` is what a method may be told of the targets,
# `scene` is what the simulator draws them from.

# %%
setup = cu.presets.csist_100k()
print(setup.psf)
print(setup.sensor)
print(setup.prior)

# %% [markdown]
# We simulate one image with four targets. Positions are in pixels: `x` is the column, `y` the row,
# and integers are pixel centres. `flux` is the whole energy of a target in DN, not its peak.

# %%
four = replace(setup.scene, count=(4, 4))
scene = cu.simulate(setup.psf, setup.sensor, four, shape=setup.shape, n=1, rng=1)
image, light = scene.images[0], scene.light[0]
scene.truth[["y", "x", "flux"]]

# %% [markdown]
# Four targets in one pixel give more light than 8 bits hold: the brightest pixel is **clipped**.
# Its recorded value is no measurement but a lower bound of one. csunmix calls such pixels
# *censored*: a model that goes above the bound there costs nothing, one that stays below does.

# %%
censored = setup.sensor.censored(image)
print(f"{censored.sum()} clipped pixel(s) at (y, x) = {np.argwhere(censored).tolist()}")
print(f"recorded {image[censored]} DN, received {light[censored].round(1)} DN")

fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, picture, title in zip(axes, (light, image), ("received", "recorded"), strict=True):
    cu.plots.plot_image(picture, ax=ax, colorbar=True, vmin=0, vmax=light.max()).set_title(title)
axes[1].plot(*np.argwhere(censored).T[::-1], "s", mfc="none", mec="C1", ms=11, mew=2)
plt.show()
# %% [markdown]
# ## The dictionary
#
# Grid methods divide every pixel into `factor` x `factor` cells and ask how much flux each cell
# holds. The dictionary is the linear map `A` from these fluxes to the image; its columns, the
# *atoms*, are the images of a unit target in each cell. With a Gaussian it is never built as a
# matrix: it is applied along y, then along x.
#
# `grid_unmixer` puts together the parts of a method and chooses the settings that we leave open.

# %%
unmix = cu.grid_unmixer(
    "active-set", psf=setup.psf, shape=setup.shape, sensor=setup.sensor, prior=setup.prior
)
dictionary, solver, peaks = unmix.dictionary, unmix.solver, unmix.peaks
n_pixels, n_atoms = dictionary.shape
print(f"{dictionary.grid.factor} x {dictionary.grid.factor} cells a pixel: {n_atoms} atoms for")
print(f"an image of {n_pixels} pixels")

# %% [markdown]
# There are far more unknowns than pixels, and neighbouring atoms are nearly the same image. Their
# *coherence*, the inner product of the two after scaling to unit norm, says how nearly: 1 means
# that no solver can tell them apart.

# %%
unit = cu.Dictionary(setup.psf, setup.shape, dictionary.grid.factor, normalised=True)
along_x = unit.gram[1]  # inner products of atoms in the same row of cells
middle = len(along_x) // 2
for steps in (1, 2, dictionary.grid.factor):
    print(
        f"cells {steps / dictionary.grid.factor:.2f} px apart: "
        f"coherence {along_x[middle, middle + steps]:.4f}"
    )

# %% [markdown]
# This is why maps `x` of two solvers are never compared here, only what does not depend on such
# ambiguities: objective, duality gap, fitted image, and in the end the targets.
#
# ## The solver and its certificate
#
# The solver looks for few cells that explain the image,
#
# $$P(x) = \tfrac12 \sum_p r_p^2 + \lambda \sum_j x_j, \qquad x \ge 0, \qquad r = y - A x,$$
#
# with $r_p$ replaced by $\max(r_p, 0)$ in clipped pixels. `lam` has the unit of the image (DN).

# %%
result = unmix.solve(image)
print(solver)
print(f"objective P     {result.objective:.4f}")
print(f"iterations      {result.n_iter}, converged: {result.converged}")
print(f"residual norm   {result.residual_norm:.3f} DN over {n_pixels} pixels")
print(f"non-zero cells  {np.count_nonzero(result.x)} of {n_atoms}")

# %% [markdown]
# Whether this is the optimum need not be believed. Two checks are computed from `x` alone, with no
# help of the solver. The relative *duality gap* bounds how far the objective can be above the
# optimum. The *KKT violation* says by how much the conditions of optimality are missed, in DN; it
# is to be seen beside `lam`.

# %%
problem = {"lam": solver.lam, "censored": censored}
print(f"duality gap     {duality_gap(dictionary, image, result.x, **problem):.1e}")
print(f"KKT violation   {kkt_violation(dictionary, image, result.x, **problem):.1e} DN")
print(f"lam             {solver.lam:.1e} DN")

# %% [markdown]
# ## The map, and the peak rule
#
# The optimum is a map on the grid. A target that lies between cells is spread over some of them,
# so a map is not yet a list of targets.

# %%
flux_map = dictionary.to_flux(result.x)
fig, ax = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
cu.plots.plot_map(flux_map, dictionary.grid, ax=ax, colorbar=True)
y, x = np.argwhere(censored)[0]
ax.set(xlim=(x - 1.5, x + 1.5), ylim=(y + 1.5, y - 1.5), title="flux map around the blob")
plt.show()
# %% [markdown]
# A *peak rule* reads targets from the map. On this map the three rules find:

# %%
rules = {
    "every cell at or above 50 DN (the published protocol)": cu.EveryCell(threshold=50.0),
    "local maxima": cu.LocalMaxima(threshold=50.0),
    "merging cells nearby into their flux-weighted centroid": peaks,
}
for name, rule in rules.items():
    print(f"{len(rule.find(flux_map, dictionary.grid).flux)} targets: {name}")
print(peaks)

# %% [markdown]
# Merging gives positions *between* the cells. It is what this unmixer uses.
#
# ## The target table
#
# All of the above in one call. The answer of every method is the same table, a pandas DataFrame
# with one row a target.

# %%
targets = unmix(image)
targets

# %% [markdown]
# `y_err`, `x_err`, `flux_err` and `score` are NaN: a grid method gives one answer and does not
# know how sure it is. `flags` is a sum of bits; here it says that the image is saturated.

# %%
cu.targets.Flag(int(targets["flags"].iloc[0]))

# %% [markdown]
# ## Against the truth
#
# Each target found is paired with a true one, one to one, so that as many as possible pair within
# 0.5 px and the distances are smallest.

# %%
pairs = cu.metrics.match(targets, scene.truth, max_distance=0.5)
found, true = targets.iloc[pairs.detection], scene.truth.iloc[pairs.truth]
print(f"{len(scene.truth)} true, {len(targets)} found, {len(pairs)} paired")
for distance, f, t in zip(pairs.distance, found["flux"], true["flux"], strict=True):
    print(f"distance {distance:.3f} px, flux {f:.0f} DN instead of {t:.0f} DN")

# %%
cu.plots.plot_unmixing(
    image, targets=targets, truth=scene.truth, coefficients=flux_map, grid=dictionary.grid
)
plt.show()
# %% [markdown]
# ## What is left over
#
# The residual is the image less what the answer predicts. We look at the map's residual, which the
# solver made small, and at that of the target list, where merging has moved things a little. The
# clipped pixel (square) is no measurement: there the prediction may go above the image.
#
# Mind the scale. The image is rounded to whole DN, so it cannot tell apart two answers whose
# predictions differ by less than about half a DN, however far apart their targets are. That, and
# not the solver, is what makes close targets hard.

# %%
predicted = cu.render(setup.psf, targets, shape=setup.shape)[0]
residuals = {"map": image - dictionary.forward(result.x), "targets": image - predicted}
fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
for ax, (name, residual) in zip(axes, residuals.items(), strict=True):
    largest = np.abs(residual[~censored]).max()
    cu.plots.plot_image(residual, ax=ax, colorbar=True, cmap="PuOr", vmin=-largest, vmax=largest)
    ax.plot(*np.argwhere(censored).T[::-1], "s", mfc="none", mec="black", ms=11, mew=2)
    ax.set_title(f"image less {name}")
    print(f"image less {name}: {largest:.2f} DN at most, the clipped pixel aside")
plt.show()

# %% [markdown]
# ## Many images
#
# One image proves nothing. Two hundred take the same call; `compare` puts the measures of the
# field beside each other. CSO-mAP is the mean of the average precisions at 0.05 to 0.25 px (AP05
# to AP25); counts, positions and fluxes have columns of their own.

# %%
many = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=200, rng=2)
cu.compare({"active set, merged": unmix(many.images)}, many.truth).T.round(3)

# %% [markdown]
# ## What grid methods cannot do
#
# **Errors.** As seen above, they are NaN.
#
# **Leave the grid on their own.** A method that answers with cell centres has a ceiling. Take the
# true targets of 2,000 images, move each to the centre of its cell, and score that. It is what a
# method would get that finds every target, puts it on the right cell and ranks by flux.

# %%
ceiling = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=2000, rng=3)
runs = {}
for factor in (3, 5, 7):
    grid = cu.SubpixelGrid(setup.shape, factor)
    on_grid = ceiling.truth.copy()
    on_grid["y"], on_grid["x"] = grid.position(*grid.cell(on_grid["y"], on_grid["x"]))
    runs[f"{factor} x {factor} cells"] = on_grid
cu.compare(runs, ceiling.truth).iloc[:, :6].round(1)

# %% [markdown]
# For comparison, DISTA-Net reports CSO-mAP 46.74 at 3 x 3 cells (DISTA-Net, ICCV 2025; on the test
# images of CSIST-100K, which these are not). Finer cells raise the ceiling, and the coherence with
# it; merging cells leaves the grid only as far as a centroid can. The way out is to fit the
# positions themselves.
#
# ## Off the grid
#
# `PosteriorUnmixer` weighs all scenes that the prior allows by how well they explain the image, and
# answers with their mean. It says how many targets there are, how probable each number is, and how
# far off every position and flux may be: `y_err`, `x_err` and `flux_err` are standard deviations,
# `score` is the probability that there are as many, and that the target is within 0.1 px.

# %%
off_grid = cu.PosteriorUnmixer(setup.psf, setup.sensor, setup.prior)
answer = off_grid(image)
probability = dict(zip(answer.attrs["counts"], answer.attrs["count_probability"][0], strict=True))
print({count: round(p, 3) for count, p in probability.items()})
answer

# %% [markdown]
# The ellipses hold a target with 95 %, if its errors are normal. Here they hardly reach beyond the
# crosses.

# %%
y, x = answer["y"].mean(), answer["x"].mean()
fig, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
for ax, (name, table) in zip(axes, {"on the grid": targets, "off it": answer}.items(), strict=True):
    cu.plots.plot_answer(image, targets=table, truth=scene.truth, n_sigma=2.45, ax=ax)
    ax.set(xlim=(x - 0.8, x + 0.8), ylim=(y + 0.8, y - 0.8), title=name)
    ax.legend(loc="upper left", fontsize="small")
plt.show()

# %% [markdown]
# One hundred of the images from above. A column for each method; *pulls* are errors over claimed
# errors, whose standard deviation should be 1.

# %%
some = many.images[:100]
truth = many.truth[many.truth["frame"] < len(some)]
truth.attrs["n_frames"] = len(some)
answers = off_grid(some)
compared = cu.compare({"on the grid": unmix(some), "off the grid": answers}, truth)
pairs = cu.metrics.match(answers, truth, max_distance=0.5)
found, true = answers.iloc[pairs.detection], truth.iloc[pairs.truth]
for name in ("y", "x"):
    pull = (found[name].to_numpy() - true[name].to_numpy()) / found[f"{name}_err"].to_numpy()
    print(f"pulls in {name}: standard deviation {pull.std():.2f}")
compared.T.round(3)
