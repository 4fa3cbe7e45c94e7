"""The dev metric while training a re-ranker: the candidates of some dev queries ordered by it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxscale.data.buckets import pad_to_bucket
from jaxscale.data.text_pairs import TokenIds
from jaxscale.nn.functional import Params
from jaxscale.sharding.plan import batch_sharded, replicated
from retrieval.evaluate import evaluate
from retrieval.formats.trec import Qrels, ranked, read_run
from retrieval.reranking.cross_encoder import CrossEncoder, CrossEncoderConfig, apply_cross_encoder, check_room
from retrieval.reranking.data import RerankerData
from retrieval.reranking.runs import require_known
from retrieval.towers.dev import MEASURES, sample
from retrieval.towers.pairs import PairSource

# Rows scored at once, per device.
_NUM_ROWS_PER_DEVICE = 32


def metric_names(data: RerankerData) -> tuple[str, ...]:
    """What `DevCandidates.evaluate` calls its measures: of a run's documents, or of a sample that no search chose.

    >>> metric_names(RerankerData())
    ('sample_nDCG@10', 'sample_RR@10')
    """
    return tuple(f"{'rerank' if data.dev_run else 'sample'}_{measure}" for measure in MEASURES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevCandidates:
    """Dev queries and the documents of each that are ordered, as joint rows.

    Attributes:
      candidates: the documents of each query, whose rows stand one query after the other.
      rows: ids and types of each.
      qrels: query id -> document id -> relevance.
      buckets: padded lengths.
      pad_id: the token that fills.
      names: of the measures.
    """

    candidates: dict[str, list[str]]
    rows: list[tuple[TokenIds, TokenIds]]
    qrels: Qrels
    buckets: tuple[int, ...]
    pad_id: int
    names: tuple[str, ...]

    def evaluate(self, config: CrossEncoderConfig, params: Params, mesh: Mesh, dtype: str) -> dict[str, float]:
        """The means of `MEASURES` over the dev queries.

        Args:
          config: the cross-encoder's.
          params: its weights, on the mesh.
          mesh: where they are.
          dtype: of the transformer's products.
        """
        scores = iter(self._scores(config, params, mesh, dtype).tolist())
        run = {query: {doc: next(scores) for doc in docs} for query, docs in self.candidates.items()}
        evaluation = evaluate(run, self.qrels, MEASURES)
        return dict(zip(self.names, map(evaluation.mean, MEASURES), strict=True))

    def _scores(self, config: CrossEncoderConfig, params: Params, mesh: Mesh, dtype: str) -> np.ndarray:
        program = _program(config, mesh, dtype)
        at_once = _NUM_ROWS_PER_DEVICE * mesh.size
        order = np.argsort([len(ids) for ids, _ in self.rows], kind="stable")
        scores = np.empty(len(order), np.float32)
        for start in range(0, len(order), at_once):
            rows = order[start : start + at_once]
            # The last block repeats some rows, so that every block has one shape.
            filled = np.resize(rows, at_once)
            tokens, mask = pad_to_bucket([self.rows[row][0] for row in filled], self.buckets, self.pad_id)
            types, _ = pad_to_bucket([self.rows[row][1] for row in filled], self.buckets, 0)
            block = program(params, *jax.device_put((tokens, mask, types), batch_sharded(mesh)))
            scores[rows] = np.asarray(block)[: len(rows)]
        return scores


def make_dev_candidates(source: PairSource, data: RerankerData, model: CrossEncoder) -> DevCandidates:
    """Chooses the dev queries and their candidates, and tokenises them.

    Args:
      source: the texts and judgements.
      data: how many of them, or the run that names them.
      model: its tokenizer and its lengths.

    Raises:
      DataError: the run is malformed, names a query or a document that is not there, or a query leaves no room.
    """
    candidates = _of_run(source, data) if data.dev_run else _sampled(source, data)
    texts = [source.queries[query_id].text for query_id in candidates]
    queries = dict(zip(candidates, model.tokenizer.encode_bare(texts), strict=True))
    check_room(model.frame, list(queries.values()), list(queries), data.max_length)
    doc_ids = list(dict.fromkeys(doc for docs in candidates.values() for doc in docs))
    passages = [source.docs[source.doc_rows[doc]].passage for doc in doc_ids]
    documents = dict(zip(doc_ids, model.tokenizer.encode_bare(passages), strict=True))
    rows = [
        model.frame.join(queries[query], documents[doc], data.max_length)
        for query, docs in candidates.items()
        for doc in docs
    ]
    return DevCandidates(
        candidates=candidates,
        rows=rows,
        qrels={query_id: source.dev_qrels[query_id] for query_id in candidates},
        buckets=data.buckets,
        pad_id=model.tokenizer.pad_id,
        names=metric_names(data),
    )


def _sampled(source: PairSource, data: RerankerData) -> dict[str, list[str]]:
    """Of each query its relevant documents, and others, the same for all, up to the number asked for."""
    query_ids = sample(source.dev_qrels, data.num_dev_queries)
    others = sample(source.doc_rows, data.num_dev_candidates + max(len(source.dev_qrels[q]) for q in query_ids))

    def of_query(relevant: Mapping[str, int]) -> list[str]:
        return [*relevant, *(doc for doc in others if doc not in relevant)][: data.num_dev_candidates]

    return {query_id: of_query(source.dev_qrels[query_id]) for query_id in query_ids}


def _of_run(source: PairSource, data: RerankerData) -> dict[str, list[str]]:
    """The first documents of each dev query in the run."""
    run = read_run(Path(data.dev_run))
    require_known(run, source.dev_qrels, source.doc_rows, run_file=data.dev_run, queries_of=f"split {data.dev_split}")
    query_ids = sample(run, data.num_dev_queries)
    return {query: [doc for doc, _ in ranked(run[query])[: data.num_dev_candidates]] for query in query_ids}


@functools.lru_cache(maxsize=16)
def _program(config: CrossEncoderConfig, mesh: Mesh, dtype: str) -> Callable[[Params, Array, Array, Array], Array]:
    def score(params: Params, tokens: Array, mask: Array, types: Array) -> Array:
        used = types if config.has_types else None
        return apply_cross_encoder(config, params, tokens, mask, used, compute_dtype=jnp.dtype(dtype))

    return jax.jit(score, out_shardings=replicated(mesh))
