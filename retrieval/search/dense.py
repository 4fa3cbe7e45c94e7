"""Dense search: texts to vectors by the query encoder, vectors to rows by whatever searches them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from retrieval.contract import EmbeddingContract
from retrieval.encode import ComputeDtype, TextEncoder
from retrieval.search.topk import TopK
from retrieval.towers.retriever_folder import LoadedTowers


class TextSearch(Protocol):
    """Whatever answers texts with rows: dense search, BM25, or both fused."""

    def search(self, queries: Sequence[str], k: int) -> TopK:
        """The best `k` rows of each query, in the order of `topk.ranked`."""


class VectorSearch(Protocol):
    """Whatever answers vectors with rows by inner product: an `ExactSearcher` or an `Index`."""

    def search(self, queries: Float32[np.ndarray, "Q E"], k: int) -> TopK:
        """The best `k` rows of each query, in the order of `topk.ranked`."""


class DenseSearch:
    """Searches by the query encoder of a retriever."""

    def __init__(
        self,
        towers: LoadedTowers,
        contract: EmbeddingContract,
        rows: VectorSearch,
        mesh: Mesh,
        *,
        compute_dtype: ComputeDtype = "float32",
    ) -> None:
        """Joins an encoder and the vectors it searches.

        Args:
          towers: whose query encoder is used.
          contract: of the vectors.
          rows: searches them.
          mesh: its devices share every batch of queries.
          compute_dtype: dtype of the encoder's products.

        Raises:
          UsageError: the query encoder does not speak the contract; the message says in what it differs.
        """
        self._encoder = QueryEncoder(towers, contract, mesh, compute_dtype=compute_dtype)
        self._rows = rows

    def search(self, queries: Sequence[str], k: int) -> TopK:
        """The best `k` rows of each query.

        Raises:
          UsageError: `k` is below 1.
        """
        return self._rows.search(self._encoder.encode(queries), k)


class QueryEncoder:
    """The query encoder of a retriever, for the vectors of one contract."""

    def __init__(
        self, towers: LoadedTowers, contract: EmbeddingContract, mesh: Mesh, *, compute_dtype: ComputeDtype = "float32"
    ) -> None:
        """Places the encoder on a mesh.

        Args:
          towers: whose query encoder is used.
          contract: of the documents' vectors.
          mesh: its devices share every batch of queries.
          compute_dtype: dtype of the encoder's products.

        Raises:
          UsageError: the query encoder neither speaks the contract nor has joined its space; the message says in what
            it differs.
        """
        contract.require_speaks(towers.identity("query"), joined=towers.contract)
        self._contract = contract
        self._encoder = TextEncoder(towers.query, mesh, compute_dtype=compute_dtype)

    def encode(self, queries: Sequence[str]) -> Float32[np.ndarray, "Q E"]:
        """The queries' vectors, as an inner product with the documents' vectors compares them."""
        return comparable(self._encoder.encode(queries).vectors, self._contract)


def comparable(vectors: Float32[np.ndarray, "N E"], contract: EmbeddingContract) -> Float32[np.ndarray, "N E"]:
    """Vectors whose inner product is the contract's score: scaled to length 1 for a cosine of unnormalised ones.

    Args:
      vectors: as the encoder gives them; a zero vector stays zero.
      contract: says how they are compared.
    """
    if contract.score == "dot" or contract.normalized:
        return vectors
    lengths = np.sqrt(np.einsum("ne,ne->n", vectors, vectors, dtype=np.float64))
    return (vectors / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
