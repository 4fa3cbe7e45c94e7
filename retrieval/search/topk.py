"""What every search returns, the one order that all of them keep (by score, inside a tie by row), and true scores."""

import dataclasses

import numpy as np
from jaxtyping import Float32, Float64, Int64

from jaxscale.errors import UsageError

NO_ROW = -1
_PRODUCTS_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK:
    """The best rows of each query, best first.

    Attributes:
      rows: positions in the corpus, `Int64[Q K]`; -1 where a search found fewer than K, always at the end.
      scores: their scores, `Float32[Q K]`; -inf where the row is -1.
    """

    rows: Int64[np.ndarray, "Q K"]
    scores: Float32[np.ndarray, "Q K"]


def ranked(rows: Int64[np.ndarray, "N"], scores: Float32[np.ndarray, "N"], k: int) -> Int64[np.ndarray, "K"]:
    """The positions of the `k` best candidates: the highest score first, inside a tie the lowest row first.

    Args:
      rows: the candidates' rows, each once; -1 for no candidate.
      scores: their scores, without NaN.
      k: how many to keep, at least 1; all of them where there are fewer.

    >>> ranked(np.array([7, 3, 5]), np.array([1.0, 1.0, 2.0], np.float32), 2).tolist()
    [2, 1]
    """
    order = np.lexsort((rows, -scores))
    return order[:k]


def best_of_all(scores: Float32[np.ndarray, "N"], k: int) -> Int64[np.ndarray, "K"]:
    """The rows of the `k` highest of N scores, in the order of `ranked`, without sorting all N.

    Args:
      scores: one score per row, without NaN.
      k: how many to keep, at least 1; all N where it is more.

    >>> best_of_all(np.array([0.0, 2.0, 1.0, 2.0], np.float32), 3).tolist()
    [1, 3, 2]
    """
    num_rows = scores.shape[0]
    if k >= num_rows:
        return np.argsort(-scores, kind="stable")
    kth = np.partition(scores, num_rows - k)[num_rows - k]
    candidates = np.flatnonzero(scores >= kth)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def inner_products(
    query: Float32[np.ndarray, "E"], vectors: Float32[np.ndarray, "N E"], rows: Int64[np.ndarray, "K"]
) -> Float64[np.ndarray, "K"]:
    """Inner products of one query with some rows, summed in float64; equal rows get equal bits.

    The product of two float32 is exact in float64, so that only the sum rounds, about 1e-16 of it.
    """
    step = max(1, _PRODUCTS_BYTES // (8 * query.shape[0]))
    blocks = [rows[start : start + step] for start in range(0, rows.shape[0], step)]
    wide = query.astype(np.float64)
    return np.concatenate([np.zeros(0), *((vectors[block] * wide).sum(axis=-1) for block in blocks)])


def require_positive_k(k: int) -> None:
    """Refuses a `k` below 1.

    Raises:
      UsageError: `k` is below 1.
    """
    if k < 1:
        raise UsageError(f"k={k} must be at least 1, the number of hits wanted for each query")
