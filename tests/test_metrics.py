"""The metrics against hand-computed values, reference values, plain loops and brute force."""

import inspect
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from csunmix import metrics
from csunmix.targets import make_table

THRESHOLDS = (0.05, 0.10, 0.15, 0.20, 0.25)
DATA = os.environ.get("CSUNMIX_DATA")


# Tables


def table(*targets, n_frames=None, score=np.nan):
    """A target table of (frame, x, y, flux)."""
    frame, x, y, flux = np.array(targets, dtype=float).reshape(-1, 4).T
    return make_table(frame, y, x, flux, n_frames=n_frames, score=np.broadcast_to(score, x.shape))


def random_scene(seed, n_frames=40, most=5, error=0.1, false=1):
    """Detections and truth: targets found with errors, some missed, some false, none ordered."""
    rng = np.random.default_rng(seed)
    count = rng.integers(0, most + 1, n_frames)
    frame = np.repeat(np.arange(n_frames), count)
    y, x = rng.uniform(4.4, 5.6, (2, frame.size))
    truth = make_table(frame, y, x, rng.uniform(220, 250, frame.size), n_frames=n_frames)
    kept = rng.random(frame.size) < 0.9
    other = rng.integers(0, n_frames, false * n_frames)
    found_y = np.append(
        y[kept] + rng.normal(0, error, kept.sum()), rng.uniform(4.4, 5.6, len(other))
    )
    found_x = np.append(
        x[kept] + rng.normal(0, error, kept.sum()), rng.uniform(4.4, 5.6, len(other))
    )
    detections = make_table(
        np.append(frame[kept], other),
        found_y,
        found_x,
        rng.uniform(150, 300, found_y.size),
        n_frames=n_frames,
        score=rng.random(found_y.size),
    )
    return shuffled(detections, seed), shuffled(truth, seed + 1)


def shuffled(targets, seed):
    return targets.sample(frac=1, random_state=seed)  # keeps the index: it is no longer 0, 1, 2...


def changed(targets, **columns):
    result = targets.assign(**columns)
    result.attrs = dict(targets.attrs)
    return result


# Plain loops: what the metrics say, written without any thought of speed


def by_frame(targets):
    frames = {}
    for row, (frame, x, y) in enumerate(zip(targets.frame, targets.x, targets.y, strict=True)):
        frames.setdefault(int(frame), []).append((row, x, y))
    return frames


def distance32(a, b):
    dx = np.float32(a[1]) - np.float32(b[1])
    dy = np.float32(a[2]) - np.float32(b[2])
    return np.sqrt(dx * dx + dy * dy)


def distance64(a, b):
    return math.hypot(a[1] - b[1], a[2] - b[2])


def loop_nearest(detections, truth, rank, is_near, distance):
    """Rows (detection, truth) of the pairs, and all detections in the order of their visit."""
    truths, taken, pairs = by_frame(truth), set(), []
    frames = by_frame(detections)
    ranked = [(-rank[d[0]], frame, d[0], d) for frame, found in frames.items() for d in found]
    visited = sorted(ranked, key=lambda entry: entry[:3])
    for _, frame, row, d in visited:
        near = [(distance(d, t), order) for order, t in enumerate(truths.get(frame, []))]
        if near:
            nearest, order = min(near)
            j = truths[frame][order][0]
            if is_near(nearest) and j not in taken:
                taken.add(j)
                pairs.append((row, j))
    return pairs, [row for _, _, row, _ in visited]


def best_pairs(found, true, is_near, distance):
    """The most pairs, then the smallest sum of distances, by trying every assignment."""
    best = ((0, 0.0), [])
    for n in range(1, min(len(found), len(true)) + 1):
        for some in itertools.combinations(found, n):
            for others in itertools.permutations(true, n):
                d = [float(distance(a, b)) for a, b in zip(some, others, strict=True)]
                if all(is_near(value) for value in d) and (-n, sum(d)) < best[0]:
                    best = (-n, sum(d)), [(a[0], b[0]) for a, b in zip(some, others, strict=True)]
    return best[1]


