"""Fusion of a dense and a BM25 result: a convex sum of z-scores with a weight chosen on dev, or reciprocal ranks.

z-scores: each list's scores are standardised over that list, a row missing from a list gets the list's lowest, and

    fused = w * z_dense + (1 - w) * z_bm25,        0 <= w <= 1.

A list of weight 0 adds no rows, so that w = 0 is BM25's own result. A list whose scores are all equal says nothing:
its z-scores are 0.

Reciprocal ranks: fused = sum over the lists of 1 / (constant + rank); a row missing from a list gets nothing from it.
Reference: Cormack et al., Reciprocal Rank Fusion, SIGIR 2009. With a young tower it lost .10 to .13 nDCG here, which
is why the weighted sum is the default.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, Int64

from jaxscale.errors import UsageError
from retrieval.search.topk import NO_ROW, TopK, ranked, require_positive_k

# 0 is in it: where dense results only hurt on dev, fusion is BM25 itself.
DENSE_WEIGHTS = tuple(i / 20 for i in range(21))
# Cormack et al., section 2: chosen in a pilot and left there by everybody since.
RECIPROCAL_RANK_CONSTANT = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChosenWeight:
    """The weight of the dense list that did best on dev.

    Attributes:
      dense_weight: the best of the grid; of equals the smallest, which trusts BM25 more.
      measured: what every weight of the grid gave, in the order of the grid.
    """

    dense_weight: float
    measured: tuple[tuple[float, float], ...]


def zscore_fusion(dense: TopK, bm25: TopK, *, dense_weight: float, k: int) -> TopK:
    """The `k` best rows by the convex sum of z-scores; inside a tie the lowest row comes first.

    Args:
      dense: the dense result of Q queries.
      bm25: BM25's result of the same queries over the same rows.
      dense_weight: w, 0 to 1.
      k: how many rows to keep, at least 1.

    Returns:
      Rows and fused scores; row -1 where both lists together have fewer than `k`.

    Raises:
      UsageError: `k`, the weight or the number of queries is wrong.

    >>> dense = TopK(rows=np.array([[2, 5]]), scores=np.array([[0.9, 0.1]], np.float32))
    >>> bm25 = TopK(rows=np.array([[5, 2]]), scores=np.array([[7.0, 3.0]], np.float32))
    >>> zscore_fusion(dense, bm25, dense_weight=0.25, k=2).rows.tolist()
    [[5, 2]]
    """
    if not 0 <= dense_weight <= 1:
        raise UsageError(f"dense_weight={dense_weight} must be between 0 (BM25 alone) and 1 (dense alone)")
    weighted = [(w, result) for w, result in ((dense_weight, dense), (1 - dense_weight, bm25)) if w > 0]
    _require_same_queries(dense, bm25)

    def fuse_query(query: int) -> tuple[Int64[np.ndarray, "N"], Float64[np.ndarray, "N"]]:
        lists = [(w, *_listed(result, query)) for w, result in weighted]
        union = np.unique(np.concatenate([rows for _, rows, _ in lists]))
        fused = np.zeros(union.shape[0])
        for weight, rows, scores in lists:
            z = _z_scores(scores)
            fused += weight * _aligned(union, rows, z, missing=float(z.min(initial=0.0)))
        return union, fused

    return _fused_topk([fuse_query(query) for query in range(dense.rows.shape[0])], k)


def reciprocal_rank_fusion(dense: TopK, bm25: TopK, *, k: int, constant: int = RECIPROCAL_RANK_CONSTANT) -> TopK:
    """The `k` best rows by the sum of reciprocal ranks; inside a tie the lowest row comes first.

    Args:
      dense: the dense result of Q queries.
      bm25: BM25's result of the same queries over the same rows.
      k: how many rows to keep, at least 1.
      constant: added to every rank; the larger, the less the first places count.

    Raises:
      UsageError: `k`, the constant or the number of queries is wrong.
    """
    if constant < 0:
        raise UsageError(f"constant={constant} must be at least 0; {RECIPROCAL_RANK_CONSTANT} is usual")
    _require_same_queries(dense, bm25)

    def fuse_query(query: int) -> tuple[Int64[np.ndarray, "N"], Float64[np.ndarray, "N"]]:
        lists = [_listed(result, query)[0] for result in (dense, bm25)]
        union = np.unique(np.concatenate(lists))
        fused = np.zeros(union.shape[0])
        for rows in lists:
            fused += _aligned(union, rows, 1.0 / (constant + 1 + np.arange(rows.shape[0])), missing=0.0)
        return union, fused

    return _fused_topk([fuse_query(query) for query in range(dense.rows.shape[0])], k)


def choose_dense_weight(
    dense: TopK,
    bm25: TopK,
    measure: Callable[[TopK], float],
    *,
    k: int,
    grid: tuple[float, ...] = DENSE_WEIGHTS,
) -> ChosenWeight:
    """The weight for `zscore_fusion` that does best on the dev queries.

    Args:
      dense: the dense result of the dev queries.
      bm25: BM25's result of the same queries.
      measure: how good a fused result is; higher is better.
      k: how many rows of a fused result the measure sees.
      grid: the weights tried, in ascending order.
    """
    measured = tuple((w, measure(zscore_fusion(dense, bm25, dense_weight=w, k=k))) for w in grid)
    best = max(measured, key=lambda pair: (pair[1], -pair[0]))
    return ChosenWeight(dense_weight=best[0], measured=measured)


def _listed(result: TopK, query: int) -> tuple[Int64[np.ndarray, "K"], Float32[np.ndarray, "K"]]:
    found = result.rows[query] != NO_ROW
    return result.rows[query][found], result.scores[query][found]


def _z_scores(scores: Float32[np.ndarray, "K"]) -> Float64[np.ndarray, "K"]:
    wide = scores.astype(np.float64)
    # The mean of equal scores is off by rounding: compare the scores themselves.
    if wide.size == 0 or wide.max() == wide.min():
        return np.zeros_like(wide)
    return np.asarray((wide - wide.mean()) / wide.std())


def _aligned(
    union: Int64[np.ndarray, "N"], rows: Int64[np.ndarray, "K"], values: Float64[np.ndarray, "K"], *, missing: float
) -> Float64[np.ndarray, "N"]:
    """The values put where their rows stand in `union` (sorted, a superset of `rows`)."""
    aligned = np.full(union.shape[0], missing)
    aligned[np.searchsorted(union, rows)] = values
    return aligned


def _fused_topk(fused: list[tuple[Int64[np.ndarray, "N"], Float64[np.ndarray, "N"]]], k: int) -> TopK:
    require_positive_k(k)
    rows = np.full((len(fused), k), NO_ROW, np.int64)
    scores = np.full((len(fused), k), -np.inf, np.float32)
    for query, (union, values) in enumerate(fused):
        narrow = values.astype(np.float32)
        kept = ranked(union, narrow, k)
        rows[query, : kept.size], scores[query, : kept.size] = union[kept], narrow[kept]
    return TopK(rows=rows, scores=scores)


def _require_same_queries(dense: TopK, bm25: TopK) -> None:
    if dense.rows.shape[0] != bm25.rows.shape[0]:
        raise UsageError(
            f"fusion needs the results of the same queries: got {dense.rows.shape[0]} dense "
            f"and {bm25.rows.shape[0]} of BM25"
        )
