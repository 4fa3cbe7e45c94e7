"""BEIR folders: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, in and out; specified in docs/formats/beir.md."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jaxscale.data.lines import SUFFIXES, find_file, parse_json, read_lines, write_text
from jaxscale.errors import DataError
from jaxscale.store import commit
from jaxscale.store.checksums import Check
from retrieval.formats.text_rule import DEFAULT_RULE, TextCounts, TextRule, check_id
from retrieval.formats.trec import Qrels, collect_qrels
from retrieval.records import Doc, Query

FORMAT, VERSION = "jaxscale.beir", 1
_HEADER = ["query-id", "corpus-id", "score"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What one pass over a whole folder found.

    Attributes:
      docs: what the text rule met in the corpus.
      queries: what it met in the queries.
      num_qrels: judgements, by split.
      num_unknown_queries: judgements whose query is not in queries.jsonl.
      num_unknown_docs: judgements whose document is not in corpus.jsonl.
    """

    docs: TextCounts
    queries: TextCounts
    num_qrels: dict[str, int]
    num_unknown_queries: int
    num_unknown_docs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeirFolder:
    """A BEIR folder, read as a stream.

    Attributes:
      path: the folder.
      identity: its manifest's identity; None for a folder that was not committed here, whose bytes nobody vouches for.
      verified: whether every byte was checked against the manifest.
      rule: what becomes of unfit text.
    """

    path: Path
    identity: str | None
    verified: bool
    rule: TextRule

    @classmethod
    def open(cls, path: Path | str, *, check: Check = "sizes", rule: TextRule = DEFAULT_RULE) -> "BeirFolder":
        """Opens a folder; one with a MANIFEST.json is checked against it, any other is unverified.

        Args:
          path: the folder.
          check: for a committed folder, `sizes` compares names and sizes, `full` every byte.
          rule: what becomes of unfit text.

        Raises:
          DataError: there is no such folder, or it has no corpus.
          VerificationError: a committed folder is damaged.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(f"{path}: there is no such folder")
        identity, verified = None, False
        if commit.is_committed(path):
            committed = commit.open_committed(path, format=FORMAT, version=VERSION, check=check)
            identity, verified = committed.manifest.identity, committed.verified
        if find_file(path, "corpus.jsonl") is None:
            raise DataError(f"{path}: holds no corpus.jsonl (.gz, .zst); expected a BEIR folder")
        return cls(path=path, identity=identity, verified=verified, rule=rule)

    @functools.cached_property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that have judgements, sorted."""
        found = (p.name for p in (self.path / "qrels").glob("*.tsv*"))
        names = (name.removesuffix(suffix) for name in found for suffix in (".tsv", ".tsv.gz", ".tsv.zst"))
        return tuple(sorted({name for name in names if ".tsv" not in name}))

    @functools.cached_property
    def num_docs(self) -> int:
        """Documents in the corpus; counts lines, which takes a pass over the file."""
        return sum(1 for _ in read_lines(self._file("corpus.jsonl")))

    @functools.cached_property
    def num_queries(self) -> int:
        """Queries, of all splits together; counts lines."""
        return sum(1 for _ in read_lines(self._file("queries.jsonl")))

    def docs(self, counts: TextCounts | None = None) -> Iterator[Doc]:
        """Yields the documents in the order of the file.

        Args:
          counts: is told what the text rule met.

        Raises:
          DataError: naming file and line: malformed, or an id given twice.
        """
        counts = TextCounts() if counts is None else counts
        for where, doc_id, record in _records(self._file("corpus.jsonl")):
            title = record["title"] if record.get("title") is not None else ""
            title, text = self.rule.clean((_text(title, where, "title"), _field(record, where)), counts)
            yield Doc(doc_id, title, text)

    def queries(self, counts: TextCounts | None = None) -> Iterator[Query]:
        """Yields the queries, of all splits, in the order of the file.

        Args:
          counts: is told what the text rule met.

        Raises:
          DataError: as `docs`, or there is no queries.jsonl.
        """
        counts = TextCounts() if counts is None else counts
        for where, query_id, record in _records(self._file("queries.jsonl")):
            (text,) = self.rule.clean((_field(record, where),), counts)
            yield Query(query_id, text)

    def qrels(self, split: str) -> Qrels:
        """The judgements of a split: query id -> document id -> relevance.

        A judgement of an unknown query or document is kept: leaving it out would change a metric silently. `report`
        counts them.

        Raises:
          DataError: there is no such split, or file and line of what is malformed or judged twice.
        """
        if split not in self.splits:
            raise DataError(f"{self.path}: has no split {split!r}; it has {', '.join(self.splits) or 'none'}")
        return read_qrels(self._file(f"qrels/{split}.tsv"))

    def report(self) -> FolderReport:
        """Reads everything and tells what is in the folder; holds its ids in memory."""
        docs, queries = TextCounts(), TextCounts()
        doc_ids = {doc.id for doc in self.docs(docs)}
        query_ids = {query.id for query in self.queries(queries)}
        num_qrels, num_unknown_queries, num_unknown_docs = {}, 0, 0
        for split in self.splits:
            qrels = self.qrels(split)
            num_qrels[split] = sum(map(len, qrels.values()))
            num_unknown_queries += sum(len(judged) for query_id, judged in qrels.items() if query_id not in query_ids)
            num_unknown_docs += sum(doc_id not in doc_ids for judged in qrels.values() for doc_id in judged)
        return FolderReport(
            docs=docs,
            queries=queries,
            num_qrels=num_qrels,
            num_unknown_queries=num_unknown_queries,
            num_unknown_docs=num_unknown_docs,
        )

    def _file(self, name: str) -> Path:
        found = find_file(self.path / Path(name).parent, Path(name).name)
        if found is None:
            raise DataError(f"{self.path}: holds no {name} ({', '.join(s for s in SUFFIXES if s)})")
        return found