def loop_optimal(detections, truth, is_near, distance):
    truths = by_frame(truth)
    return [
        pair
        for frame, found in by_frame(detections).items()
        for pair in best_pairs(found, truths.get(frame, []), is_near, distance)
    ]


def loop_average_precision(hits, n_truth):
    """The area under the envelope, as a sum over every step of recall."""
    recall, precision, tp = [0.0], [], 0
    for n, hit in enumerate(hits, start=1):
        tp += hit
        recall.append(tp / n_truth)
        precision.append(tp / n)
    return sum(
        (recall[k + 1] - recall[k]) * max(precision[k:], default=0) for k in range(len(hits))
    )


def loop_ap(detections, truth, threshold, *, rank_by="flux", matching="nearest"):
    def is_near(d):
        return np.float32(d) <= np.float32(threshold)

    rank = detections[rank_by].to_numpy()
    pairs, visited = loop_nearest(detections, truth, rank, is_near, distance32)
    if matching == "optimal":
        pairs = loop_optimal(detections, truth, is_near, distance32)
    found = {row for row, _ in pairs}
    return loop_average_precision([row in found for row in visited], len(truth))


# CSO-mAP: reference values


def reference_cases():
    if DATA is None:
        return [pytest.param(None, marks=pytest.mark.skip(reason="CSUNMIX_DATA is not set"))]
    cases = json.loads((Path(DATA) / "cso_map_cases.json").read_text())["cases"]
    return [pytest.param(case, id=case["name"]) for case in cases]


def from_lists(images):
    targets = [(frame, *target) for frame, image in enumerate(images) for target in image]
    return table(*targets, n_frames=len(images))


