"""TREC's files: runs (`query Q0 doc rank score tag`) and judgements (`query 0 doc relevance`); docs/formats/trec.md."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jaxscale.data.lines import read_lines, replace_text
from jaxscale.errors import DataError

Qrels = dict[str, dict[str, int]]
Run = dict[str, dict[str, float]]

# trec_eval reads a relevance into a C long; 18 digits fit in any case.
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


def read_run(file: Path | str) -> Run:
    """Reads a run: query id -> document id -> score.

    As in trec_eval the scores alone order a query's documents; the rank column and the order of lines do not count.

    Args:
      file: the run; `.gz` and `.zst` are decompressed.

    Raises:
      DataError: naming file and line: not six columns, a score that is no finite number, a document given twice.
    """
    run: Run = {}
    for number, line in read_lines(Path(file)):
        columns = line.split()
        if len(columns) != 6:
            raise DataError(
                f"{file}:{number}: got {len(columns)} columns, expected 6: query Q0 document rank score tag"
            )
        query_id, _, doc_id, _, score, _ = columns
        scores = run.setdefault(query_id, {})
        if doc_id in scores:
            raise DataError(f"{file}:{number}: document {doc_id!r} is given twice for query {query_id!r}")
        scores[doc_id] = _finite(score, file, number)
    return run


def write_run(file: Path | str, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Writes a run, each query's documents in the order in which they are evaluated.

    Args:
      file: where to; one that exists is replaced, in one step.
      run: query id -> document id -> score.
      tag: the run's name, without white space.

    Raises:
      DataError: an id or the tag holds white space or is empty, or a score is not finite.
    """
    _check_word(tag, "tag")
    with replace_text(Path(file)) as text:
        for query_id, scores in run.items():
            _check_word(query_id, "query id")
            for rank, (doc_id, score) in enumerate(ranked(scores), 1):
                _check_word(doc_id, "document id")
                if not math.isfinite(score):
                    raise DataError(f"{file}: document {doc_id!r} of query {query_id!r} has the score {score}")
                text.write(f"{query_id} Q0 {doc_id} {rank} {float(score)!r} {tag}\n")


def read_qrels(file: Path | str) -> Qrels:
    """Reads judgements: query id -> document id -> relevance.

    Args:
      file: the judgements; `.gz` and `.zst` are decompressed.

    Raises:
      DataError: naming file and line: not four columns, a relevance that is no whole number, a pair judged twice.
    """
    return collect_qrels(file, ((number, line.split()) for number, line in read_lines(Path(file))), num_columns=4)


def write_qrels(file: Path | str, qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Writes judgements.

    Args:
      file: where to; one that exists is replaced, in one step.
      qrels: query id -> document id -> relevance.

    Raises:
      DataError: an id holds white space or is empty.
    """
    with replace_text(Path(file)) as text:
        for query_id, judged in qrels.items():
            _check_word(query_id, "query id")
            for doc_id, relevance in judged.items():
                _check_word(doc_id, "document id")
                text.write(f"{query_id} 0 {doc_id} {relevance}\n")


def ranked(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """A query's documents in trec_eval's order: by score as a float32, ties by document id, the greater first.

    trec_eval keeps scores in single precision, so two that differ by less than it can tell are tied.

    Args:
      scores: document id -> score.

    >>> ranked({"a": 1.0, "b": 2.0, "c": 1.0})
    [('b', 2.0), ('c', 1.0), ('a', 1.0)]
    """
    singles = single_precision(scores.values(), len(scores)).tolist()
    order = sorted(zip(singles, scores, strict=True), reverse=True)
    return [(doc_id, scores[doc_id]) for _, doc_id in order]


def single_precision(scores: Iterable[float], count: int) -> np.ndarray:
    """`count` scores as a float32 array; what is too great for it becomes infinite, as in C."""
    with np.errstate(over="ignore"):
        return np.fromiter(scores, np.float64, count).astype(np.float32)


def collect_qrels(file: Path | str, rows: Iterable[tuple[int, list[str]]], num_columns: int) -> Qrels:
    """Gathers rows of judgements whose first column is the query, and last two the document and its relevance.

    Args:
      file: their file, for messages.
      rows: (line number, columns).
      num_columns: how many columns a row must have.

    Raises:
      DataError: as `read_qrels`.
    """
    qrels: Qrels = {}
    for number, columns in rows:
        if len(columns) != num_columns:
            raise DataError(f"{file}:{number}: got {len(columns)} columns, expected {num_columns}")
        query_id, doc_id = columns[0], columns[-2]
        judged = qrels.setdefault(query_id, {})
        if doc_id in judged:
            raise DataError(f"{file}:{number}: document {doc_id!r} is judged twice for query {query_id!r}")
        judged[doc_id] = _relevance(columns[-1], file, number)
    return qrels


def _relevance(text: str, file: Path | str, number: int) -> int:
    if not _WHOLE_NUMBER.fullmatch(text):
        raise DataError(f"{file}:{number}: relevance {text!r} is no whole number of at most 18 digits")
    return int(text)


def _finite(score: str, file: Path | str, number: int) -> float:
    try:
        value = float(score)
    except ValueError:
        raise DataError(f"{file}:{number}: score {score!r} is no number") from None
    if not math.isfinite(value):
        raise DataError(f"{file}:{number}: score {score!r} is not finite and orders nothing; mend what made the run")
    return value


def _check_word(value: str, what: str) -> None:
    if not value or len(value.split()) != 1 or value != value.strip():
        raise DataError(f"{what} {value!r} can't stand in a TREC file: it is empty or holds white space")
