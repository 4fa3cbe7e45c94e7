"""Compares two runs on the same judged queries: means, their difference, and what each run shows for every query."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from jaxscale.errors import DataError, UsageError
from retrieval.evaluate import Interval, Measure, bootstrap_interval, evaluate, paired_randomization
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import Qrels, Run, ranked
from retrieval.records import Doc


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """What one run has for a query.

    Attributes:
      value: the measure.
      doc_ids: the first documents, best first.
      missing: whether the run lacks the query, which counts as zero.
    """

    value: float
    doc_ids: tuple[str, ...]
    missing: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryComparison:
    """A judged query in two runs.

    Attributes:
      query_id: which one.
      text: its words; empty where the folder does not have it.
      a: what the first run has for it.
      b: what the second run has.
      relevant: the relevant documents, the most relevant first, with their ranks from 1 in both runs; None where a
        document is not in one.
    """

    query_id: str
    text: str
    a: Shown
    b: Shown
    relevant: tuple[tuple[str, int | None, int | None], ...]

    @property
    def difference(self) -> float:
        """The second run's value less the first one's."""
        return self.b.value - self.a.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Two runs on the same judged queries; a query is won where the second run does better than the first.

    Attributes:
      names: of the two.
      measure: by which they are compared.
      a: the first run's mean, with its interval.
      b: the second's.
      difference: b less a.
      p: of a paired randomisation test, two-sided.
      queries: all judged ones, the most won first, the most lost last; equal ones by their id.
      docs: document id -> the document, of all that is shown and all that is relevant and in the corpus.
    """

    names: tuple[str, str]
    measure: str
    a: Interval
    b: Interval
    difference: Interval
    p: float
    queries: tuple[QueryComparison, ...]
    docs: Mapping[str, Doc]

    @property
    def won(self) -> tuple[QueryComparison, ...]:
        """The queries that the second run does better on, the most won first."""
        return tuple(query for query in self.queries if query.difference > 0)

    @property
    def lost(self) -> tuple[QueryComparison, ...]:
        """Those that the first run does better on, the most lost first."""
        return tuple(query for query in reversed(self.queries) if query.difference < 0)

    @property
    def equal(self) -> tuple[QueryComparison, ...]:
        """Those on which both do the same."""
        return tuple(query for query in self.queries if query.difference == 0)


def compare_runs(
    runs: Sequence[Run], names: tuple[str, str], folder: BeirFolder, *, split: str, measure: str, num_shown: int
) -> RunComparison:
    """Compares two runs, as `jaxscale eval --against` does, and gathers the texts of what they show.

    Args:
      runs: the two.
      names: of the two.
      folder: has the queries, their judgements and the documents.
      split: whose judgements count.
      measure: such as `nDCG@10`.
      num_shown: documents of each run that are gathered for a query, at least 1.

    Raises:
      UsageError: an unknown measure, or `num_shown` is below 1.
      DataError: no judged query is in both runs, a run has documents that are not in the corpus, or the folder is
        malformed.
    """
    if num_shown < 1:
        raise UsageError(f"num_shown={num_shown} must be at least 1 passage")
    name = str(Measure.parse(measure))
    qrels = folder.qrels(split)
    if not any(query_id in runs[0] and query_id in runs[1] for query_id in qrels):
        raise DataError(
            f"not one of the {len(qrels)} queries that {folder.path} judges in {split!r} is in both runs; "
            f"{names[0]} has {len(runs[0])} queries, {names[1]} {len(runs[1])}: name the folder and split they are of"
        )
    a, b = (evaluate(run, qrels, [name]) for run in runs)
    texts = {query.id: query.text for query in folder.queries() if query.id in qrels}
    queries = [
        _query(query_id, texts.get(query_id, ""), runs, values, qrels, num_shown)
        for query_id, *values in zip(a.query_ids, a.values(name), b.values(name), strict=True)
    ]
    differences: Float64[np.ndarray, "Q"] = b.values(name) - a.values(name)
    return RunComparison(
        names=names,
        measure=name,
        a=a.interval(name),
        b=b.interval(name),
        difference=bootstrap_interval(differences),
        p=paired_randomization(b.values(name), a.values(name)),
        queries=tuple(sorted(queries, key=lambda query: (-query.difference, query.query_id))),
        docs=_docs(runs, names, folder, queries),
    )


def _query(
    query_id: str, text: str, runs: Sequence[Run], values: Sequence[float], qrels: Qrels, num_shown: int
) -> QueryComparison:
    lists = [[doc_id for doc_id, _ in ranked(run.get(query_id, {}))] for run in runs]
    ranks = [{doc_id: rank for rank, doc_id in enumerate(found, 1)} for found in lists]
    relevant = sorted(
        (doc_id for doc_id, relevance in qrels[query_id].items() if relevance >= 1),
        key=lambda doc_id: (-qrels[query_id][doc_id], doc_id),
    )
    a, b = (
        Shown(value=float(value), doc_ids=tuple(found[:num_shown]), missing=query_id not in run)
        for value, found, run in zip(values, lists, runs, strict=True)
    )
    return QueryComparison(
        query_id=query_id,
        text=text,
        a=a,
        b=b,
        relevant=tuple((doc_id, ranks[0].get(doc_id), ranks[1].get(doc_id)) for doc_id in relevant),
    )


def _docs(
    runs: Sequence[Run], names: tuple[str, str], folder: BeirFolder, queries: Iterable[QueryComparison]
) -> dict[str, Doc]:
    """The documents that are shown or relevant, after a look that the corpus has all documents of the runs."""
    wanted = {doc_id for query in queries for shown in (query.a, query.b) for doc_id in shown.doc_ids}
    wanted |= {doc_id for query in queries for doc_id, _, _ in query.relevant}
    missing = [dict.fromkeys(doc_id for found in run.values() for doc_id in found) for run in runs]
    docs = {}
    for doc in folder.docs():
        for ids in missing:
            ids.pop(doc.id, None)
        if doc.id in wanted:
            docs[doc.id] = doc
    for name, ids in zip(names, missing, strict=True):
        if ids:
            raise DataError(
                f"{name}: {len(ids)} documents of the run are not in the corpus of {folder.path}, such as "
                f"{next(iter(ids))!r}; name the folder that was searched"
            )
    return docs
