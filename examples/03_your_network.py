# %% [markdown]
# # Your network beside csunmix
#
# You have a network that unmixes, and its answers on a test set. This notebook puts them beside
# those of csunmix, on the same images and with the same metric:
#
# 1. answers that were saved to a file,
# 2. the network itself, called like any other method,
# 3. the leaderboard, and where each method fails.
#
# No deep-learning framework is needed here: the "network" is a plain function. A `torch.nn.Module`
# takes its place without any other change.

# %%
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import csunmix as cu

plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## Data
#
# Forty images by the protocol of CSIST-100K, written to disk in the layout of that data set and
# read back, as you would read the original one.

# %%
setup = cu.presets.csist_100k()
scenes = cu.simulate(setup.psf, setup.sensor, setup.scene, shape=setup.shape, n=40, rng=11)
folder = Path(tempfile.mkdtemp())
cu.datasets.write_csist(folder / "test", scenes.images, scenes.truth)
data = cu.datasets.read_csist(folder / "test")
print(f"{len(data.images)} images, {len(data.truth)} targets")

# %% [markdown]
# ## A network
#
# Unfolding networks such as LISTA and ISTA-Net repeat one step: go down the gradient of the
# residual, then shrink what is small. What training would choose, step sizes and thresholds, is
# chosen by hand here. Like the published networks it answers with one number for each of 3 x 3
# cells a pixel, as flat maps `(N, 33 * 33)`.

# %%
dictionary = cu.Dictionary(setup.psf, setup.shape, factor=3)
step = 1.0 / dictionary.lipschitz


def network(images, n_layers=200, threshold=1.0):
    """An unfolded FISTA: flat images in, flat maps out."""
    y = images.reshape(-1, 11, 11).astype(float)
    x = z = np.zeros((len(y), 33, 33))
    t = 1.0
    for _ in range(n_layers):
        residual = dictionary.forward(z) - y
        residual[(y >= 255) & (residual > 0)] = 0.0  # a clipped pixel is a lower bound
        x, before = np.maximum(z - step * (dictionary.adjoint(residual) + threshold), 0.0), x
        t, t_before = (1 + np.sqrt(1 + 4 * t * t)) / 2, t
        z = x + (t_before - 1) / t * (x - before)
    return dictionary.to_flux(x).reshape(len(y), -1)


maps = network(data.images.reshape(40, -1))
np.save(folder / "maps.npy", maps)
print(maps.shape)

# %% [markdown]
# ## Answers from a file
#
# `read_maps` takes NPY, NPZ and MAT files; every cell at or above 50 DN is a target, which is the
# published protocol. There are readers for text files and COCO-like JSON, too.
#
# **Which axis is which?** In the annotations of CSIST-100K `xc` is the *row* of the image, and in
# the maps of the published networks the first axis is `xc`. csunmix calls the row `y`. The readers
# know this; if your files have the column first, say `first="column"`.

# %%
from_file = cu.datasets.read_maps(folder / "maps.npy")
from_file.head(3)

# %% [markdown]
# A look at one image: a map in the file, and the targets that are read from it. Were the axes
# exchanged, the crosses would not lie on the bright cells.


# %%
def around(frame, size=4):
    """Edges (top, bottom, left, right) of a square inside the image around the true targets."""
    middle = data.truth[data.truth["frame"] == frame][["y", "x"]].mean()
    top, left = np.clip(middle - size / 2, -0.5, 10.5 - size)
    return top, top + size, left, left + size


counts = data.truth["frame"].value_counts().sort_index()
frame = int(counts.index[counts == 3][0])
top, bottom, left, right = window = around(frame)
fig, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
cu.plots.plot_map(maps[frame].reshape(33, 33), dictionary.grid, ax=axes[0]).set_title("map")
cu.plots.plot_targets(from_file, frame=frame, ax=axes[0])
axes[0].set(xlim=(left, right), ylim=(bottom, top))
shown = {"targets": from_file, "truth": data.truth, "frame": frame, "window": window}
cu.plots.plot_answer(data.images[frame], **shown, ax=axes[1]).set_title("truth (circles), answer")
plt.show()

# %% [markdown]
# ## The network as an unmixer
#
# `NetworkUnmixer` wraps the network, so that it is called like every method of csunmix: images in,
# target table out, in batches, with a progress bar if you like; images with NaN are left out and
# flagged. `preprocess` makes of the images what the network was trained on.

# %%
unmix = cu.NetworkUnmixer(network, factor=3, preprocess=lambda a: a.reshape(len(a), -1))
answer = unmix(data.images)
columns = ["frame", "y", "x", "flux"]
print("same as from the file:", np.allclose(answer[columns], from_file[columns], atol=1e-3))

# %% [markdown]
# ## All methods
#
# Another peak rule takes more out of the same maps: neighbouring cells are one target at their
# centre of mass. And `ContinuousUnmixer` leaves the grid: it fits positions and fluxes directly,
# and is told the optics, the detector and the prior: no training, but a model. All answer five
# images before they are timed, as compiled code is compiled on its first use.

# %%
methods = {
    "network": unmix,
    "network, cells merged": replace(unmix, peaks=cu.MassMerging(threshold=50.0, radius=0.35)),
    "ContinuousUnmixer": cu.ContinuousUnmixer(setup.psf, setup.sensor, setup.prior),
}
runs, seconds = {}, {}
for name, method in methods.items():
    method(data.images[:5])
    start = time.perf_counter()
    runs[name] = method(data.images)
    seconds[name] = time.perf_counter() - start

# %% [markdown]
# ## The leaderboard

# %%
report = cu.Report(
    runs,
    data.truth,
    images=data.images,
    names=data.names,
    seconds=seconds,
    title="Forty simulated images",
)
print(report.to_text())

# %%
fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
cu.plots.plot_ap(runs, data.truth, ax=axes[0])
cu.plots.plot_precision_recall(runs, data.truth, 0.15, ax=axes[1])
cu.plots.plot_errors(runs, data.truth, ax=axes[2])
plt.show()

# %% [markdown]
# The hardest image, by the mean GOSPA of the methods:

# %%
frame = report.hardest[0]
fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained")
for ax, (name, targets) in zip(axes, runs.items(), strict=True):
    shown = {"targets": targets, "truth": data.truth, "frame": frame, "window": around(frame)}
    cu.plots.plot_answer(data.images[frame], **shown, ax=ax)
    ax.set_title(f"{name}: {report.gospa[name][frame]:.2f} px")
plt.show()

# %% [markdown]
# `write` saves the same as text, CSV, Markdown and one HTML page with all plots, which needs no
# other file and no network:

# %%
for path in report.write(folder / "leaderboard"):
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")

# %% [markdown]
# On the command line, with the files alone:
#
# ```
# csunmix unmix test/cso_img --method continuous --out continuous.csv
# csunmix compare --truth test network=maps.npy ContinuousUnmixer=continuous.csv --out leaderboard
# ```
#
# How to read this: the network was not trained, so it says nothing of trained ones; and forty
# images are few. What holds for all answers in cells of a third of a pixel is that the nearest cell
# lies 0.13 px from a target in the mean.
