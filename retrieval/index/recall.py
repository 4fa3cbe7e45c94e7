"""The measured recall of an index against exact search, and how it was counted."""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int64

from retrieval.search.topk import NO_ROW, TopK, inner_products

RECALL_K = 10
GIVEN = "given"
SAMPLED = "sampled rows, each left out of its own result"
# Scores closer than this count as equal: rows of equal vectors stand for each other.
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredRecall:
    """A recall, and how it was counted.

    Attributes:
      k: how many results a query has.
      value: mean over the queries of the share of the exact top k that the index returned; None without a query.
      num_queries: how many queries it was measured on.
      queries: where they come from.
      seed: of the sample.
    """

    k: int
    value: float | None
    num_queries: int
    queries: str
    seed: int


def sample_rows(num_rows: int, num_queries: int, seed: int) -> Int64[np.ndarray, "Q"]:
    """Rows to use as queries: `min(num_queries, num_rows)` different ones, in ascending order."""
    chosen = np.random.default_rng(seed).choice(num_rows, min(num_queries, num_rows), replace=False)
    return np.sort(chosen).astype(np.int64)


def without_own_row(found: TopK, own: Int64[np.ndarray, "Q"]) -> TopK:
    """Each result without the query's own row, one shorter; where that row was not found the last goes."""
    is_own = found.rows == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True
    shape = (found.rows.shape[0], found.rows.shape[1] - 1)
    return TopK(rows=found.rows[~is_own].reshape(shape), scores=found.scores[~is_own].reshape(shape))


def recall(found: TopK, exact: TopK, queries: Float32[np.ndarray, "Q E"], vectors: Float32[np.ndarray, "N E"]) -> float:
    """The mean share of the exact top k that was found.

    A row that was found counts when its true score reaches that of the exact k-th, less 1e-6.

    Args:
      found: the index's result.
      exact: the exact result, of the same k.
      queries: the queries' vectors.
      vectors: the rows.
    """
    shares = []
    for query, rows, worst in zip(queries, found.rows, exact.scores[:, -1], strict=True):
        scores = inner_products(query, vectors, rows[rows != NO_ROW])
        shares.append(np.sum(scores >= worst - _TOLERANCE) / exact.rows.shape[1])
    return float(np.mean(shares))
