"""The lines of a file of hard negatives, read and held against the corpus and the judgements they are used with."""

import dataclasses
import math
from pathlib import Path

from jaxscale import typed_json
from jaxscale.data.lines import read_typed_lines
from jaxscale.errors import DataError
from retrieval.towers.negatives_folder import negatives_file, require_same_corpus
from retrieval.towers.pairs import PairSource


@dataclasses.dataclass(frozen=True)
class NegativesLine:
    """A line of a file of hard negatives: a query's; docs/formats/negatives.md says what the fields are."""

    query_id: str
    doc_ids: list[str]
    # Of the model that mined them; training asks for none.
    scores: tuple[float, ...] = typed_json.added(())
    # Of a re-ranker, since version 2.
    reranker_scores: tuple[float, ...] = typed_json.added(())
    positive_ids: tuple[str, ...] = typed_json.added(())
    positive_reranker_scores: tuple[float, ...] = typed_json.added(())

    @property
    def taught(self) -> dict[str, float]:
        """The re-ranker's score of each document that has one."""
        negatives = zip(self.doc_ids, self.reranker_scores, strict=False)
        return dict(negatives) | dict(zip(self.positive_ids, self.positive_reranker_scores, strict=True))


def read_negatives(path: Path, source: PairSource) -> dict[str, NegativesLine]:
    """The lines of a negatives folder, or of a plain file of them, by query.

    Args:
      path: the folder or the file.
      source: the corpus and the judgements.

    Raises:
      DataError: they are of another corpus, malformed, or name a document that is not there or that is relevant.
      VerificationError: the folder is damaged.
    """
    file = negatives_file(path)
    require_same_corpus(path, source)
    found: dict[str, NegativesLine] = {}
    for where, line in read_typed_lines(file, NegativesLine):
        if line.query_id in found:
            raise DataError(f"{where}: query {line.query_id!r} stands in the file twice")
        _check(line, source, where)
        found[line.query_id] = line
    return found


def _check(line: NegativesLine, source: PairSource, where: str) -> None:
    if line.query_id not in source.queries:
        raise DataError(f"{where}: query {line.query_id!r} is not a judged one; is the file of another corpus?")
    unknown = next((doc for doc in line.doc_ids if doc not in source.doc_rows), None)
    if unknown is not None:
        raise DataError(f"{where}: document {unknown!r} is not in corpus.jsonl; is the file of another corpus?")
    relevant = source.qrels.get(line.query_id, {})
    positive = next((doc for doc in line.doc_ids if doc in relevant), None)
    if positive is not None:
        raise DataError(
            f"{where}: document {positive!r} is relevant to query {line.query_id!r}, so it is no negative of it; "
            "take it out of the file, or mine again with these judgements"
        )
    expected = {
        # A file without scores of a re-ranker is one as well.
        "reranker_scores": len(line.doc_ids) if line.reranker_scores else 0,
        "positive_reranker_scores": len(line.positive_ids),
    }
    for name, count in expected.items():
        scores = getattr(line, name)
        if len(scores) != count or not all(map(math.isfinite, scores)):
            raise DataError(f"{where}: {name} is {scores}, expected a finite number for each of {count} documents")
