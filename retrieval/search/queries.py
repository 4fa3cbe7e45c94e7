"""Queries from a file (BEIR's jsonl, or `id <tab> text`) or from a BEIR folder, all of them or those of one split."""

from pathlib import Path

from jaxscale.data.lines import parse_json, read_lines
from jaxscale.errors import DataError, UsageError
from retrieval.formats.beir import BeirFolder
from retrieval.formats.text_rule import DEFAULT_RULE, TextCounts, check_id
from retrieval.records import Query


def read_queries(path: Path, split: str | None = None) -> list[Query]:
    """Reads queries, each with an id and a text.

    Args:
      path: a BEIR folder; a file of JSON lines with `_id` and `text`; or, where its name says `.tsv`, lines of
        `id <tab> text`. Files may end in `.gz` or `.zst`.
      split: of a BEIR folder, keeps the queries that are judged in this split.

    Raises:
      DataError: there is no such path, a line is malformed (file and line are named), an id comes twice, a text is
        empty, or there is no query.
      UsageError: a split is named for a file.
      VerificationError: a committed BEIR folder is damaged; the message names the file.
    """
    if not path.exists():
        raise DataError(f"queries: there is no {path}; expected a file of queries or a BEIR folder")
    if path.is_dir():
        folder = BeirFolder.open(path, check="full")
        judged = None if split is None else folder.qrels(split)
        queries = [q for q in folder.queries() if judged is None or q.id in judged]
    elif split is not None:
        raise UsageError(f"split={split!r} is for a BEIR folder, whose judgements name a split's queries; got {path}")
    else:
        queries = _read_file(path)
    if not queries:
        raise DataError(f"{path}: holds no queries{'' if split is None else f' of the split {split!r}'}")
    empty = [query.id for query in queries if not query.text.strip()]
    if empty:
        raise DataError(f"{path}: the query {empty[0]!r} is empty; {len(empty)} of {len(queries)} are")
    return queries


def _read_file(path: Path) -> list[Query]:
    parse = _from_tsv if ".tsv" in path.suffixes else _from_json
    queries: dict[str, Query] = {}
    counts = TextCounts()
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        query_id, text = parse(line, where)
        if check_id(query_id, f"{where}: id") in queries:
            raise DataError(f"{where}: the query {query_id!r} was given before")
        (clean,) = DEFAULT_RULE.clean((text,), counts)
        queries[query_id] = Query(query_id, clean)
    return list(queries.values())


def _from_tsv(line: str, where: str) -> tuple[str, str]:
    query_id, tab, text = line.partition("\t")
    if not tab:
        raise DataError(f"{where}: has no tab; expected: id <tab> text")
    return query_id, text


def _from_json(line: str, where: str) -> tuple[str, str]:
    record = parse_json(line, where, expected='{"_id": ..., "text": ...}')
    if not isinstance(record, dict) or not {"_id", "text"} <= record.keys():
        raise DataError(f'{where}: expected an object with "_id" and "text"')
    if not isinstance(record["_id"], str) or not isinstance(record["text"], str):
        raise DataError(f"{where}: _id and text must be strings")
    return record["_id"], record["text"]
