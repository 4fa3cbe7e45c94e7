"""The dev metric while training: some dev queries searched exactly among some documents, cheap enough to repeat."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from jaxscale.data.buckets import pad_to_bucket
from jaxscale.nn.functional import Params
from jaxscale.sharding.plan import batch_sharded, replicated
from retrieval.evaluate import evaluate
from retrieval.formats.trec import Qrels
from retrieval.search.topk import best_of_all
from retrieval.towers.encoder import EncoderConfig, apply_encoder, tokenize
from retrieval.towers.pairs import PairData, PairSource
from retrieval.towers.start import Start
from retrieval.towers.tokens import TokenTable

MEASURES = ("nDCG@10", "RR@10")
_NUM_HITS = 10
# Texts encoded at once, per device.
_NUM_TEXTS_PER_DEVICE = 32


def metric_names(*, sampled: bool) -> tuple[str, ...]:
    """What `DevSet.evaluate` calls its measures; a figure on a sample of the documents says so in its name.

    >>> metric_names(sampled=True)
    ('sample_nDCG@10', 'sample_RR@10')
    """
    return tuple(f"{'sample_' if sampled else ''}{measure}" for measure in MEASURES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevSet:
    """Dev queries and the documents they are searched among, as tokens.

    Attributes:
      query_ids: in the order of `queries`.
      document_ids: in the order of `documents`.
      queries: tokens of the queries.
      documents: tokens of the documents.
      qrels: query id -> document id -> relevance.
      query_buckets: padded lengths of queries.
      document_buckets: padded lengths of documents.
      pad_id: the token that fills.
      sampled: whether queries or documents are a sample of what there is.
    """

    query_ids: list[str]
    document_ids: list[str]
    queries: TokenTable
    documents: TokenTable
    qrels: Qrels
    query_buckets: tuple[int, ...]
    document_buckets: tuple[int, ...]
    pad_id: int
    sampled: bool

    def evaluate(
        self, configs: tuple[EncoderConfig, EncoderConfig], params: tuple[Params, Params], mesh: Mesh, dtype: str
    ) -> dict[str, float]:
        """The means of `MEASURES` over the dev queries.

        Args:
          configs: the query encoder's and the document encoder's.
          params: their weights, on the mesh.
          mesh: where they are.
          dtype: of the transformers' products.
        """
        queries = encode_table(configs[0], params[0], self.queries, self.query_buckets, self.pad_id, mesh, dtype)
        documents = encode_table(configs[1], params[1], self.documents, self.document_buckets, self.pad_id, mesh, dtype)
        scores = queries @ documents.T
        run = {
            query_id: {self.document_ids[row]: float(scores[i, row]) for row in best_of_all(scores[i], _NUM_HITS)}
            for i, query_id in enumerate(self.query_ids)
        }
        evaluation = evaluate(run, self.qrels, MEASURES)
        return dict(zip(metric_names(sampled=self.sampled), map(evaluation.mean, MEASURES), strict=True))


def make_dev_set(source: PairSource, data: PairData, start: Start) -> DevSet:
    """Chooses and tokenises the dev queries and the documents they are searched among.

    Args:
      source: the texts and judgements.
      data: how many of them, and their lengths.
      start: encoders and tokenizer.
    """
    query_ids = sample(source.dev_qrels, data.num_dev_queries)
    qrels = {query_id: source.dev_qrels[query_id] for query_id in query_ids}
    relevant = {doc_id for judged in qrels.values() for doc_id in judged}
    others = (doc_id for doc_id in source.doc_rows if doc_id not in relevant)
    room = None if data.num_dev_documents is None else max(0, data.num_dev_documents - len(relevant))
    document_ids = sorted(relevant) + sample(others, room)
    queries = [source.queries[query_id].text for query_id in query_ids]
    passages = [source.docs[source.doc_rows[doc_id]].passage for doc_id in document_ids]
    return DevSet(
        query_ids=query_ids,
        document_ids=document_ids,
        queries=TokenTable.of(tokenize(start.towers.query, start.query_tokenizer, queries).ids),
        documents=TokenTable.of(tokenize(start.towers.document, start.tokenizer, passages).ids),
        qrels=qrels,
        query_buckets=data.query_buckets,
        document_buckets=data.document_buckets,
        pad_id=start.pad_id,
        sampled=data.dev_sampled,
    )


def sample(names: Iterable[str], count: int | None) -> list[str]:
    """`count` of the names, or all; always the same ones, whatever order they come in.

    >>> sample(["c", "a", "b"], 2) == sample(["a", "b", "c"], 2)
    True
    """
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return ordered if count is None else ordered[:count]


_EncoderProgram = Callable[[Params, Array, Array], Array]


@functools.lru_cache(maxsize=16)
def _encoder_program(config: EncoderConfig, mesh: Mesh, dtype: str) -> _EncoderProgram:
    def encode(params: Params, tokens: Array, mask: Array) -> Array:
        return apply_encoder(config, params, tokens, mask, compute_dtype=jnp.dtype(dtype))

    return jax.jit(encode, out_shardings=replicated(mesh))


def encode_table(
    config: EncoderConfig,
    params: Params,
    texts: TokenTable,
    buckets: tuple[int, ...],
    pad_id: int,
    mesh: Mesh,
    dtype: str,
) -> Float32[np.ndarray, "N E"]:
    """The vectors of tokenised texts, in their order; encoded in the order of their lengths, to pad little.

    Args:
      config: the encoder's.
      params: its weights, on the mesh.
      texts: their tokens.
      buckets: padded lengths.
      pad_id: the token that fills.
      mesh: where the weights are.
      dtype: of the transformer's products.
    """
    program = _encoder_program(config, mesh, dtype)
    rows_at_once = _NUM_TEXTS_PER_DEVICE * mesh.size
    order = np.argsort(np.diff(texts.offsets), kind="stable")
    pending = []
    for start in range(0, len(order), rows_at_once):
        # The last block begins earlier and encodes some texts twice, so that every block has one shape.
        rows = order[max(0, min(start, len(order) - rows_at_once)) :][:rows_at_once]
        rows = np.resize(rows, rows_at_once)
        batch = pad_to_bucket(texts.rows(rows), buckets, pad_id)
        pending.append((rows, program(params, *jax.device_put(batch, batch_sharded(mesh)))))
    vectors = np.empty((len(order), pending[0][1].shape[1]), np.float32)
    for rows, block in pending:
        vectors[rows] = np.asarray(block)
    return vectors
