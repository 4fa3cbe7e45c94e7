"""Hybrid search: dense and BM25 over the same rows, fused for every query."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from jaxscale.errors import UsageError
from retrieval.search.dense import TextSearch
from retrieval.search.fusion import ChosenWeight, choose_dense_weight, reciprocal_rank_fusion, zscore_fusion
from retrieval.search.topk import TopK


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How two results become one.

    Attributes:
      method: `zscore`, a convex sum of z-scores, or `rrf`, reciprocal ranks.
      dense_weight: the dense list's weight in the sum, 0 to 1; not used by `rrf`.
      depth: how many rows of each list are fused, or k where that is more.
    """

    method: Literal["zscore", "rrf"] = "zscore"
    dense_weight: float = 0.5
    depth: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.dense_weight <= 1:
            raise UsageError(f"dense_weight={self.dense_weight} must be between 0 (BM25 alone) and 1 (dense alone)")
        if self.depth < 1:
            raise UsageError(f"depth={self.depth} must be at least 1 row of each list; 100 is usual")


class HybridSearch:
    """Two searches over the same rows as one."""

    def __init__(self, dense: TextSearch, bm25: TextSearch, config: FusionConfig) -> None:
        """Joins two searches whose rows are the same documents in the same order."""
        self.config = config
        self._dense, self._bm25 = dense, bm25

    def search(self, queries: Sequence[str], k: int) -> TopK:
        """The best `k` rows of each query by the fused score.

        Raises:
          UsageError: `k` is below 1.
        """
        dense, bm25 = self._both(queries, k)
        if self.config.method == "rrf":
            return reciprocal_rank_fusion(dense, bm25, k=k)
        return zscore_fusion(dense, bm25, dense_weight=self.config.dense_weight, k=k)

    def with_chosen_weight(
        self, queries: Sequence[str], measure: Callable[[TopK], float], k: int
    ) -> tuple["HybridSearch", ChosenWeight]:
        """The same search with the weight that does best on some queries, and what every weight gave.

        Args:
          queries: the dev queries' texts.
          measure: how good a result of these queries is; higher is better.
          k: how many rows the measure sees.
        """
        dense, bm25 = self._both(queries, k)
        chosen = choose_dense_weight(dense, bm25, measure, k=k)
        config = dataclasses.replace(self.config, method="zscore", dense_weight=chosen.dense_weight)
        return HybridSearch(self._dense, self._bm25, config), chosen

    def _both(self, queries: Sequence[str], k: int) -> tuple[TopK, TopK]:
        depth = max(self.config.depth, k)
        return self._dense.search(queries, depth), self._bm25.search(queries, depth)
