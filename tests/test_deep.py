"""The networks of benchmarks/deep: their data, their parts, and that they learn."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp, multivariate_normal

import csunmix as cu

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra [bench])")

from benchmarks.deep import data, matching, off_grid, on_grid, posterior, train, weights  # noqa: E402
from benchmarks.deep.networks import NETWORKS  # noqa: E402
from benchmarks.deep.symmetry import octant, symmetry  # noqa: E402

SETTINGS = data.settings()
CLIPPED = SETTINGS["clipped"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stream(setting=CLIPPED, seed=3, **more):
    return data.Stream(setting, seed, pool_size=more.pop("pool_size", 64), **more)


def figures(targets, images):
    """What is compared: places in the cell, the least distance, the flux, pixels."""
    cell = np.rint(targets[:, :2])
    distance = np.hypot(*(targets[:, None, :2] - targets[None, :, :2]).T)
    np.fill_diagonal(distance, np.inf)
    return [
        *(targets[:, :2] - cell)[0],
        distance.min(),
        targets[0, 2],
        *cell[0],
        images.max(),
        images.sum(),
        np.sort(images.ravel())[-5],
    ]


@pytest.mark.parametrize("name", ["clipped", "sigma-5"])
def test_stream_is_distributed_as_simulate(name):
    setting = SETTINGS[name]
    n = 1500
    made = cu.simulate(setting.psf, setting.sensor, setting.scene, shape=setting.shape, n=n, rng=11)
    true = made.truth[["y", "x", "flux"]].to_numpy()
    sets = np.split(true, np.flatnonzero(np.diff(made.truth["frame"])) + 1)
    drawn = stream(setting, 5, pool_size=1500).batch(0, n)
    assert ks_2samp([len(each) for each in sets], drawn.count).pvalue > 1e-3
    for k in (2, 4, 5):
        ours = [
            figures(drawn.targets[i, :k], drawn.images[i]) for i in np.flatnonzero(drawn.count == k)
        ]
        theirs = [figures(each, made.images[i]) for i, each in enumerate(sets) if len(each) == k]
        for one, other in zip(np.transpose(ours), np.transpose(theirs), strict=True):
            assert ks_2samp(one, other).pvalue > 1e-4


def test_stream_keeps_the_prior_and_is_determined():
    drawn, again = (stream().batch(7, 500) for _ in range(2))
    np.testing.assert_array_equal(drawn.images, again.images)
    assert not np.array_equal(drawn.images, stream().batch(8, 500).images)
    for count, targets in zip(drawn.count, drawn.targets, strict=True):
        assert (targets[count:] == 0).all()
        y, x, flux = targets[:count].T
        assert np.unique(np.rint([y, x]), axis=1).shape[1] == 1  # one cell
        assert ((flux >= 220) & (flux <= 250)).all()
        apart = np.hypot(y[:, None] - y, x[:, None] - x)[~np.eye(count, dtype=bool)]
        assert (apart >= CLIPPED.scene.min_separation).all()


def test_shares_of_counts():
    shares = (0.0, 0.0, 0.5, 0.0, 0.5)
    counts = stream(shares=shares).batch(0, 1000).count
    assert set(counts) == {3, 5}
    assert abs((counts == 3).mean() - 0.5) < 0.06


def test_render_is_the_package_s():
    drawn = stream().batch(1, 40)
    frame, k = np.nonzero(drawn.targets[..., 2])
    table = cu.targets.make_table(frame, *drawn.targets[frame, k].T, n_frames=40)
    light = data.render(CLIPPED.psf, drawn.targets, CLIPPED.shape)
    expected = cu.render(CLIPPED.psf, table, shape=CLIPPED.shape)
    np.testing.assert_allclose(light, expected, atol=1e-10)
    np.testing.assert_array_equal(drawn.images, CLIPPED.sensor.expose(expected, 0))


def test_crop():
    images = stream(SETTINGS["sigma-5"]).batch(0, 200).images
    images[0, 0, 0] = 1000.0
    pixels, seen, centre = data.crop(images)
    for image, crop, mask, (y, x) in zip(images, pixels, seen, centre, strict=True):
        assert image[y, x] == image.max()
        for i, j in np.ndindex(data.SIDE, data.SIDE):
            r, c = y + i - data.HALF, x + j - data.HALF
            inside = 0 <= r < image.shape[0] and 0 <= c < image.shape[1]
            assert mask[i, j] == inside
            assert crop[i, j] == (image[r, c] if inside else 0.0)


@pytest.mark.parametrize("k", range(1, 6))
def test_pair_is_brute_force(k):
    cost = torch.rand(20, k, k, generator=torch.Generator().manual_seed(k))
    for each, order in zip(cost.numpy(), matching.pair(cost).numpy(), strict=True):
        best = min(permutations(range(k)), key=lambda s: sum(each[i, s[i]] for i in range(k)))
        assert tuple(order) == best


def test_sort_like_finds_a_permutation_again():
    windows = data.windows(stream().batch(0, 100))
    true = windows.targets
    shuffled = true.clone()
    rng = np.random.default_rng(0)
    for i, k in enumerate(windows.count):
        shuffled[i, :k] = true[i, rng.permutation(int(k))]
    near = true + 0.01 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matching.sort_like(near, shuffled, windows.count), true)


def test_octant_and_back():
    windows = data.windows(stream(SETTINGS["rounded"]).batch(0, 300))
    pixels, seen, targets = octant(windows)
    at = torch.arange(data.SIDE) - float(data.HALF)
    y, x = pixels.sum(dim=2) @ at, pixels.sum(dim=1) @ at
    assert ((y >= -1e-3) & (y <= x + 1e-3)).all()
    torch.testing.assert_close(symmetry(windows.pixels).back(targets), windows.targets)
    turned = targets.numpy() + np.array([data.HALF, data.HALF, 0.0])
    light = data.render(CLIPPED.psf, turned, (data.SIDE, data.SIDE))
    away = np.abs(light - pixels.numpy()) * seen.numpy()
    assert away.max() < 0.501  # rounding alone


def test_linearised_fit_finds_the_truth():
    setting = SETTINGS["rounded"]
    windows = data.windows(stream(setting).batch(0, 200))
    true = off_grid.standard(windows.targets, windows.count)
    mask = off_grid.among(windows.count)[..., None]
    few = windows.count <= 2
    mean = true + 0.01 * mask * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        left, step, error = off_grid.linearise(setting, windows.pixels, windows.seen, mean, mask)
        mean = mean + step
    pull = ((mean - true) / error.exp())[few.nonzero()[:, 0]]
    assert pull[..., :2].abs().max() < 5.0
    assert left[few].square().mean() < 1.3
    assert (mean * (1 - mask) == 0).all()


def test_clipped_pixels_say_no_more_than_that_they_are_full():
    targets = np.zeros((1, data.MOST, 3))
    targets[0, :4, :2] = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * 0.25 + data.HALF
    targets[0, :4, 2] = 235.0
    light = data.render(CLIPPED.psf, targets, (data.SIDE, data.SIDE))
    image = torch.from_numpy(CLIPPED.sensor.expose(light, 0)).float()
    count = torch.tensor([4])
    mean = off_grid.standard(torch.from_numpy(targets).float(), count)
    mean[..., :2] -= data.HALF * off_grid.among(count)[..., None]
    mask = off_grid.among(count)[..., None]
    seen = torch.ones_like(image)
    left, _, _ = off_grid.linearise(CLIPPED, image, seen, mean, mask)
    assert left[0, data.HALF, data.HALF] == 0
    dimmer = mean - 6.0 * mask * torch.tensor([0.0, 0.0, 1.0])
    left, _, _ = off_grid.linearise(CLIPPED, image, seen, dimmer, mask)
    assert left[0, data.HALF, data.HALF] > 0


def test_log_density_is_a_mixture():
    generator = torch.Generator().manual_seed(1)
    true, centre = (torch.randn(size, generator=generator) for size in ((1, 2, 3), (1, 2, 4, 3)))
    factor = torch.randn(1, 2, 4, 3, 3, generator=generator).tril()
    factor.diagonal(dim1=-2, dim2=-1).abs_().add_(0.5)
    log_weight = torch.randn(1, 2, 4, generator=generator).log_softmax(dim=-1)
    found = posterior.log_density(true, log_weight, centre, factor)
    for i, j in np.ndindex(2, 2):
        density = sum(
            float(log_weight[0, i, m].exp())
            * multivariate_normal(
                centre[0, i, m], (factor[0, i, m] @ factor[0, i, m].T).numpy().astype(float)
            ).pdf(true[0, j])
            for m in range(4)
        )
        assert float(found[0, i, j]) == pytest.approx(np.log(density), rel=1e-4)


def test_true_maps_are_the_package_s_grid():
    windows = data.windows(stream().batch(0, 100))
    maps = on_grid.true_maps(windows.targets)
    shape = (data.SIDE, data.SIDE)
    found = cu.targets.from_grid(maps.numpy(), factor=on_grid.FACTOR, threshold=50.0, shape=shape)
    for frame, table in found.groupby("frame"):
        true = windows.targets[frame, : windows.count[frame], :2].numpy() + data.HALF
        away = np.abs(table[["y", "x"]].to_numpy()[:, None] - true).max(axis=2).min(axis=0)
        assert (away <= 1 / (2 * on_grid.FACTOR) + 1e-4).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_falls_and_answers_are_targets(name):
    torch.manual_seed(0)
    network = NETWORKS[name](CLIPPED).train()
    scenes = stream().batch(0, 32)
    windows = data.windows(scenes)
    free = [each for each in network.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(free, lr=1e-3)
    losses = []
    for _ in range(6):
        loss = network.loss(windows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    found = network.eval().unmix(scenes.images)
    cu.targets.check_table(found)
    assert found.attrs["n_frames"] == 32


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train, "N_VALIDATION", 10)
    monkeypatch.setattr(train, "Stream", lambda *parts: stream(parts[0], parts[1], shares=parts[2]))
    small = {"off-grid": lambda s: off_grid.OffGrid(s, width=16, refine_width=16)}
    monkeypatch.setattr(train, "NETWORKS", {**NETWORKS, **small})


def test_resumed_training_is_as_uninterrupted(quick, tmp_path):
    run = train.Run(name="off-grid", setting="clipped", steps=6, batch=16)
    said: list[str] = []
    whole = train.train(run, tmp_path / "whole", every=60, say=said.append)
    train.train(run, tmp_path / "parts", every=60, say=said.append, until=3)
    parts = train.train(run, tmp_path / "parts", every=60, say=said.append)
    assert parts.step == whole.step == 6
    for one, other in zip(parts.average.parameters(), whole.average.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [row["step"] for row in parts.log] == [3, 6]
    with pytest.raises(SystemExit, match="another run"):
        train.Trainer(replace(run, rate=1.0), tmp_path / "parts")


def test_training_starts_from_another_run(quick, tmp_path):
    run = train.Run(name="off-grid", setting="clipped", steps=2, batch=16)
    first = train.train(run, tmp_path, every=60, say=str)
    second = train.Trainer(replace(run, setting="rounded", first="off-grid-clipped"), tmp_path)
    for one, other in zip(first.average.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(SystemExit, match="no run nowhere"):
        train.Trainer(replace(run, label="other", first="nowhere"), tmp_path)
    with pytest.raises(SystemExit, match="give its run"):
        train.Trainer(replace(run, name="posterior"), tmp_path)


def test_commands_tell_what_made_a_network(quick, tmp_path):
    first = train.Run(name="off-grid", setting="clipped", steps=1, batch=16, label="first")
    second = replace(first, label="", seed=2, first="off-grid-clipped-first")
    for run in (first, second):
        done = train.train(run, tmp_path, every=60, say=str)
    state = torch.load(done.path, weights_only=True)
    said = weights.commands(state["run"], tmp_path)
    one, other = (part.strip("`") for part in said.split(", then "))
    assert one.endswith("--steps 1 --batch 16 --rate 0.001 --seed 1 --label first")
    assert other.endswith("--seed 2 --first off-grid-clipped-first")
    assert weights.total_seconds(state, tmp_path) > state["seconds"]


FLOORS = {"off-grid-clipped": 85.0}  # of CSO-mAP; 35 for those on the grid


@pytest.mark.parametrize("name", weights.KEPT)
def test_kept_weights_work(name):
    kind, setting = name.rsplit("-", 1)
    trained = weights.load(kind, setting)
    assert trained is not None
    assert trained.seconds > 0
    made = cu.simulate(
        CLIPPED.psf, CLIPPED.sensor, CLIPPED.scene, shape=CLIPPED.shape, n=50, rng=77
    )
    found = trained.network.unmix(made.images)
    assert 100 * cu.metrics.cso_map(found, made.truth).mean > FLOORS.get(name, 35.0)


def test_kept_weights_are_small():
    assert sum(file.stat().st_size for file in Path(weights.FOLDER).glob("*.npz")) <= 5e6
