"""The dev metrics of a distillation: the cosine to the teacher, and nDCG@10 among the frozen documents."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from jaxscale.errors import DataError
from jaxscale.nn.functional import Params
from retrieval.contract import EmbeddingContract
from retrieval.evaluate import evaluate
from retrieval.formats.trec import Qrels
from retrieval.search.dense import comparable
from retrieval.search.exact import ExactSearcher
from retrieval.search.topk import NO_ROW, TopK
from retrieval.towers.dev import encode_table
from retrieval.towers.distillation.data import QueryData, QuerySource
from retrieval.towers.distillation.loss import cosines
from retrieval.towers.distillation.teacher import FrozenDocuments, Teacher
from retrieval.towers.encoder import Encoder, EncoderConfig
from retrieval.towers.tokens import TokenTable

_COSINE, _MEASURE = "cosine", "nDCG@10"
_NUM_HITS = 10


def metric_names(teacher: Teacher, data: QueryData) -> tuple[str, ...]:
    """What `DevQueries.evaluate` calls its measures; a figure on a sample of the queries says so in its name.

    >>> metric_names(Teacher(index="index"), QueryData(num_dev_queries=9))
    ('sample_cosine', 'sample_nDCG@10')
    """
    prefix = "" if data.num_dev_queries is None else "sample_"
    searched = bool(teacher.vectors or teacher.index)
    return tuple(prefix + name for name in ((_COSINE, _MEASURE) if searched else (_COSINE,)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevQueries:
    """Dev queries as tokens, with the teacher's vectors and the documents they search.

    Attributes:
      query_ids: in the order of `queries`.
      queries: their tokens, by the student's tokenizer.
      teacher_vectors: the teacher's vectors of them.
      qrels: query id -> document id -> relevance.
      documents: what they search, where there is something.
      document_ids: of these, row by row.
      contract: the space.
      names: of the measures, as `metric_names` gives them.
      query_buckets: padded lengths.
      pad_id: the token that fills.
    """

    query_ids: list[str]
    queries: TokenTable
    teacher_vectors: Float32[np.ndarray, "Q E"]
    qrels: Qrels
    documents: FrozenDocuments
    document_ids: list[str]
    contract: EmbeddingContract
    names: tuple[str, ...]
    query_buckets: tuple[int, ...]
    pad_id: int

    def evaluate(self, config: EncoderConfig, params: Params, mesh: Mesh, dtype: str) -> dict[str, float]:
        """The mean cosine to the teacher, and nDCG@10 where there are documents.

        Args:
          config: the student's.
          params: its weights, on the mesh.
          mesh: where they are.
          dtype: of the transformer's products.
        """
        vectors = encode_table(config, params, self.queries, self.query_buckets, self.pad_id, mesh, dtype)
        values = [float(jnp.mean(cosines(jnp.asarray(vectors), jnp.asarray(self.teacher_vectors))))]
        if len(self.names) > 1:
            values.append(self._ndcg(comparable(vectors, self.contract), mesh))
        return dict(zip(self.names, values, strict=True))

    def _ndcg(self, queries: Float32[np.ndarray, "Q E"], mesh: Mesh) -> float:
        found, ids = self._search(queries, mesh), self.document_ids
        run = {
            query_id: {ids[row]: float(score) for row, score in zip(rows, scores, strict=True) if row != NO_ROW}
            for query_id, rows, scores in zip(self.query_ids, found.rows.tolist(), found.scores, strict=True)
        }
        return evaluate(run, self.qrels, [_MEASURE]).mean(_MEASURE)

    def _search(self, queries: Float32[np.ndarray, "Q E"], mesh: Mesh) -> TopK:
        """Exactly, where there are vectors; else through the index."""
        if self._vectors is not None:
            # On the devices for this search alone: between two of them their memory is the training's.
            return ExactSearcher(self._vectors, mesh).search(queries, _NUM_HITS)
        assert self.documents.index is not None  # else `names` has no measure of a search
        return self.documents.index.index.search(queries, _NUM_HITS)

    @functools.cached_property
    def _vectors(self) -> Float32[np.ndarray, "N E"] | None:
        """The frozen vectors, read once for all evaluations."""
        vectors = self.documents.vectors
        return None if vectors is None else comparable(vectors.read(), self.contract)


def make_dev_queries(
    source: QuerySource,
    student: Encoder,
    teacher_vectors: Float32[np.ndarray, "Q E"],
    documents: FrozenDocuments,
    contract: EmbeddingContract,
    names: tuple[str, ...],
    data: QueryData,
) -> DevQueries:
    """Tokenises the dev queries for the student.

    Args:
      source: the dev queries and their judgements.
      student: its tokenizer, prefix and length.
      teacher_vectors: of the source's dev queries, in their order.
      documents: what they search.
      contract: the space.
      names: of the measures.
      data: the padded lengths.

    Raises:
      DataError: no document that is relevant to a dev query is among those that are searched.
    """
    searched = documents.vectors or documents.index
    document_ids = [] if searched is None else searched.read_ids()
    relevant = {doc_id for judged in source.dev_qrels.values() for doc_id, rel in judged.items() if rel > 0}
    if searched is not None and relevant.isdisjoint(document_ids):
        raise DataError(
            f"{searched.path}: none of its {len(document_ids)} documents is relevant to a query of data.dev_split, so "
            "that nothing could be found; is it of another corpus than data.folder?"
        )
    return DevQueries(
        query_ids=[query.id for query in source.dev],
        queries=TokenTable.of(student.tokenize([query.text for query in source.dev]).ids),
        teacher_vectors=teacher_vectors,
        qrels=source.dev_qrels,
        documents=documents,
        document_ids=document_ids,
        contract=contract,
        names=names,
        query_buckets=data.query_buckets,
        pad_id=student.tokenizer.pad_id,
    )
