"""Unmixing over a Dask cluster: the table of one process, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

import csunmix as cu
from csunmix import cluster
from csunmix.cli import main
from csunmix.targets import Flag

distributed = pytest.importorskip("distributed")
zarr = pytest.importorskip("zarr")

PRESET = cu.presets.csist_100k()
GRID = cu.grid_unmixer(
    psf=PRESET.psf, shape=(11, 11), factor=3, sensor=PRESET.sensor, prior=PRESET.prior
)
OFF_GRID = cu.ContinuousUnmixer(PRESET.psf, PRESET.sensor, PRESET.prior)


@dataclass(frozen=True)
class Slow:
    """An unmixer that is still at work when a worker is killed."""

    unmixer: cluster.Unmix
    seconds: float = 0.3

    def __call__(self, images):
        time.sleep(self.seconds)
        return self.unmixer(images)


@pytest.fixture(scope="module")
def client() -> Iterator[distributed.Client]:
    with (
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def images():
    optics = (PRESET.psf, PRESET.sensor, PRESET.scene)
    images = cu.simulate(*optics, shape=(11, 11), n=60, rng=4).images
    images[3] = np.nan  # alone in its part
    images[20:25] = np.nan  # a part without an image that is finite
    images[31] = 0.0
    return images


def check_equal(found, expected):
    assert_frame_equal(found, expected, check_exact=True)
    assert found.attrs == expected.attrs


@pytest.mark.parametrize("kind", ["array", "npy", "zarr", "group"])
def test_table_is_that_of_one_process(client, images, tmp_path, kind):
    source = images
    if kind == "npy":
        source = tmp_path / "images.npy"
        np.save(source, images)
    elif kind == "zarr":
        source = tmp_path / "images.zarr"
        zarr.create_array(source, data=images, chunks=(7, 11, 11))
    elif kind == "group":
        zarr.create_group(tmp_path / "set.zarr").create_array("images", data=images)
        source = f"{tmp_path}/set.zarr:images"
    found = cluster.unmix(client, GRID, source, batch_size=5)
    check_equal(found, GRID(images, batch_size=5))


def test_grid_free_table_is_that_of_this_process(client, images):
    some = images[18:34].reshape(2, 8, 11, 11)
    check_equal(cluster.unmix(client, OFF_GRID, some, batch_size=5), OFF_GRID(some))


@pytest.mark.parametrize("n", [1, 3])
def test_workers_are_killed_in_the_middle(client, images, tmp_path, n):
    np.save(tmp_path / "images.npy", images)
    stack = cu.io.read_images(tmp_path / "images.npy")
    pids, killed, found = client.run(os.getpid), [], []
    for table in cluster.tables(client, Slow(GRID), stack, batch_size=3):
        found.append(table)
        if len(found) == 4:
            busy = client.processing()
            chosen = sorted(pids, key=lambda worker: not busy.get(worker))[:n]
            assert busy[chosen[0]]
            killed = [pids[worker] for worker in chosen]
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
    client.wait_for_workers(3)
    assert not set(killed) & set(client.run(os.getpid).values())
    check_equal(cluster._joined(found), GRID(images, batch_size=3))


def test_only_some_parts_are_under_way(client, images):
    parts = cluster.tables(client, Slow(GRID, 0.0), cu.io.ImageStack(images, ()), batch_size=1)
    next(parts)
    assert len(client.futures) <= 4 * 3 + 2
    parts.close()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_command_line_on_a_cluster(client, images, tmp_path, suffix):
    np.save(tmp_path / "images.npy", images)
    tables = []
    for options in ([], ["--scheduler", client.scheduler.address]):
        out = tmp_path / f"t.{suffix}"
        argv = ["unmix", str(tmp_path / "images.npy"), "--method", "omp", "--out", str(out)]
        assert main([*argv, *options]) == 0
        tables.append(out.read_bytes())
    assert tables[0] == tables[1]


def test_errors_are_those_of_the_unmixer(client, images, tmp_path):
    with pytest.raises(ValueError, match=r"images must end in the image shape \(11, 11\)"):
        cluster.unmix(client, GRID, images[:, :9])
    with pytest.raises(ValueError, match="images must be finite"):
        cluster.unmix(client, GRID, images[20:25])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        cluster.unmix(client, GRID, images, batch_size=0)
    np.savez(tmp_path / "images.npz", images=images)
    with pytest.raises(ValueError, match=r"path of a Zarr array or of an NPY file.*images\.npz"):
        cluster.unmix(client, GRID, tmp_path / "images.npz")


def test_frames_are_counted_over_all_parts():
    parts = [
        cu.targets.make_table(
            frame, 1.0, 2.0, 3.0, n_frames=3, frame_flags={1: flag}, attrs={"method": "a"}
        )
        for frame, flag in (([0, 2], Flag.SATURATED), ([1, 1], Flag.BORDER))
    ]
    table = cluster._joined(parts)
    assert table["frame"].tolist() == [0, 2, 4, 4]
    assert table.attrs["frame_flags"] == {1: Flag.SATURATED, 4: Flag.BORDER}
    assert table.attrs["n_frames"] == 6
