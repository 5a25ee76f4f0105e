"""How good a list of targets is: CSO-mAP, matching, counts, positions, fluxes, GOSPA.

Every function takes two target tables (`csunmix.targets`), the detections and the truth, whose
rows may stand in any order. `cso_map` is the metric of CSIST-100K and SeqCSIST; it sees neither
fluxes nor missed counts, so `compare` puts `count_accuracy`, `position_rmse`, `flux_error` and
`gospa` beside it, one row a method.

Two rules tie detections to truths, within a distance:

- ``"nearest"``: the rule of CSO-mAP. Detections are visited in descending rank, and each is tied
  to its nearest truth only: a pair if that truth is near enough and not yet taken; there is no
  second choice.
- ``"optimal"``: the one-to-one assignment with the most pairs and, among those, the smallest sum
  of distances.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from csunmix._validation import BoolArray, FloatArray, as_number, as_real
from csunmix.targets import REQUIRED, checked_columns, n_frames, n_frames_of

if TYPE_CHECKING:
    import pandas as pd

IntArray = npt.NDArray[np.intp]
Pairs = tuple[IntArray, IntArray]  # rows of detections, rows of truths
Matching = Literal["nearest", "optimal"]
RankBy = Literal["flux", "score"]
Precision = Literal["float32", "float64"]

THRESHOLDS = (0.05, 0.10, 0.15, 0.20, 0.25)
_SPARSE = 16  # frames, and so many for every target, beyond which frames are numbered anew
"""The distances of CSO-mAP, px."""


@dataclass(frozen=True, eq=False)
class CsoMap:
    """Average precision at each distance, and their mean.

    Attributes
    ----------
    ap : ndarray, shape (n_thresholds,)
        Average precision at each threshold, in 0..1; NaN where there is no truth.
    thresholds : ndarray, shape (n_thresholds,)
        Largest distance of a hit, px.
    """

    ap: FloatArray
    thresholds: FloatArray

    @property
    def mean(self) -> float:
        """CSO-mAP: the mean of `ap`, in 0..1."""
        return float(self.ap.mean())


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of detections and truths, ordered by detection.

    Attributes
    ----------
    detection, truth : ndarray of int, shape (n_pairs,)
        Rows of each pair in the two tables, counted from 0 whatever the tables' index
        (``detections.iloc[matches.detection]``).
    distance : ndarray, shape (n_pairs,)
        Euclidean distance of each pair, px.
    """

    detection: IntArray
    truth: IntArray
    distance: FloatArray

    def __len__(self) -> int:
        return len(self.distance)


def cso_map(
    detections: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    thresholds: Sequence[float] | FloatArray = THRESHOLDS,
    rank_by: RankBy = "flux",
    matching: Matching = "nearest",
    precision: Precision = "float32",
) -> CsoMap:
    """CSO-mAP, the metric of CSIST-100K and SeqCSIST.

    At each threshold every detection is a hit or a false alarm (see `matching`). The detections
    of all images are pooled and ranked; with ``TP_i`` hits among the first ``i`` of them,
    ``P_i = TP_i / i`` and ``R_i = TP_i / n_truth``, the average precision is the area under the
    monotone envelope of the curve, all points taken::

        AP = sum_i (R_i - R_{i-1}) * max_{k >= i} P_k

    and CSO-mAP the mean of the APs. Ties in rank are ordered stably, by frame and then by row in
    the table; the reference implementation sorts unstably there, so its value may differ where
    ranks are equal. A frame without detections only adds its truths.

    Parameters
    ----------
    detections, truth : pandas.DataFrame
        Target tables.
    thresholds : sequence of float
        Largest distance of a hit, px.
    rank_by : {"flux", "score"}
        The column that ranks the detections; the published protocol takes the brightness.
    matching : {"nearest", "optimal"}
        ``"nearest"``: each detection, in descending rank, is tied to its nearest truth only
        (of equally near ones the first in the table); a hit if that is within the threshold and
        not yet taken. ``"optimal"``: in each image and at each threshold, the one-to-one
        assignment with the most pairs within the threshold and then the smallest sum of
        distances; assigned detections are hits.
    precision : {"float32", "float64"}
        Positions are cast to float32 and distances computed in float32, always. They are compared
        with the thresholds in this precision: ``"float32"`` is what the reference does under
        NumPy 2, ``"float64"`` under NumPy 1 and in SeqCSIST.

    Returns
    -------
    CsoMap
        AP at each threshold. Without any detection they are 0; without any truth NaN, as recall
        is undefined.

    Raises
    ------
    TypeError
        If a table is not a DataFrame.
    ValueError
        If a table is malformed, a threshold is not positive, an option is unknown, or
        ``rank_by="score"`` and a detection has no score.

    References
    ----------
    Han et al., DISTA-Net: dynamic closely-spaced infrared small target unmixing, ICCV 2025,
    arXiv:2505.19148, where CSO-mAP is introduced.
    """
    limits = as_real(thresholds, "thresholds")
    if limits.ndim != 1 or limits.size == 0 or not (np.isfinite(limits) & (limits > 0)).all():
        raise ValueError(
            f"thresholds must be a sequence of positive numbers (px), got {thresholds!r}"
        )
    hits = _hits(detections, truth, limits, rank_by, matching, precision)
    scratch = np.empty(len(detections) + 1)
    ap = np.array([_average_precision(hit, len(truth), scratch) for hit in hits])
    return CsoMap(ap=ap, thresholds=limits)


