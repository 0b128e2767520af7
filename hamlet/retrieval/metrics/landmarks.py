"""Google Landmarks v2: mAP@100 of retrieval and GAP of recognition (Weyand et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hamlet.retrieval.metrics.common import Scores, check_ks, check_ranks, mean


def landmark_retrieval(
    ranks: ArrayLike, relevant: Sequence[Sequence[int]], ks: Sequence[int] = (1, 5, 10), *, depth: int = 100
) -> dict[str, float]:
    """mAP@100 and P@k of the retrieval task (Weyand et al., CVPR 2020, as its published scoring code computes).

    AP sums the precisions at the relevant images within the first ``depth`` places and divides by the number of
    relevant images, or by ``depth`` where there are more. An image that comes again counts once and keeps its place. A
    query for which nothing was found scores 0.

    Args:
        ranks: int (places, queries): column q holds database indices, the best first; more places than ``depth`` are
            allowed and looked at by P@k alone.
        relevant: for each query the database indices that are right, at least one.
        ks: cut-offs of the precision.
        depth: how many places count.

    Returns:
        {"map@100": ..., "p@1": ..., ...}, each from 0 to 1.

    Raises:
        ValueError: ranks that are not a matrix of integers with a column a query, negative indices, a query without a
            relevant image, a depth or a k below 1.

    >>> landmark_retrieval([[7], [3], [7]], [[3, 7, 9]], ks=(1,), depth=3)
    {'map@3': 0.6666666666666666, 'p@1': 1.0}
    """
    scores = landmark_retrieval_per_query(ranks, relevant, ks, depth=depth)
    return {name: mean(values) for name, values in scores.items()}


def landmark_retrieval_per_query(
    ranks: ArrayLike, relevant: Sequence[Sequence[int]], ks: Sequence[int] = (1, 5, 10), *, depth: int = 100
) -> Scores:
    """What :func:`landmark_retrieval` averages: {"map@100": float64 (queries,), "p@k": ...}."""
    ranking = check_ranks(ranks, len(relevant))
    check_ks((*ks, depth))
    for query, indices in enumerate(relevant):
        if len(indices) == 0:
            raise ValueError(f"relevant: query {query} has none, expected at least one image for each query")
    hits = _first_hits(ranking[: max((depth, *ks))], relevant)
    within = hits[:depth]
    precisions = np.cumsum(within, axis=0) / np.arange(1, len(within) + 1)[:, None]
    most = np.minimum([len(set(indices)) for indices in relevant], depth)
    scores = {f"map@{depth}": (precisions * within).sum(axis=0) / most}
    for k in ks:
        scores[f"p@{k}"] = hits[:k].sum(axis=0) / k
    return scores


def landmark_gap(
    ids: Sequence[str], classes: ArrayLike, scores: ArrayLike, truth: Mapping[str, Collection[int]]
) -> float:
    """Global average precision, or micro average precision, of the recognition task (Weyand et al., CVPR 2020).

    All predictions are sorted together: by score, highest first, then by id, then by class. The precisions at those
    that are right are summed and divided by the number of images that show a landmark. Predictions for images that show
    none are wrong; images without a prediction find nothing.

    Args:
        ids: (predictions,), each image at most once.
        classes: int (predictions,), the landmark that each image is said to show.
        scores: float (predictions,), finite.
        truth: for each test image its landmarks, or an empty collection.

    Returns:
        0 to 1; NaN where no image shows a landmark.

    Raises:
        ValueError: ids, classes and scores that differ in number, an id that comes twice or is not in ``truth``, scores
            that are not finite, classes that are not integers.

    >>> landmark_gap(["a", "b", "c"], [5, 6, 7], [0.9, 0.8, 0.7], {"a": {5}, "b": set(), "c": {7, 8}})
    0.8333333333333333
    """
    labels, confidence = _check_predictions(ids, classes, scores, truth)
    positives = sum(1 for landmarks in truth.values() if landmarks)
    if not positives:
        return float("nan")
    right = np.array([label in truth[id] for id, label in zip(ids, labels.tolist(), strict=True)], dtype=bool)
    order = np.lexsort((labels, np.asarray(ids, dtype=np.str_), -confidence))
    hits = right[order]
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precisions[hits].sum() / positives)


def _first_hits(ranking: NDArray[Any], relevant: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """Which places hold a relevant image that no earlier place of the column holds."""
    size = max(int(ranking.max(initial=0)), max((max(indices) for indices in relevant), default=0)) + 1
    wanted = [q * size + index for q, indices in enumerate(relevant) for index in indices]
    hits = np.isin(ranking + np.arange(len(relevant), dtype=np.int64) * size, wanted)
    order = np.argsort(ranking, axis=0, kind="stable")
    ordered = np.take_along_axis(ranking, order, axis=0)
    again = np.zeros_like(hits)
    np.put_along_axis(again, order[1:], ordered[1:] == ordered[:-1], axis=0)
    return hits & ~again


def _check_predictions(
    ids: Sequence[str], classes: ArrayLike, scores: ArrayLike, truth: Mapping[str, Collection[int]]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    labels, confidence = np.asarray(classes), np.asarray(scores, dtype=np.float64)
    if labels.shape != (len(ids),) or (len(ids) and not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(f"classes: got {labels.dtype} {labels.shape}, expected an integer for each of {len(ids)} ids")
    if confidence.shape != (len(ids),) or not np.isfinite(confidence).all():
        raise ValueError(f"scores: got shape {confidence.shape}, expected a finite number for each of {len(ids)} ids")
    if len(set(ids)) != len(ids):
        raise ValueError("ids: an image comes twice, expected one prediction an image")
    unknown = next((id for id in ids if id not in truth), None)
    if unknown is not None:
        raise ValueError(f"ids: {unknown!r} is not in the ground truth, expected images of this split alone")
    return labels, confidence