def read_qrels(file: Path | str) -> Qrels:
    """Reads a BEIR judgement file: query id -> document id -> relevance.

    Args:
      file: three columns between tabs; the header `query-id corpus-id score` may be absent.

    Raises:
      DataError: naming file and line: not three columns, a relevance that is no whole number, a pair judged twice.
    """
    rows = ((number, line.split("\t")) for number, line in read_lines(Path(file)))
    return collect_qrels(file, (row for row in rows if not (row[0] == 1 and row[1] == _HEADER)), num_columns=3)


def write_beir(
    path: Path | str,
    docs: Iterable[Doc],
    queries: Iterable[Query],
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
    *,
    compression: Literal["", ".gz", ".zst"] = "",
    rule: TextRule = DEFAULT_RULE,
    config: Any = None,
    parents: Mapping[str, str] | None = None,
    replace: bool = False,
) -> BeirFolder:
    """Writes a BEIR folder as a committed directory, `jaxscale.beir` version 1.

    Args:
      path: the folder to make.
      docs: the documents, in the order in which they are to stand.
      queries: the queries of all splits.
      qrels: split -> query id -> document id -> relevance.
      compression: the suffix of corpus and queries: none, `.gz` or `.zst`.
      rule: what becomes of unfit text. What it met is in the manifest's counts.
      config: JSON values for the manifest: how the folder was made.
      parents: role -> identity of what it was made from.
      replace: whether a committed BEIR folder that is there already is replaced.

    Returns:
      The folder, opened.

    Raises:
      DataError: an id is unfit or given twice, or a judgement names an unknown query or document; nothing is written.
      UsageError: something is at `path` already that may not be replaced.
    """
    with commit.draft(path, format=FORMAT, version=VERSION, replace=replace) as draft:
        corpus = ((doc.id, {"title": doc.title, "text": doc.text}) for doc in docs)
        doc_ids = _write_records(draft, "corpus.jsonl" + compression, corpus, rule, "docs")
        asked = ((query.id, {"text": query.text}) for query in queries)
        query_ids = _write_records(draft, "queries.jsonl" + compression, asked, rule, "queries")
        (draft.path / "qrels").mkdir()
        for split, judgements in qrels.items():
            file = draft.path / "qrels" / f"{check_id(split, 'split')}.tsv"
            draft.counts[f"qrels.{split}"] = _write_qrels(file, judgements, query_ids, doc_ids)
        draft.config = config
        draft.parents.update(parents or {})
    return BeirFolder.open(path, rule=rule)


def _records(file: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (file:line, id, values) of a jsonl file; refuses an id given twice, for which it holds all ids."""
    seen: dict[str, int] = {}
    for number, line in read_lines(file):
        where = f"{file}:{number}"
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise DataError(f"{where}: got a {type(record).__name__}, expected an object")
        if "_id" not in record:
            raise DataError(f"{where}: has no _id; its fields are {', '.join(record) or 'none'}")
        record_id = check_id(record["_id"], f"{where}: _id")
        if record_id in seen:
            raise DataError(f"{where}: _id {record_id!r} was given before, in line {seen[record_id]}")
        seen[record_id] = number
        yield where, record_id, record


def _field(record: dict[str, Any], where: str) -> str:
    if "text" not in record:
        raise DataError(f"{where}: has no text; its fields are {', '.join(record)}")
    return _text(record["text"], where, "text")


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name}: got a {type(value).__name__}, expected a string")
    return value


def _write_records(
    draft: commit.Draft, name: str, records: Iterable[tuple[str, dict[str, str]]], rule: TextRule, what: str
) -> set[str]:
    """Writes a jsonl file and what the rule met in it; returns the ids."""
    counts = TextCounts()
    ids: set[str] = set()
    with write_text(draft.path / name) as text:
        for record_id, fields in records:
            if check_id(record_id, what) in ids:
                raise DataError(f"{what}: the id {record_id!r} is given twice")
            ids.add(record_id)
            cleaned = dict(zip(fields, rule.clean(tuple(fields.values()), counts), strict=True))
            text.write(json.dumps({"_id": record_id, **cleaned}, ensure_ascii=False) + "\n")
    for field, count in dataclasses.asdict(counts).items():
        draft.counts[what if field == "num_records" else f"{what}.{field}"] = count
    return ids


def _write_qrels(file: Path, qrels: Mapping[str, Mapping[str, int]], query_ids: set[str], doc_ids: set[str]) -> int:
    num_qrels = 0
    with write_text(file) as text:
        text.write("\t".join(_HEADER) + "\n")
        for query_id, judged in qrels.items():
            if query_id not in query_ids:
                raise DataError(f"{file.name}: judges the query {query_id!r}, which is not among the queries")
            for doc_id, relevance in judged.items():
                if doc_id not in doc_ids:
                    raise DataError(f"{file.name}: judges the document {doc_id!r}, which is not in the corpus")
                text.write(f"{query_id}\t{doc_id}\t{relevance}\n")
                num_qrels += 1
    return num_qrels
