"""Exact top-k by inner product: rows sharded over the mesh, local top-k, merge; then scores in float64 on the host.

The devices only nominate candidates, in float32. Their scores are then computed again in float64, where a product of
two float32 is exact, and rounded once. So equal vectors have equal scores, ties are ties, and the answer is the same
on every mesh. A query whose candidates might not hold all of its best k is asked again for more: the difference
between a device's score and the true one is bounded by `_score_error`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, Int64

from jaxscale.errors import DataError, UsageError
from jaxscale.sharding.plan import replicated, row_sharded
from retrieval.search.topk import TopK, inner_products, ranked, require_positive_k

# Candidates beyond k, so that near-ties at the border seldom need a second round.
_SPARE_CANDIDATES = 16
_GROWTH = 8
# Queries go through in blocks of these sizes only, so that few programs are compiled.
_QUERY_BLOCKS = (1, 16, 256)
_DEVICE_SCORES_BYTES = 64 * 2**20

_Nominate = Callable[[Array, Array], tuple[Array, Array]]


class ExactSearcher:
    """Vectors on a mesh, ready to be searched exactly."""

    def __init__(self, vectors: Float32[np.ndarray, "N E"], mesh: Mesh) -> None:
        """Puts the rows on the mesh, each device a block of them.

        Args:
          vectors: the documents' vectors; kept on the host too, for the last scoring.
          mesh: its devices share the rows.

        Raises:
          DataError: there is no row, or a value is not finite.
        """
        _require_finite(vectors, "vectors")
        if vectors.shape[0] == 0:
            raise DataError("there are no vectors to search: got 0 rows")
        self._vectors = vectors
        self._mesh = mesh
        self._largest_norm = float(np.sqrt(np.max(np.einsum("ne,ne->n", vectors, vectors, dtype=np.float64))))
        num_padding = -vectors.shape[0] % mesh.size
        padded = np.pad(vectors, ((0, num_padding), (0, 0))) if num_padding else vectors
        self._rows = jax.device_put(padded, row_sharded(mesh))

    @property
    def num_rows(self) -> int:
        """How many vectors there are (N)."""
        return int(self._vectors.shape[0])

    def search(self, queries: Float32[np.ndarray, "Q E"], k: int) -> TopK:
        """The `min(k, N)` rows with the highest inner product, for each query.

        Args:
          queries: query vectors.
          k: how many rows, at least 1.

        Returns:
          Rows and scores; inside a tie (equal float32 scores) the lowest row comes first.

        Raises:
          UsageError: `k` is below 1, or the queries have another number of dims.
          DataError: a query's value is not finite.
        """
        require_positive_k(k)
        if queries.ndim != 2 or queries.shape[1] != self._vectors.shape[1]:
            raise UsageError(
                f"queries of shape {queries.shape} can't search vectors of {self._vectors.shape[1]} dims; "
                "encode them with the encoder that made the vectors"
            )
        _require_finite(queries, "queries")
        num_hits = min(k, self.num_rows)
        rows = np.empty((queries.shape[0], num_hits), np.int64)
        scores = np.empty((queries.shape[0], num_hits), np.float32)
        num_candidates = min(_power_of_two(num_hits + _SPARE_CANDIDATES), self.num_rows)
        pending = np.arange(queries.shape[0])
        while pending.size:
            pending = self._round(queries, pending, num_candidates, rows, scores)
            num_candidates = min(num_candidates * _GROWTH, self.num_rows)
        return TopK(rows=rows, scores=scores)

    def _round(
        self,
        queries: Float32[np.ndarray, "Q E"],
        pending: Int64[np.ndarray, "P"],
        num_candidates: int,
        rows: Int64[np.ndarray, "Q K"],
        scores: Float32[np.ndarray, "Q K"],
    ) -> Int64[np.ndarray, "R"]:
        """Answers the pending queries into `rows` and `scores`; returns those whose answer is not certain yet."""
        num_hits, uncertain = rows.shape[1], []
        nominate = _nominator(self._mesh, self.num_rows, num_candidates)
        for block in self._blocks(pending):
            nominated, bounds = self._nominated(nominate, queries[block])
            for query, candidates, bound in zip(block, nominated, bounds, strict=True):
                true_scores = inner_products(queries[query], self._vectors, candidates)
                kept = ranked(candidates, true_scores.astype(np.float32), num_hits)
                rows[query], scores[query] = candidates[kept], true_scores[kept].astype(np.float32)
                error = _score_error(queries[query], self._largest_norm)
                if num_candidates < self.num_rows and not bound + error < scores[query, -1]:
                    uncertain.append(query)
        return np.array(uncertain, np.int64)

    def _blocks(self, pending: Int64[np.ndarray, "P"]) -> list[Int64[np.ndarray, "B"]]:
        rows_per_device = self._rows.shape[0] // self._mesh.size
        fitting = [size for size in _QUERY_BLOCKS if size * rows_per_device * 4 <= _DEVICE_SCORES_BYTES]
        size = max(fitting, default=1)
        return [pending[start : start + size] for start in range(0, pending.size, size)]

    def _nominated(
        self, nominate: _Nominate, queries: Float32[np.ndarray, "B E"]
    ) -> tuple[Int64[np.ndarray, "B K"], Float32[np.ndarray, "B"]]:
        """The candidates' rows, and the device's score of the last of them: every other row scored no higher."""
        size = next(s for s in _QUERY_BLOCKS if s >= queries.shape[0])
        padded = np.pad(queries, ((0, size - queries.shape[0]), (0, 0)))
        best, positions = nominate(jax.device_put(padded, replicated(self._mesh)), self._rows)
        num_queries = queries.shape[0]
        return np.asarray(positions)[:num_queries].astype(np.int64), np.asarray(best)[:num_queries, -1]


def exact_topk(queries: Float32[np.ndarray, "Q E"], docs: Float32[np.ndarray, "N E"], k: int, mesh: Mesh) -> TopK:
    """The `min(k, N)` documents with the highest inner product, for each query; see `ExactSearcher`.

    Args:
      queries: query vectors.
      docs: document vectors.
      k: how many, at least 1.
      mesh: its devices share the documents.

    Raises:
      UsageError: `k` is below 1, or the dims differ.
      DataError: a value is not finite, or there is no document.
    """
    return ExactSearcher(docs, mesh).search(queries, k)


@functools.lru_cache(maxsize=64)
def _nominator(mesh: Mesh, num_rows: int, num_candidates: int) -> _Nominate:
    """A compiled function from queries [B E] and sharded rows [N E] to the best scores [B K] and their rows [B K]."""
    axes = mesh.axis_names

    def nominate(
        queries: Float[Array, "B E"], rows: Float[Array, "N E"]
    ) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
        scores = jnp.einsum("be,ne->bn", queries, rows, precision=jax.lax.Precision.HIGHEST)
        first = jax.lax.axis_index(axes) * rows.shape[0]
        is_row = first + jnp.arange(rows.shape[0], dtype=jnp.int32) < num_rows
        scores = jnp.where(is_row[None, :], scores, -jnp.inf)
        local_best, at = jax.lax.top_k(scores, min(num_candidates, rows.shape[0]))
        every_best = jax.lax.all_gather(local_best, axes, axis=1, tiled=True)
        every_row = jax.lax.all_gather(first + at, axes, axis=1, tiled=True)
        best, at = jax.lax.top_k(every_best, num_candidates)
        return best, jnp.take_along_axis(every_row, at, axis=1)

    whole, by_row = replicated(mesh).spec, row_sharded(mesh).spec
    # Every device gathers the same candidates and merges them alike, which the checker can't see.
    island = jax.shard_map(nominate, mesh=mesh, in_specs=(whole, by_row), out_specs=(whole, whole), check_vma=False)
    return jax.jit(island)


def _score_error(query: Float32[np.ndarray, "E"], largest_norm: float) -> float:
    """How far a device's float32 score can be from the true one, final rounding included.

    The bound of a dot product summed in any order, `E u |q| |d|` with u = 2^-24, taken four times: for the final
    rounding, and for accelerators that make one float32 product out of several bfloat16 ones.
    Reference: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    norm = float(np.sqrt(np.sum(np.square(query.astype(np.float64)))))
    return 4 * (query.shape[0] + 1) * 2.0**-24 * norm * largest_norm


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _require_finite(values: np.ndarray, name: str) -> None:
    finite = np.isfinite(values).all(axis=-1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise DataError(f"{name}: row {row} has a value that is not finite; encode it again")
