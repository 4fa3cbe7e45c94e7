"""Contrastive entropy: how surprised towers are by the right document among fixed negatives; it has no ranks."""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from jaxscale.errors import DataError
from retrieval.encode import ComputeDtype, TextEncoder
from retrieval.towers.dev import sample
from retrieval.towers.pairs import PairSource
from retrieval.towers.retriever_folder import LoadedTowers


@dataclasses.dataclass(frozen=True, kw_only=True)
class EntropySet:
    """Dev queries, each with its relevant documents and its negatives; the same for all towers that are compared.

    Attributes:
      queries: texts.
      documents: passages, those that `positives` and `negatives` point to.
      positives: rows of the relevant documents of each query.
      negatives: [Q M] rows of the negatives of each query.
    """

    queries: list[str]
    documents: list[str]
    positives: list[list[int]]
    negatives: Int[np.ndarray, "Q M"]

    def measure(self, towers: LoadedTowers, mesh: Mesh, *, temperature: float, compute_dtype: ComputeDtype) -> float:
        """The contrastive entropy of towers.

        Args:
          towers: a trained retriever.
          mesh: its devices share the texts.
          temperature: what scores are divided by, as in training.
          compute_dtype: of the encoders' products.
        """
        queries = TextEncoder(towers.query, mesh, compute_dtype=compute_dtype).encode(self.queries).vectors
        documents = TextEncoder(towers.document, mesh, compute_dtype=compute_dtype).encode(self.documents).vectors
        return contrastive_entropy(queries, documents, self.positives, self.negatives, temperature=temperature)


def make_entropy_set(
    source: PairSource, *, num_queries: int, num_negatives: int, num_pool_documents: int
) -> EntropySet:
    """Chooses queries and negatives; a pure function of the records and the numbers.

    Args:
      source: the texts and the dev judgements.
      num_queries: at most.
      num_negatives: of each query.
      num_pool_documents: documents that negatives are drawn from, at most.

    Raises:
      DataError: the pool has too few documents that are not relevant to a query.
    """
    query_ids = sample(source.dev_qrels, num_queries)
    pool = sample(source.doc_rows, num_pool_documents)
    relevant = {doc_id for query_id in query_ids for doc_id in source.dev_qrels[query_id]}
    document_ids = [*pool, *sorted(relevant.difference(pool))]
    rows = {doc_id: row for row, doc_id in enumerate(document_ids)}
    positives = [[rows[doc_id] for doc_id in source.dev_qrels[query_id]] for query_id in query_ids]
    negatives = []
    for query_id, own in zip(query_ids, positives, strict=True):
        candidates = np.setdiff1d(np.arange(len(pool)), own)
        if len(candidates) < num_negatives:
            raise DataError(
                f"num_negatives={num_negatives}, but query {query_id!r} has {len(candidates)} documents that are not "
                "relevant to it in the pool; ask for fewer, or raise num_pool_documents"
            )
        rng = np.random.default_rng(zlib.crc32(query_id.encode()))
        negatives.append(rng.choice(candidates, num_negatives, replace=False))
    return EntropySet(
        queries=[source.queries[query_id].text for query_id in query_ids],
        documents=[source.docs[source.doc_rows[doc_id]].passage for doc_id in document_ids],
        positives=positives,
        negatives=np.stack(negatives),
    )


def contrastive_entropy(
    queries: Float32[np.ndarray, "Q E"],
    documents: Float32[np.ndarray, "N E"],
    positives: Sequence[Sequence[int]],
    negatives: Int[np.ndarray, "Q M"],
    *,
    temperature: float,
) -> float:
    """The mean over queries of `-log softmax` of the relevant document among the query's negatives, in nats.

    With scores s = q . d / temperature, a relevant document with score s+ costs log(exp(s+) + sum of exp(s-)) - s+;
    a query with several has the mean over these, each among the negatives alone. Computed in float64.

    Args:
      queries: vectors.
      documents: vectors.
      positives: rows of the relevant documents of each query, at least one.
      negatives: rows of M other documents for each query.
      temperature: above 0.

    Reference:
      Fang et al. 2024, Scaling Laws For Dense Retrieval, section 3, https://arxiv.org/abs/2403.18684; 256 negatives.

    >>> vectors = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    >>> round(contrastive_entropy(vectors[:1], vectors, [[0]], np.array([[1]]), temperature=1.0), 4)
    0.3133
    """
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T / temperature
    of_negatives = np.logaddexp.reduce(np.take_along_axis(scores, negatives, axis=1), axis=1)
    losses = [
        np.mean(np.logaddexp(row[own], rest) - row[own])
        for row, own, rest in zip(scores, map(list, positives), of_negatives, strict=True)
    ]
    return float(np.mean(losses))