@pytest.mark.parametrize("case", reference_cases())
@pytest.mark.parametrize(("precision", "key"), [("float32", "ap_numpy_2_4_6"), ("float64", "ap")])
def test_reference_values(case, precision, key):
    detections, truth = from_lists(case["dets"]), from_lists(case["gts"])
    result = metrics.cso_map(detections, truth, thresholds=case["thresholds"], precision=precision)
    expected = case["ap_stable_sort" if case["tie_dependent"] else key]
    np.testing.assert_allclose(result.ap, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(result.thresholds, case["thresholds"])
    assert result.mean == pytest.approx(np.mean(expected), abs=1e-6)


# CSO-mAP: values by hand


def test_hand_computed_map():
    truth = table((0, 0, 0, 9), (0, 3, 0, 9))
    # In descending flux, distances 0.12 and 0.02 to the first truth, 0 to the second.
    detections = table((0, 0.12, 0, 5), (0, 0, 0.02, 4), (0, 3, 0, 3))
    result = metrics.cso_map(detections, truth)
    # Up to 0.10: miss, hit, hit: precision 0, 1/2, 2/3, envelope 2/3. Above: hit, miss, hit.
    np.testing.assert_allclose(result.ap, [2 / 3, 2 / 3, 5 / 6, 5 / 6, 5 / 6], rtol=1e-12)
    assert result.mean == pytest.approx(23 / 30)


def test_precision_recall_by_hand():
    truth = table((0, 0, 0, 9), (0, 3, 0, 9), (1, 0, 0, 9))
    detections = table((0, 0.12, 0, 5), (0, 0, 0.02, 4), (0, 3, 0, 3))
    recall, precision = metrics.precision_recall(detections, truth, 0.2)
    np.testing.assert_allclose(recall, [1 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3])


def test_nearest_takes_no_second_choice_and_optimal_does():
    truth = table((0, 5.0, 5, 230), (0, 5.3, 5, 240))
    detections = table((0, 5.02, 5, 200), (0, 5.12, 5, 190))  # both nearest to the first truth
    nearest = metrics.cso_map(detections, truth)
    optimal = metrics.cso_map(detections, truth, matching="optimal")
    np.testing.assert_allclose(nearest.ap, [0.5] * 5)
    np.testing.assert_allclose(optimal.ap, [0.5, 0.5, 0.5, 1, 1])  # 5.12 is 0.18 from the other


def test_optimal_prefers_the_number_of_pairs_to_their_distance():
    truth = table((0, 5.0, 5, 1), (0, 5.2, 5, 1))
    detections = table((0, 5.01, 5, 1), (0, 4.81, 5, 2))
    # The closest pair (5.01, 5.0) would leave 4.81 alone; crossing over pairs both.
    assert metrics.cso_map(detections, truth, thresholds=[0.2], matching="optimal").mean == 1


@pytest.mark.parametrize(("precision", "ap"), [("float32", 1), ("float64", 0.5)])
@pytest.mark.parametrize("matching", ["nearest", "optimal"])
def test_a_distance_equal_to_the_threshold_in_float32(matching, precision, ap):
    truth = table((0, 5.0, 5, 230), (1, 0, 0, 230))
    detections = table((0, 5.2, 5, 200), (1, 0.2, 0, 150))  # float32(0.2) > 0.2 > float32(5.2) - 5
    result = metrics.cso_map(
        detections, truth, thresholds=[0.2], precision=precision, matching=matching
    )
    assert result.mean == ap


def test_of_two_equally_near_truths_the_first_in_the_table_counts():
    detections = table((0, 5.25, 5, 2), (0, 5.0, 5, 1))
    first, second = (0, 5.0, 5, 1), (0, 5.5, 5, 1)
    # Taken by 5.25, the truth at 5.0 is lost to 5.0; else both are found.
    assert metrics.cso_map(detections, table(first, second), thresholds=[0.25]).mean == 0.5
    assert metrics.cso_map(detections, table(second, first), thresholds=[0.25]).mean == 1


def test_equal_ranks_go_by_frame_then_by_row():
    truth = table((0, 0, 0, 1), (1, 0, 0, 1))
    hit, miss = (0, 0, 0, 7), (1, 3, 0, 7)
    assert metrics.cso_map(table(miss, hit), truth).mean == 0.5  # frame 0 first: 1, 1/2
    hit, miss = (1, 0, 0, 7), (0, 3, 0, 7)
    assert metrics.cso_map(table(hit, miss), truth).mean == 0.25  # 0, 1/2
    hit, miss = (0, 0, 0, 7), (0, 3, 0, 7)
    assert metrics.cso_map(table(hit, miss), truth).mean == 0.5
    assert metrics.cso_map(table(miss, hit), truth).mean == 0.25


def test_order_of_all_numbers():
    ranks = np.array([0.0, -0.0, np.inf, 5e-324, -np.inf, -1.0, 0.0, 1.0, np.inf, -5e-324, -0.0])
    for frame in (np.arange(11), np.arange(11)[::-1] // 3, np.zeros(11, int)):
        points = metrics._Points(frame.astype(np.int64), ranks, ranks, 12)
        expected = np.lexsort((frame, -ranks))
        np.testing.assert_array_equal(metrics._descending(ranks, points), expected)


def test_rank_by_score_reorders():
    truth = table((0, 0, 0, 1))
    detections = table((0, 0, 0, 5), (0, 3, 0, 9), score=[0.9, 0.1])
    assert metrics.cso_map(detections, truth, rank_by="score").mean == 1
    assert metrics.cso_map(detections, truth, rank_by="flux").mean == 0.5


@pytest.mark.parametrize("matching", ["nearest", "optimal"])
def test_empty_tables(matching):
    some, none = table((0, 5, 5, 1), n_frames=3), table(n_frames=3)
    np.testing.assert_array_equal(metrics.cso_map(none, some, matching=matching).ap, np.zeros(5))
    for detections in (some, none):
        assert np.isnan(metrics.cso_map(detections, none, matching=matching).ap).all()
        assert math.isnan(metrics.cso_map(detections, none, matching=matching).mean)
    recall, precision = metrics.precision_recall(some, none, 0.1, matching=matching)
    np.testing.assert_array_equal(recall, [np.nan])
    np.testing.assert_array_equal(precision, [0])
    assert metrics.precision_recall(none, some, 0.1, matching=matching)[0].shape == (0,)


def test_a_table_without_types_as_pandas_makes_it_when_empty():
    empty = pd.DataFrame(columns=["frame", "y", "x", "flux"])
    assert metrics.cso_map(empty, table((0, 5, 5, 1))).mean == 0
    assert len(metrics.match(empty, empty, max_distance=1)) == 0
    assert math.isnan(metrics.count_accuracy(empty, empty))
    assert math.isnan(metrics.gospa(empty, empty))
    assert metrics.compare({"none": empty}, empty).isna().all(axis=None)


# CSO-mAP: plain loops and invariances


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("matching", ["nearest", "optimal"])
@pytest.mark.parametrize("rank_by", ["flux", "score"])
def test_equals_a_plain_loop(seed, matching, rank_by):
    detections, truth = random_scene(seed, most=4, error=(0.03, 0.1, 0.3)[seed])
    result = metrics.cso_map(detections, truth, rank_by=rank_by, matching=matching)
    expected = [
        loop_ap(detections, truth, t, rank_by=rank_by, matching=matching) for t in THRESHOLDS
    ]
    np.testing.assert_allclose(result.ap, expected, rtol=1e-12)
    assert 0 < result.mean < 1


@pytest.mark.parametrize("matching", ["nearest", "optimal"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_rounding_decides_as_in_float32(threshold, matching):
    n = 100  # distances all equal to the threshold but for rounding
    x = np.arange(n) / 10
    truth = make_table(np.arange(n), x, x, np.ones(n))
    detections = make_table(np.arange(n), x, x + threshold, np.arange(n))
    d = (x + threshold).astype(np.float32) - x.astype(np.float32)
    recall, _ = metrics.precision_recall(detections, truth, threshold, matching=matching)
    in_float64, _ = metrics.precision_recall(
        detections, truth, threshold, matching=matching, precision="float64"
    )
    hits, hits_in_float64 = d <= np.float32(threshold), d.astype(float) <= threshold
    np.testing.assert_allclose(recall, np.cumsum(hits[::-1]) / n)
    np.testing.assert_allclose(in_float64, np.cumsum(hits_in_float64[::-1]) / n)
    assert 0 < hits_in_float64.sum() <= hits.sum() < n


# On a coarse grid, ranks and distances are often equal, and distances equal to the threshold.
on_grid = st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4), st.integers(1, 3))
scenes = st.tuples(st.lists(on_grid, max_size=12), st.lists(on_grid, min_size=1, max_size=8))


@given(scenes)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equals_a_plain_loop_where_all_is_tied(scene):
    detections, truth = (table(*targets) for targets in scene)
    result = metrics.cso_map(detections, truth, thresholds=[1, 2])
    expected = [loop_ap(detections, truth, t) for t in (1, 2)]
    np.testing.assert_allclose(result.ap, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("matching", ["nearest", "optimal"])
def test_ap_is_the_area_under_the_envelope_of_precision_recall(matching):
    detections, truth = random_scene(11)
    result = metrics.cso_map(detections, truth, matching=matching)
    for threshold, ap in zip(THRESHOLDS, result.ap, strict=True):
        recall, precision = metrics.precision_recall(
            detections, truth, threshold, matching=matching
        )
        levels = np.unique(recall)
        area = sum(
            (high - low) * precision[recall >= high].max()
            for low, high in itertools.pairwise(np.append(0, levels[levels > 0]))
        )
        assert ap == pytest.approx(area)


def all_metrics(detections, truth):
    return np.array(
        [
            *metrics.cso_map(detections, truth).ap,
            *metrics.cso_map(detections, truth, matching="optimal", rank_by="score").ap,
            metrics.count_accuracy(detections, truth),
            metrics.position_rmse(detections, truth),
            metrics.flux_error(detections, truth),
            metrics.gospa(detections, truth),
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_invariances(seed):
    detections, truth = random_scene(seed)
    expected = all_metrics(detections, truth)
    assert np.isfinite(expected).all()
    permutation = np.random.default_rng(seed).permutation(40)
    transforms = {
        "rows": lambda t: shuffled(t, 99),
        "index": lambda t: t.reset_index(drop=True),
        "frames": lambda t: changed(t, frame=permutation[t.frame]),
        "axes": lambda t: changed(t, x=t.y, y=t.x),
        "mirror": lambda t: changed(t, x=-t.x),
        "flux scale": lambda t: changed(t, flux=4 * t.flux),
        "frames as floats": lambda t: changed(t, frame=t.frame.astype(float)),
    }
    for name, transform in transforms.items():
        got = all_metrics(transform(detections), transform(truth))
        np.testing.assert_allclose(got, expected, rtol=1e-9, err_msg=name)


def test_perfect_answers_score_best_and_inputs_stay_as_they_were():
    _, truth = random_scene(5)
    before = truth.copy()
    perfect = metrics.compare({"truth": truth}, truth).loc["truth"]
    np.testing.assert_allclose(perfect[:7], 100)
    np.testing.assert_array_equal(perfect[["RMSE", "flux error", "GOSPA"]], 0)
    pd.testing.assert_frame_equal(truth, before)


def test_frames_do_not_mix():
    truth = table((0, 5, 5, 1), (1, 8, 8, 1))
    swapped = table((1, 5, 5, 1), (0, 8, 8, 1))
    assert metrics.cso_map(swapped, truth).mean == 0
    assert metrics.cso_map(swapped, truth, matching="optimal").mean == 0
    assert len(metrics.match(swapped, truth, max_distance=1)) == 0


# Matching


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["nearest", "optimal"])
def test_match_equals_a_plain_loop(seed, method):
    detections, truth = random_scene(seed, n_frames=30, most=4, error=0.2)
    matches = metrics.match(detections, truth, max_distance=0.4, method=method)

    def is_near(d):
        return d <= 0.4

    if method == "nearest":
        flux = detections.flux.to_numpy()
        expected, _ = loop_nearest(detections, truth, flux, is_near, distance64)
    else:
        expected = loop_optimal(detections, truth, is_near, distance64)
    assert list(zip(matches.detection, matches.truth, strict=True)) == sorted(expected)
    pairs = detections.iloc[matches.detection], truth.iloc[matches.truth]
    dx, dy = (pairs[0][axis].to_numpy() - pairs[1][axis].to_numpy() for axis in "xy")
    np.testing.assert_allclose(matches.distance, np.hypot(dx, dy), rtol=1e-12)
    np.testing.assert_array_equal(pairs[0].frame, pairs[1].frame)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (25, 40), (40, 25)])
def test_match_of_one_crowded_frame_equals_one_hungarian_assignment(n, m):
    rng = np.random.default_rng(n + m)
    detections = make_table(np.zeros(n), *rng.uniform(0, 10, (2, n)), np.ones(n))
    truth = make_table(np.zeros(m), *rng.uniform(0, 10, (2, m)), np.ones(m))
    d = np.hypot(*(detections[[k]].to_numpy() - truth[k].to_numpy() for k in "xy"))
    for reach in (0.5, 1.0, 2.0, 20.0):
        matches = metrics.match(detections, truth, max_distance=reach)
        i, j = linear_sum_assignment(np.where(d <= reach, d, 1e4))
        near = d[i, j] <= reach
        assert len(matches) == near.sum()
        assert matches.distance.sum() == pytest.approx(d[i, j][near].sum(), rel=1e-12)
        assert len(set(matches.detection)) == len(set(matches.truth)) == len(matches)


def test_match_nearest_visits_the_brightest_first():
    truth = table((0, 0, 0, 1))
    detections = table((0, 0.1, 0, 5), (0, 0.3, 0, 9))
    nearest = metrics.match(detections, truth, max_distance=0.5, method="nearest")
    optimal = metrics.match(detections, truth, max_distance=0.5)
    np.testing.assert_array_equal(nearest.detection, [1])
    np.testing.assert_array_equal(optimal.detection, [0])


# Counts, positions, fluxes


def test_counts_by_hand():
    truth = table((0, 1, 1, 1), (0, 2, 2, 1), (1, 1, 1, 1), (3, 1, 1, 1), n_frames=5)
    detections = table((0, 9, 9, 1), (0, 9, 9, 1), (1, 1, 1, 1), (1, 2, 2, 1), (5, 1, 1, 1))
    # Frames 0..5: truths 2 1 0 1 0 0, detections 2 2 0 0 0 1.
    expected = [[2, 1, 0], [1, 0, 1], [0, 0, 1]]
    np.testing.assert_array_equal(metrics.count_confusion(detections, truth), expected)
    assert metrics.count_accuracy(detections, truth) == 3 / 6


def test_frames_without_targets_count():
    truth, detections = table((0, 1, 1, 1), n_frames=4), table(n_frames=10)
    assert metrics.count_accuracy(detections, truth) == 0.9
    assert metrics.count_accuracy(table(), table(n_frames=4)) == 1
    assert math.isnan(metrics.count_accuracy(table(), table()))


def test_rmse_is_the_euclidean_one():
    truth = table((0, 5, 5, 100), (1, 5, 5, 100), (2, 5, 5, 100))
    detections = table((0, 5.03, 5.04, 110), (1, 5, 4.9, 95), (2, 5.6, 5, 100))
    expected = math.sqrt((0.05**2 + 0.1**2) / 2)  # the third is too far
    assert metrics.position_rmse(detections, truth) == pytest.approx(expected)
    with_third = math.sqrt((0.05**2 + 0.1**2 + 0.6**2) / 3)
    assert metrics.position_rmse(detections, truth, max_distance=1) == pytest.approx(with_third)


def test_flux_error_is_the_median_relative_one():
    truth = table((0, 5, 5, 100), (1, 5, 5, 200), (2, 5, 5, 100), (3, 5, 5, 0))
    detections = table((0, 5, 5, 110), (1, 5, 5, 190), (2, 5, 5, 50), (3, 5, 5, 1))
    assert metrics.flux_error(detections, truth) == pytest.approx(0.1)  # of 0.1, 0.05, 0.5


def test_no_pair_gives_nan():
    truth, far = table((0, 5, 5, 100)), table((0, 9, 9, 100))
    assert math.isnan(metrics.position_rmse(far, truth))
    assert math.isnan(metrics.flux_error(far, truth))
    assert math.isnan(metrics.flux_error(truth, table((0, 5, 5, 0))))


# GOSPA


def brute_gospa(found, true, cutoff, p, alpha):
    """Definition 1, over all permutations."""
    few, many = sorted((found, true), key=len)
    distances = (
        sum(min(distance64(a, b), cutoff) ** p for a, b in zip(few, some, strict=True))
        for some in itertools.permutations(many, len(few))
    )
    return (min(distances) + cutoff**p / alpha * (len(many) - len(few))) ** (1 / p)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("cutoff", "p", "alpha"), [(0.5, 2, 2), (0.3, 1, 1), (1.2, 3, 0.5)])
def test_gospa_equals_brute_force(seed, cutoff, p, alpha):
    detections, truth = random_scene(seed, n_frames=30, most=4, error=0.3)
    found, true = by_frame(detections), by_frame(truth)
    expected = np.mean(
        [brute_gospa(found.get(k, []), true.get(k, []), cutoff, p, alpha) for k in range(30)]
    )
    got = metrics.gospa(detections, truth, cutoff=cutoff, p=p, alpha=alpha)
    assert got == pytest.approx(expected, rel=1e-12)
    each = metrics.frame_gospa(detections, truth, cutoff=cutoff, p=p, alpha=alpha)
    brute = [brute_gospa(found.get(k, []), true.get(k, []), cutoff, p, alpha) for k in range(30)]
    np.testing.assert_allclose(each, brute, rtol=1e-12)
    swapped = metrics.gospa(truth, detections, cutoff=cutoff, p=p, alpha=alpha)
    assert swapped == pytest.approx(got, rel=1e-12)


def test_gospa_by_hand():
    truth = table((0, 5, 5, 1), n_frames=1)
    assert metrics.gospa(table((0, 5.1, 5, 1)), truth) == pytest.approx(0.1)
    assert metrics.gospa(table(), truth, cutoff=0.5) == pytest.approx(0.5 / math.sqrt(2))
    assert metrics.gospa(table((0, 9, 9, 1)), truth, cutoff=0.5) == pytest.approx(0.5)
    tiny = metrics.gospa(table((0, 1e-12, 0, 1)), table((0, 0, 0, 1)))
    assert tiny == pytest.approx(1e-12, rel=1e-6)  # not lost beside the cutoff
    half = metrics.gospa(table((0, 5.1, 5, 1), n_frames=2), truth)
    assert half == pytest.approx(0.05)  # an empty frame without detections costs nothing


# compare


def test_compare_is_the_metrics_side_by_side():
    good, truth = random_scene(1, error=0.05)
    poor, _ = random_scene(1, error=0.3)
    result = metrics.compare({"good": good, "poor": poor}, truth, max_distance=0.4)
    assert list(result.index) == ["good", "poor"]
    assert result.index.name == "method"
    ap_names = ["AP05", "AP10", "AP15", "AP20", "AP25"]
    others = ["count accuracy", "RMSE", "flux error", "GOSPA", "targets per frame"]
    assert list(result.columns) == ["CSO-mAP", *ap_names, *others]
    for name, detections in (("good", good), ("poor", poor)):
        row = result.loc[name]
        ap = metrics.cso_map(detections, truth)
        assert row["CSO-mAP"] == pytest.approx(100 * ap.mean)
        np.testing.assert_allclose(row[ap_names].to_numpy(float), 100 * ap.ap)
        expected = [
            100 * metrics.count_accuracy(detections, truth),
            metrics.position_rmse(detections, truth, max_distance=0.4),
            100 * metrics.flux_error(detections, truth, max_distance=0.4),
            metrics.gospa(detections, truth, cutoff=0.4),
            len(detections) / 40,
        ]
        np.testing.assert_allclose(row[others].to_numpy(float), expected)
    assert result["CSO-mAP"]["good"] > result["CSO-mAP"]["poor"]
    by_score = metrics.compare({"good": good}, truth, rank_by="score")
    expected = 100 * metrics.cso_map(good, truth, rank_by="score").mean
    assert by_score["CSO-mAP"]["good"] == pytest.approx(expected)


def test_compare_refuses_what_it_cannot_compare():
    truth = table((0, 5, 5, 1), n_frames=2)
    with pytest.raises(ValueError, match="at least one method"):
        metrics.compare({}, truth)
    with pytest.raises(TypeError, match=r"runs must be a mapping.*DataFrame"):
        metrics.compare(truth, truth)
    with pytest.raises(TypeError, match=r"runs\['OMP'\] must be a pandas.DataFrame, got list"):
        metrics.compare({"fine": truth, "OMP": [1, 2]}, truth)
    with pytest.raises(TypeError, match=r"truth must be a pandas.DataFrame"):
        metrics.compare({"fine": truth}, None)
    late = table((1, 5, 5, 1), (2, 5, 5, 1), (7, 5, 5, 1))
    with pytest.raises(ValueError, match=r"runs\['late'\] has detections in 2 frame\(s\).*frame 2"):
        metrics.compare({"fine": truth, "late": late}, truth)
    with pytest.raises(ValueError, match=r"runs\['OMP'\].*reports no scores"):
        metrics.compare({"OMP": truth}, truth, rank_by="score")


# Bad input


def test_ranking_by_scores_that_are_not_there():
    truth = table((0, 5, 5, 1), (0, 6, 6, 1))
    half = table((0, 5, 5, 1), (0, 6, 6, 1), score=[0.5, np.nan])
    with pytest.raises(
        ValueError, match=r"'score' is NaN in 1 row.*row 1.*\.fillna\({'score': 0}\)"
    ):
        metrics.cso_map(half, truth, rank_by="score")
    ranked = half.fillna({"score": 0})
    assert ranked.attrs == half.attrs
    assert metrics.cso_map(ranked, truth, rank_by="score").mean == 1
    none = half.assign(score=np.nan)
    with pytest.raises(ValueError, match=r"'score' is NaN in 2 row.*row 0.*reports no scores"):
        metrics.cso_map(none, truth, rank_by="score")
    with pytest.raises(ValueError, match=r"no column 'score'.*reports no scores"):
        metrics.cso_map(half.drop(columns="score"), truth, rank_by="score")
    assert metrics.cso_map(half, truth).mean == 1


@pytest.mark.parametrize("thresholds", [[], [0.1, -0.1], [0.0], [np.nan], [[0.1]], 0.1])
def test_bad_thresholds(thresholds):
    truth = table((0, 5, 5, 1))
    with pytest.raises(ValueError, match="thresholds must be a sequence of positive numbers"):
        metrics.cso_map(truth, truth, thresholds=thresholds)


@pytest.mark.parametrize("option", ["rank_by", "matching", "precision"])
def test_unknown_options(option):
    truth = table((0, 5, 5, 1))
    with pytest.raises(ValueError, match=f"{option} must be one of .*got 'best'"):
        metrics.cso_map(truth, truth, **{option: "best"})


def test_bad_parameters():
    truth = table((0, 5, 5, 1))
    with pytest.raises(ValueError, match="max_distance must be above 0"):
        metrics.match(truth, truth, max_distance=0)
    with pytest.raises(ValueError, match="method must be one of"):
        metrics.match(truth, truth, max_distance=1, method="greedy")
    with pytest.raises(ValueError, match="threshold must be above 0"):
        metrics.precision_recall(truth, truth, -0.1)
    for bad in ({"cutoff": 0}, {"p": 0.5}, {"alpha": 0}, {"alpha": 2.5}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            metrics.gospa(truth, truth, **bad)


@pytest.mark.parametrize(
    "metric",
    [
        metrics.cso_map,
        metrics.count_accuracy,
        metrics.count_confusion,
        metrics.position_rmse,
        metrics.flux_error,
        metrics.gospa,
    ],
)
def test_malformed_tables_are_named(metric):
    truth = table((0, 5, 5, 1), (1, 5, 5, 1))
    for name in ("detections", "truth"):
        assert name in inspect.signature(metric).parameters

        def with_bad(bad, name=name):
            return metric(**{"detections": truth, "truth": truth, name: bad})

        with pytest.raises(TypeError, match=f"{name} must be a pandas.DataFrame"):
            with_bad(truth.to_numpy())
        with pytest.raises(ValueError, match=f"{name} lacks the column.*'x'"):
            with_bad(truth.drop(columns="x"))
        with pytest.raises(ValueError, match=f"{name}: column 'y' must be finite.*row 1"):
            with_bad(truth.assign(y=[1, np.nan]))
        for bad in ([0, -1], [0, 0.5]):
            with pytest.raises(ValueError, match=f"{name}: column 'frame' must be whole.*row 1"):
                with_bad(truth.assign(frame=bad))


@pytest.mark.parametrize("matching", ["nearest", "optimal"])
def test_time_stamps_as_frames(matching):
    """Frame numbers far beyond the tables cost neither time nor memory."""
    tables = random_scene(4)
    later = [table.assign(frame=table["frame"] * 10**6 + 10**12) for table in tables]
    aps = [metrics.cso_map(*each, matching=matching).ap for each in (later, tables)]
    np.testing.assert_array_equal(*aps)
    pairs = [metrics.match(*each, max_distance=0.3, method=matching) for each in (later, tables)]
    for name in ("detection", "truth", "distance"):
        np.testing.assert_array_equal(*(getattr(each, name) for each in pairs))
