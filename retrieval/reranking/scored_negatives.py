"""A negatives folder with a re-ranker's score of every negative and every relevant document, for a tower to learn."""

import dataclasses
from pathlib import Path

from jaxscale.errors import DataError
from jaxscale.store import commit
from retrieval.reranking.reranker import Reranker
from retrieval.towers.negatives_folder import (
    FORMAT,
    VERSION,
    queries_sha256,
    read_description,
    write_scored_negatives,
)
from retrieval.towers.negatives_lines import NegativesLine, read_negatives
from retrieval.towers.pairs import read_source


def score_negatives(reranker: Reranker, negatives: Path, corpus: Path, out: Path) -> commit.Committed:
    """Scores what `jaxscale mine` chose, and commits it with its scores in a new folder.

    Args:
      reranker: gives the scores.
      negatives: the folder to read.
      corpus: the BEIR folder that it was mined from.
      out: the folder to make.

    Raises:
      DataError: `negatives` is no negatives folder, or of another corpus or other judgements.
      VerificationError: it is damaged.
      UsageError: `out` is there already.
      MachineError: another writer is at work on `out`, or the disk is full.
    """
    commit.check_place(out, format=FORMAT, replace=False)
    description = read_description(negatives)
    source = read_source(corpus, description.split, description.split)
    lines = list(read_negatives(negatives, source).values())
    if queries_sha256(source) != description.queries:
        raise DataError(
            f"{negatives}: it was mined with other queries or judgements than those of {corpus}/qrels/"
            f"{description.split}.tsv; mine again with `jaxscale mine`"
        )
    positives = {line.query_id: tuple(source.qrels[line.query_id]) for line in lines}
    pairs = [(line.query_id, doc) for line in lines for doc in (*line.doc_ids, *positives[line.query_id])]
    passages = {doc: source.docs[source.doc_rows[doc]].passage for _, doc in pairs}
    queries = {line.query_id: source.queries[line.query_id].text for line in lines}
    scores = iter(reranker.pair_scores(pairs, queries, passages).tolist())

    def scored(line: NegativesLine) -> NegativesLine:
        of_query = positives[line.query_id]
        return dataclasses.replace(
            line,
            reranker_scores=tuple(next(scores) for _ in line.doc_ids),
            positive_ids=of_query,
            positive_reranker_scores=tuple(next(scores) for _ in of_query),
        )

    parent = commit.open_committed(negatives, format=FORMAT, version=VERSION)
    made = dataclasses.replace(description, reranker=reranker.identity)
    return write_scored_negatives(out, [scored(line) for line in lines], made, parent.manifest)