def precision_recall(
    detections: pd.DataFrame,
    truth: pd.DataFrame,
    threshold: float,
    *,
    rank_by: RankBy = "flux",
    matching: Matching = "nearest",
    precision: Precision = "float32",
) -> tuple[FloatArray, FloatArray]:
    """Recall and precision as detections are taken in descending rank.

    Parameters
    ----------
    detections, truth : pandas.DataFrame
        Target tables.
    threshold : float
        Largest distance of a hit, px.
    rank_by, matching, precision
        As in `cso_map`.

    Returns
    -------
    recall, precision : ndarray, shape (n_detections,)
        ``R_i = TP_i / n_truth`` and ``P_i = TP_i / i`` of `cso_map`, in 0..1, before the envelope
        is taken. Recall is NaN without any truth.

    Raises
    ------
    TypeError, ValueError
        As in `cso_map`.
    """
    limits = np.array([as_number(threshold, "threshold", above=0)])
    (hit,) = _hits(detections, truth, limits, rank_by, matching, precision)
    return _curve(hit, len(truth))


def match(
    detections: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    max_distance: float,
    method: Matching = "optimal",
) -> Matches:
    """Pair detections with truths of the same frame, one to one.

    Parameters
    ----------
    detections, truth : pandas.DataFrame
        Target tables.
    max_distance : float
        Largest distance of a pair, px; distances are computed in float64.
    method : {"optimal", "nearest"}
        ``"optimal"``: the most pairs and, among those, the smallest sum of distances.
        ``"nearest"``: the rule of `cso_map`, detections visited in descending flux.

    Returns
    -------
    Matches
        Rows of the pairs and their distances, ordered by row in `detections`.

    Raises
    ------
    TypeError
        If a table is not a DataFrame or `max_distance` not a number.
    ValueError
        If a table is malformed, `max_distance` is not positive or `method` unknown.
    """
    max_distance = as_number(max_distance, "max_distance", above=0)
    _check_choice(method, "method", ("optimal", "nearest"))
    found, ranks = _ranked(detections, "flux", "detections")
    found, true = _numbered(found, _points(truth, "truth"))
    if method == "nearest":
        order = _descending(ranks, found)
        by_frame = _by_frame(true)
        nearest, distance = _nearest(found, true.take(by_frame))
        (hit,) = _first_claims(order, nearest, distance, np.array([max_distance]), len(truth))
        i, j = order[hit], by_frame[nearest[order[hit]]]
    else:
        rows, others, distance = _neighbours(found, true, max_distance)
        i, j = _most_pairs(rows, others, distance, max_distance)
    by_row = np.argsort(i)
    i, j = i[by_row], j[by_row]
    return Matches(detection=i, truth=j, distance=_distance(found, true, i, j))


