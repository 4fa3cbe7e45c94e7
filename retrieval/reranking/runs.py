"""A TREC run re-ranked: the first documents of every query ordered by a cross-encoder, the others behind them."""

import math
from collections.abc import Collection, Mapping

import numpy as np

from jaxscale.errors import DataError, UsageError
from retrieval.formats.trec import Run, ranked, single_precision
from retrieval.reranking.reranker import Reranker


def require_known(
    run: Mapping[str, Collection[str]],
    queries: Collection[str],
    documents: Collection[str],
    *,
    run_file: object,
    queries_of: str,
) -> None:
    """Refuses a run that names a query or a document that is not there, or that is empty.

    Args:
      run: query id -> its documents.
      queries: ids that there are.
      documents: the same.
      run_file: the run's, for messages.
      queries_of: where the queries come from, for messages.

    Raises:
      DataError: naming the first that is unknown.
    """
    if not run:
        raise DataError(f"{run_file}: the run holds no query; expected lines of `query Q0 document rank score tag`")
    for query_id, found in run.items():
        if query_id not in queries:
            raise DataError(f"{run_file}: query {query_id!r} is not among the queries of {queries_of}")
        unknown = next((doc for doc in found if doc not in documents), None)
        if unknown is not None:
            raise DataError(
                f"{run_file}: document {unknown!r} of query {query_id!r} is not in the corpus; is the run of another?"
            )


def rerank_run(
    reranker: Reranker, run: Run, queries: Mapping[str, str], passages: Mapping[str, str], depth: int
) -> Run:
    """Scores the first `depth` documents of every query; those below keep their order, behind all of these.

    Args:
      reranker: gives the scores, which the first documents then have.
      run: query id -> document id -> score.
      queries: query id -> text, of every query of the run.
      passages: document id -> text, of every document among the first.
      depth: documents scored of each query.

    Raises:
      UsageError: `depth` is not positive.
      DataError: a query leaves its documents no room.
    """
    if depth < 1:
        raise UsageError(f"depth={depth} must be at least 1, the documents of each query that are re-ranked")
    orders = {query_id: [doc for doc, _ in ranked(scores)] for query_id, scores in run.items()}
    pairs = [(query_id, doc) for query_id, order in orders.items() for doc in order[:depth]]
    scored = iter(reranker.pair_scores(pairs, queries, passages).tolist())
    return {query_id: _with_scores(order, [next(scored) for _ in order[:depth]]) for query_id, order in orders.items()}


def _with_scores(order: list[str], scores: list[float]) -> dict[str, float]:
    """The scores of a query's first documents, and falling whole numbers below them for the others.

    >>> _with_scores(["a", "b", "c", "d"], [0.5, 2.0])
    {'a': 0.5, 'b': 2.0, 'c': -1.0, 'd': -2.0}
    """
    first, others = order[: len(scores)], order[len(scores) :]
    top = math.floor(min(scores))
    below = [float(top - place) for place in range(1, len(others) + 1)]
    if len(np.unique(single_precision(below, len(below)))) < len(below):
        raise DataError(f"the re-ranker's scores go down to {min(scores)}, where a run can't tell documents apart")
    return dict(zip(first, scores, strict=True)) | dict(zip(others, below, strict=True))