def count_confusion(detections: pd.DataFrame, truth: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Count the frames by true and by found number of targets.

    Parameters
    ----------
    detections, truth : pandas.DataFrame
        Target tables.

    Returns
    -------
    ndarray of int, shape (max true count + 1, max found count + 1)
        Entry ``[k, m]``: frames with ``k`` truths and ``m`` detections. The frames are those that
        either table speaks of (`csunmix.targets.n_frames`).

    Raises
    ------
    TypeError, ValueError
        If a table is not a DataFrame or malformed.
    """
    true, found = _counts(_points(detections, "detections"), _points(truth, "truth"))
    shape = (int(true.max(initial=0)) + 1, int(found.max(initial=0)) + 1)
    cells = np.ravel_multi_index((true, found), shape)
    return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape).astype(np.int64)


def count_accuracy(detections: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Fraction of frames with as many detections as truths.

    Parameters
    ----------
    detections, truth : pandas.DataFrame
        Target tables.

    Returns
    -------
    float
        In 0..1. The frames are those that either table speaks of (`csunmix.targets.n_frames`);
        a frame with neither truths nor detections counts as right. NaN without any frame.

    Raises
    ------
    TypeError, ValueError
        If a table is not a DataFrame or malformed.
    """
    confusion = count_confusion(detections, truth)
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else np.nan


def position_rmse(
    detections: pd.DataFrame, truth: pd.DataFrame, *, max_distance: float = 0.5
) -> float:
    """Root mean square of the 2-D Euclidean position error of matched pairs.

    ``sqrt(mean(dx^2 + dy^2))`` over the pairs of the optimal `match`; where both axes are alike,
    the RMSE per axis is smaller by sqrt(2).

    Parameters
    ----------
    detections, truth : pandas.DataFrame
        Target tables.
    max_distance : float
        Largest distance of a pair, px.

    Returns
    -------
    float
        RMSE, px; NaN where no pair is within `max_distance`.

    Raises
    ------
    TypeError, ValueError
        As in `match`.
    """
    return _rmse(match(detections, truth, max_distance=max_distance))


def flux_error(
    detections: pd.DataFrame, truth: pd.DataFrame, *, max_distance: float = 0.5
) -> float:
    """Median relative flux error of matched pairs, ``median(|flux - true flux| / true flux)``.

    Parameters
    ----------
    detections, truth : pandas.DataFrame
        Target tables.
    max_distance : float
        Largest distance of a pair of the optimal `match`, px.

    Returns
    -------
    float
        A fraction (0.01 is one percent). Pairs whose true flux is not positive are left out; NaN
        where no pair remains.

    Raises
    ------
    TypeError, ValueError
        As in `match`.
    """
    return _flux_error(match(detections, truth, max_distance=max_distance), detections, truth)


def gospa(
    detections: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    cutoff: float = 0.5,
    p: float = 2,
    alpha: float = 2,
) -> float:
    """Generalised optimal sub-pattern assignment (GOSPA) metric, mean over frames.

    Parameters
    ----------
    detections, truth, cutoff, p, alpha
        As in `frame_gospa`.

    Returns
    -------
    float
        Mean of `frame_gospa`, px. NaN without any frame.

    Raises
    ------
    TypeError, ValueError
        As in `frame_gospa`.
    """
    each = frame_gospa(detections, truth, cutoff=cutoff, p=p, alpha=alpha)
    return float(each.mean()) if each.size else np.nan


def frame_gospa(
    detections: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    cutoff: float = 0.5,
    p: float = 2,
    alpha: float = 2,
) -> FloatArray:
    """Generalised optimal sub-pattern assignment (GOSPA) metric of each frame.

    In a frame of ``n`` detections and ``m >= n`` truths (else with the two exchanged)::

        GOSPA = (min_pi sum_{i=1}^{n} min(d(x_i, y_pi(i)), c)^p + c^p/alpha (m - n))^(1/p)

    with ``d`` the Euclidean distance, ``c = cutoff`` and ``pi`` over all one-to-one assignments.
    At ``alpha = 2`` each missed truth and each false detection costs ``c^p/2``.

    Parameters
    ----------
    detections, truth : pandas.DataFrame
        Target tables.
    cutoff : float
        Distance ``c`` from which a pair is no better than none, px.
    p : float
        Order, at least 1.
    alpha : float
        Weight of the difference in number, above 0 and at most 2.

    Returns
    -------
    ndarray, shape (n_frames,)
        In px, of all frames that either table speaks of (`csunmix.targets.n_frames`); a frame
        with neither truths nor detections has 0.

    Raises
    ------
    TypeError
        If a table is not a DataFrame or a parameter not a number.
    ValueError
        If a table is malformed or a parameter out of its range.

    References
    ----------
    Rahmathullah, Garcia-Fernandez, Svensson, Generalized optimal sub-pattern assignment metric,
    FUSION 2017, arXiv:1601.05585, Definition 1.
    """
    cutoff = as_number(cutoff, "cutoff", above=0)
    p = as_number(p, "p", minimum=1)
    alpha = as_number(alpha, "alpha", above=0)
    if alpha > 2:
        raise ValueError(f"alpha must be at most 2, got {alpha!r}")
    found, true = _points(detections, "detections"), _points(truth, "truth")
    n_true, n_found = _counts(found, true)
    # In units of the cutoff; pairs beyond it cost 1, so a pair within gains 1 - d^p.
    i, j, distance = _neighbours(found, true, cutoff)
    loss = (distance / cutoff) ** p
    chosen = _assign(i, j, loss - 1)
    frame = found.frame[i[chosen]]
    n_paired = np.bincount(frame, minlength=n_true.size)
    paired = np.bincount(frame, weights=loss[chosen], minlength=n_true.size)
    unpaired = np.minimum(n_true, n_found) - n_paired + np.abs(n_true - n_found) / alpha
    each: FloatArray = cutoff * (paired + unpaired) ** (1 / p)
    return each


def compare(
    runs: Mapping[str, pd.DataFrame],
    truth: pd.DataFrame,
    *,
    rank_by: RankBy = "flux",
    max_distance: float = 0.5,
) -> pd.DataFrame:
    """Every metric of every method, one row a method.

    Parameters
    ----------
    runs : mapping of str to pandas.DataFrame
        The target table of each method.
    truth : pandas.DataFrame
        The true targets.
    rank_by : {"flux", "score"}
        The column that ranks detections in `cso_map`.
    max_distance : float
        Largest distance of a pair for RMSE and flux error, and the cutoff of GOSPA, px.

    Returns
    -------
    pandas.DataFrame
        Index ``method``; columns ``CSO-mAP, AP05, AP10, AP15, AP20, AP25, count accuracy`` (all
        in percent), ``RMSE`` (px), ``flux error`` (percent), ``GOSPA`` (px) and ``targets per
        frame`` (found).

    Raises
    ------
    TypeError
        If `runs` is not a mapping, or a value of it or `truth` not a DataFrame.
    ValueError
        If `runs` is empty, a table is malformed or has detections in frames that the truth does
        not know, or ``rank_by="score"`` and a method reports no scores.
    """
    import pandas as pd

    if not isinstance(runs, Mapping):
        raise TypeError(f"runs must be a mapping of name to table, got {type(runs).__name__}")
    if not runs:
        raise ValueError("runs must name at least one method, got an empty mapping")
    _check_choice(rank_by, "rank_by", ("flux", "score"))
    max_distance = as_number(max_distance, "max_distance", above=0)
    _points(truth, "truth")
    for name, table in runs.items():
        _check_run(table, truth, rank_by, f"runs[{name!r}]")
    rows = [_summary(table, truth, rank_by, max_distance) for table in runs.values()]
    return pd.DataFrame(rows, index=pd.Index(list(runs), name="method"))


def _summary(
    detections: pd.DataFrame, truth: pd.DataFrame, rank_by: RankBy, max_distance: float
) -> dict[str, float]:
    """One row of `compare`."""
    result = cso_map(detections, truth, rank_by=rank_by)
    matches = match(detections, truth, max_distance=max_distance)
    n = max(n_frames(detections), n_frames(truth))
    return {
        "CSO-mAP": 100 * result.mean,
        **{
            f"AP{100 * t:02.0f}": 100 * float(ap)
            for t, ap in zip(THRESHOLDS, result.ap, strict=True)
        },
        "count accuracy": 100 * count_accuracy(detections, truth),
        "RMSE": _rmse(matches),
        "flux error": 100 * _flux_error(matches, detections, truth),
        "GOSPA": gospa(detections, truth, cutoff=max_distance),
        "targets per frame": len(detections) / n if n else np.nan,
    }


def _check_run(table: pd.DataFrame, truth: pd.DataFrame, rank_by: RankBy, name: str) -> None:
    """Refuse a table that cannot be ranked or speaks of frames that the truth does not know."""
    frame = _ranked(table, rank_by, name)[0].frame
    known = n_frames(truth)
    beyond = np.unique(frame[frame >= known])
    if beyond.size:
        raise ValueError(
            f"{name} has detections in {beyond.size} frame(s) that truth does not know, the first "
            f"is frame {beyond[0]}: frames must be below {known}, the number of frames of truth "
            "(truth.attrs['n_frames'] sets it where the last frames are empty)"
        )


def _check_choice(value: Any, name: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _rmse(matches: Matches) -> float:
    return float(np.sqrt(np.mean(matches.distance**2))) if len(matches) else np.nan


def _flux_error(matches: Matches, detections: pd.DataFrame, truth: pd.DataFrame) -> float:
    found = detections["flux"].to_numpy(dtype=np.float64)[matches.detection]
    true = truth["flux"].to_numpy(dtype=np.float64)[matches.truth]
    known = true > 0
    if not known.any():
        return np.nan
    return float(np.median(np.abs(found[known] - true[known]) / true[known]))


# Precision and recall


def _hits(
    detections: pd.DataFrame,
    truth: pd.DataFrame,
    limits: FloatArray,
    rank_by: RankBy,
    matching: Matching,
    precision: Precision,
) -> Iterator[BoolArray]:
    """For each limit: which detections, in descending rank, are hits."""
    _check_choice(rank_by, "rank_by", ("flux", "score"))
    _check_choice(matching, "matching", ("nearest", "optimal"))
    _check_choice(precision, "precision", ("float32", "float64"))
    found, ranks = _ranked(detections, rank_by, "detections")
    found, true = _numbered(found, _points(truth, "truth"))
    order = _descending(ranks, found)
    found, true = found.astype(np.float32), true.astype(np.float32)
    limits = limits.astype(precision)

    if matching == "nearest":
        if not _is_sorted(true):
            true = true.take(np.argsort(true.frame, kind="stable"))
        yield from _first_claims(order, *_nearest(found, true), limits, len(true))
    else:
        found = found.take(order)
        # A Python float compares in float32 here: never fewer pairs than the loop lets through.
        i, j, distance = _neighbours(found, true, float(limits.max()))
        distance = distance.astype(precision)
        for limit in limits:
            near, hit = distance <= limit, np.zeros(len(found), dtype=np.bool_)
            hit[_most_pairs(i[near], j[near], distance[near], float(limit))[0]] = True
            yield hit


def _curve(hit: BoolArray, n_truth: int) -> tuple[FloatArray, FloatArray]:
    """Recall and precision after each detection."""
    tp = np.cumsum(hit)
    recall = tp / n_truth if n_truth else np.full(hit.size, np.nan)
    return recall, tp / np.arange(1, hit.size + 1)


def _average_precision(hit: BoolArray, n_truth: int, largest: FloatArray) -> float:
    """Area under the monotone envelope of the precision-recall curve; `largest` is scratch."""
    if n_truth == 0:
        return np.nan
    from csunmix._kernels.claims import envelope

    # Recall rises by 1/n_truth at each hit, and nowhere else does precision have a peak.
    n = envelope(hit, largest)
    return float(largest[:n].sum() / n_truth)


# Points: the frames and positions of a table as arrays


@dataclass(frozen=True, eq=False)
class _Points:
    """Frames and positions of a table, and how many frames it speaks of."""

    frame: npt.NDArray[np.int64]
    y: FloatArray
    x: FloatArray
    n_frames: int

    def __len__(self) -> int:
        return len(self.frame)

    def take(self, rows: IntArray) -> _Points:
        return _Points(self.frame[rows], self.y[rows], self.x[rows], self.n_frames)

    def astype(self, dtype: npt.DTypeLike) -> _Points:
        return _Points(self.frame, self.y.astype(dtype), self.x.astype(dtype), self.n_frames)


def _points(table: pd.DataFrame, name: str) -> _Points:
    return _to_points(table, checked_columns(table, name, REQUIRED))


def _ranked(table: pd.DataFrame, rank_by: RankBy, name: str) -> tuple[_Points, FloatArray]:
    """The points, and what ranks each."""
    columns = checked_columns(table, name, tuple(dict.fromkeys((*REQUIRED, rank_by))))
    points = _to_points(table, columns)
    if rank_by not in columns:
        raise ValueError(
            f"{name} has no column {rank_by!r}: this method reports no scores, use rank_by='flux'"
        )
    ranks = columns[rank_by].astype(np.float64, copy=False)
    missing = np.flatnonzero(np.isnan(ranks))
    if missing.size:
        why = "this method reports no scores, use rank_by='flux'"
        if missing.size < len(ranks):
            why = f"say what they rank as, .fillna({{{rank_by!r}: 0}}) last, or use rank_by='flux'"
        raise ValueError(
            f"{name}: column {rank_by!r} is NaN in {missing.size} row(s), the first is row "
            f"{missing[0]}: {why}"
        )
    return points, ranks


def _to_points(table: pd.DataFrame, columns: Mapping[str, npt.NDArray[Any]]) -> _Points:
    frame = np.ascontiguousarray(columns["frame"], np.int64)
    y, x = (np.ascontiguousarray(columns[axis], np.float64) for axis in ("y", "x"))
    return _Points(frame, y, x, n_frames_of(table, frame))


def _numbered(found: _Points, true: _Points) -> tuple[_Points, _Points]:
    """The points with frames counted without gaps, where numbers go far beyond the tables."""
    n = len(found) + len(true)
    if max(found.n_frames, true.n_frames) <= _SPARSE * n + _SPARSE:
        return found, true
    frames, index = np.unique(np.concatenate([found.frame, true.frame]), return_inverse=True)
    parts = np.split(index, [len(found)])
    one, other = (
        _Points(frame, points.y, points.x, len(frames))
        for frame, points in zip(parts, (found, true), strict=True)
    )
    return one, other


def _descending(ranks: FloatArray, points: _Points) -> IntArray:
    """Rows in descending rank; ties by frame, then by row."""
    from csunmix._kernels.claims import BITS, sort_rows

    keys = (0.0 - ranks).view(np.int64)  # which has no -0
    rows, other = _by_frame(points), np.empty(len(points), np.intp)
    return other if sort_rows(keys, rows, other, np.empty(2**BITS, np.int64)) else rows


def _counts(found: _Points, true: _Points) -> Pairs:
    """Count truths and detections in each frame that either table speaks of."""
    n = max(found.n_frames, true.n_frames)
    return np.bincount(true.frame, minlength=n), np.bincount(found.frame, minlength=n)


# Pairs: which detection lies near which truth, all frames at once


def _distance(found: _Points, true: _Points, i: IntArray, j: IntArray) -> FloatArray:
    """Distance of detections `i` to truths `j`, in the precision of the points."""
    distance: FloatArray = np.sqrt((found.x[i] - true.x[j]) ** 2 + (found.y[i] - true.y[j]) ** 2)
    return distance


def _rounds(found: _Points, true: _Points) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Pair detections with the first truth of their frame, then with the second, and so on.

    Yields rows of detections, the row of the truth beside each, and their distance. The only
    loop is over the truths of the fullest frame; memory stays that of the tables.
    """
    by_frame = _by_frame(true)
    in_frame, _ = _counts(found, true)
    count = in_frame[found.frame]
    first = (np.cumsum(in_frame) - in_frame)[found.frame]
    i, k = np.flatnonzero(count), 0
    while i.size:
        j = by_frame[first[i] + k]
        yield i, j, _distance(found, true, i, j)
        k += 1
        i = i[count[i] > k]


def _nearest(found: _Points, true: _Points) -> tuple[IntArray, FloatArray]:
    """Nearest truth in the frame of each detection (-1: none), the first of equals; distance.

    Truths are ordered by frame.
    """
    from csunmix._kernels.claims import find_nearest

    in_frame = np.bincount(true.frame, minlength=max(found.n_frames, true.n_frames))
    first = np.concatenate([[0], np.cumsum(in_frame)])
    nearest = np.empty(len(found), dtype=np.intp)
    distance = np.empty(len(found), dtype=found.x.dtype)
    find_nearest(found.frame, found.y, found.x, first, true.y, true.x, nearest, distance)
    return nearest, distance


def _first_claims(
    order: IntArray, nearest: IntArray, distance: FloatArray, limits: FloatArray, n_truth: int
) -> BoolArray:
    """Whether a detection is the first within each limit to claim its truth, (limits, n).

    Detections come in `order`, here and in the answer.
    """
    from csunmix._kernels.claims import claim

    hit = np.empty((limits.size, nearest.size), dtype=np.bool_)
    claim(order, nearest, distance, limits, np.empty(n_truth + 1, distance.dtype), hit)
    return hit


def _by_frame(points: _Points) -> IntArray:
    """Rows ordered by frame, and then as they are."""
    if _is_sorted(points):
        return np.arange(len(points), dtype=np.intp)
    return np.argsort(points.frame, kind="stable")


def _is_sorted(points: _Points) -> bool:
    return bool((points.frame[1:] >= points.frame[:-1]).all())


def _neighbours(
    found: _Points, true: _Points, reach: float
) -> tuple[IntArray, IntArray, FloatArray]:
    """All pairs within `reach`: rows of detections, rows of truths, distances."""
    empty = np.empty(0, dtype=np.intp)
    rows, others, distances = [empty], [empty], [np.empty(0, dtype=found.x.dtype)]
    for i, j, d in _rounds(found, true):
        near = d <= reach
        rows.append(i[near])
        others.append(j[near])
        distances.append(d[near])
    return np.concatenate(rows), np.concatenate(others), np.concatenate(distances)


# Optimal assignment


def _most_pairs(i: IntArray, j: IntArray, distance: FloatArray, max_distance: float) -> Pairs:
    """Of the pairs ``(i, j)``: as many as go one to one, then the smallest sum of distances."""
    # One more pair gains more than all distances together can cost.
    one_pair = 1 + max_distance * len(i)
    chosen = _assign(i, j, distance.astype(np.float64) - one_pair)
    return i[chosen], j[chosen]


def _assign(i: IntArray, j: IntArray, cost: FloatArray) -> IntArray:
    """Which of the pairs ``(i, j)``, one to one, have the smallest sum of (negative) `cost`.

    Pairs that share no point, directly or through others, do not compete: each connected
    component is a problem of its own. Where every detection of a component prefers another truth
    (or every truth another detection) that is its solution; the others are solved one by one.
    """
    if i.size == 0:
        return np.empty(0, dtype=np.intp)
    n = int(i.max()) + 1
    size = n + int(j.max()) + 1
    graph = coo_array((np.ones(i.size, dtype=np.int8), (i, n + j)), shape=(size, size))
    n_components, label = connected_components(graph, directed=False)
    component = label[i].astype(np.intp)
    solved = np.zeros(n_components, dtype=np.bool_)
    chosen = []
    for one, other in ((i, j), (j, i)):
        best = _cheapest(one, cost)
        shared = np.bincount(other[best])[other[best]] > 1
        agreed = np.ones(n_components, dtype=np.bool_)
        agreed[component[best[shared]]] = False
        agreed &= ~solved
        chosen.append(best[agreed[component[best]]])
        solved |= agreed
    rest = np.flatnonzero(~solved[component])
    chosen.extend(
        rest[pairs] for pairs in _one_by_one(i[rest], j[rest], cost[rest], component[rest])
    )
    return np.concatenate(chosen)


def _one_by_one(
    i: IntArray, j: IntArray, cost: FloatArray, component: IntArray
) -> Iterator[IntArray]:
    """Solve each component by itself; yields the chosen pairs of each."""
    order = np.argsort(component, kind="stable")
    row, column = _number_within(component, i), _number_within(component, j)
    starts = np.flatnonzero(np.diff(component[order], prepend=-1))
    for start, stop in pairwise([*starts, order.size]):
        pairs = order[start:stop]
        yield pairs[_hungarian(row[pairs], column[pairs], cost[pairs])]


def _cheapest(group: IntArray, cost: FloatArray) -> IntArray:
    """Index of the pair of smallest `cost` in each group."""
    order = np.lexsort((cost, group))
    first = np.diff(group[order], prepend=-1) > 0
    return order[first]


def _number_within(group: IntArray, point: IntArray) -> IntArray:
    """Number the points of each group 0, 1, ...; equal points have equal numbers."""
    order = np.lexsort((point, group))
    new_group = np.diff(group[order], prepend=-1) > 0
    new_point = new_group | (np.diff(point[order], prepend=-1) != 0)
    number = np.cumsum(new_point)
    first = number[new_group][np.cumsum(new_group) - 1]
    within = np.empty_like(number)
    within[order] = number - first
    return within


def _hungarian(row: IntArray, column: IntArray, cost: FloatArray) -> IntArray:
    """Solve one component as a dense matrix, in which absent pairs cost nothing."""
    shape = (int(row.max()) + 1, int(column.max()) + 1)
    costs = np.zeros(shape)
    costs[row, column] = cost
    pair = np.full(shape, -1, dtype=np.intp)
    pair[row, column] = np.arange(row.size)
    assigned = pair[linear_sum_assignment(costs)]
    return assigned[assigned >= 0]
