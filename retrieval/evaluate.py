"""Runs against judgements: trec_eval's measures per query, their means with intervals, and a test between two runs.

Conventions, all of them trec_eval's:

* A query's documents are ordered by score, as a float32; ties by document id, the greater (as bytes) first.
* A document that was not judged is not relevant. Relevance of 1 and above is relevant, below is not, and gains nothing.
* Means are over the judged queries. One that is missing from the run, or has no relevant document, counts as zero;
  a query of the run that was not judged is left out. Both are counted.

References: Voorhees and Harman (eds.), "TREC: Experiment and Evaluation in Information Retrieval", MIT Press 2005;
trec_eval 9, https://github.com/usnistgov/trec_eval.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from jaxscale.errors import DataError, UsageError
from retrieval.formats.trec import single_precision

DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@100")

# Random numbers held at a time by the bootstrap and the randomisation test.
_CHUNK_NUMBERS = 2**22


@dataclass(frozen=True, slots=True)
class Judged:
    """What a measure sees of one query.

    Attributes:
      ranks: int64 [R], the ranks from 1, increasing, of the relevant documents that were retrieved.
      gains: float64 [R], their relevance, beside `ranks`.
      ideal_gains: float64 [J], the relevance of all relevant documents, the greatest first.
    """

    ranks: Int64[np.ndarray, "R"]
    gains: Float64[np.ndarray, "R"]
    ideal_gains: Float64[np.ndarray, "J"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure as a value: its name, and the rank after which documents do not count.

    Attributes:
      name: one of nDCG, RR, R, P, MAP.
      cutoff: at least 1, or None for all documents.

    >>> Measure.parse("nDCG@10")
    Measure(name='nDCG', cutoff=10)
    >>> str(Measure.parse("MAP"))
    'MAP'
    """

    name: str
    cutoff: int | None

    @classmethod
    def parse(cls, text: str) -> "Measure":
        """Reads `nDCG@10`, `RR`, `R@100`, `P@5`, `MAP`...; upper and lower case are the same.

        Raises:
          UsageError: there is no such measure, or it needs a cutoff.
        """
        match = re.fullmatch(r"([A-Za-z]+)(?:@([1-9][0-9]*))?", text)
        names = {name.lower(): name for name in _DEFINITIONS}
        if match is None or match[1].lower() not in names:
            raise UsageError(
                f"unknown measure {text!r}; known are {', '.join(f'{n}@k' for n in _DEFINITIONS)}, RR, MAP"
            )
        name = names[match[1].lower()]
        if match[2] is None and name in ("R", "P"):
            raise UsageError(f"the measure {text!r} needs a cutoff, such as {name}@10")
        return cls(name, int(match[2]) if match[2] else None)

    def __str__(self) -> str:
        return self.name if self.cutoff is None else f"{self.name}@{self.cutoff}"

    def of(self, judged: Judged) -> float:
        """The measure's value for one query; 0 where nothing is relevant."""
        if judged.ideal_gains.size == 0:
            return 0.0
        cutoff = math.inf if self.cutoff is None else self.cutoff
        num_kept = int(np.searchsorted(judged.ranks, cutoff, side="right"))
        kept = Judged(judged.ranks[:num_kept], judged.gains[:num_kept], judged.ideal_gains)
        return float(_DEFINITIONS[self.name](kept, cutoff))


def _ndcg(judged: Judged, cutoff: float) -> float:
    """Sum of gain / log2(rank + 1) over that of the ideal order; the gain is the relevance itself.

    Reference: Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 20(4), 2002.
    """
    num_ideal = int(min(cutoff, judged.ideal_gains.size))
    ideal = (judged.ideal_gains[:num_ideal] / np.log2(np.arange(2, num_ideal + 2))).sum()
    return float((judged.gains / np.log2(judged.ranks + 1)).sum() / ideal)


def _reciprocal_rank(judged: Judged, cutoff: float) -> float:
    """1 / rank of the first relevant document."""
    return 1.0 / judged.ranks[0] if judged.ranks.size else 0.0


def _recall(judged: Judged, cutoff: float) -> float:
    """Relevant documents retrieved over all relevant ones."""
    return judged.ranks.size / judged.ideal_gains.size


def _precision(judged: Judged, cutoff: float) -> float:
    """Relevant documents retrieved over the cutoff, even where fewer documents were retrieved."""
    return judged.ranks.size / cutoff


def _average_precision(judged: Judged, cutoff: float) -> float:
    """Mean over all relevant documents of the precision at their rank, 0 for those not retrieved."""
    return float((np.arange(1, judged.ranks.size + 1) / judged.ranks).sum() / judged.ideal_gains.size)


_DEFINITIONS: dict[str, Callable[[Judged, float], float]] = {
    "nDCG": _ndcg,
    "RR": _reciprocal_rank,
    "R": _recall,
    "P": _precision,
    "MAP": _average_precision,
}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The measures of one run.

    Attributes:
      query_ids: the Q judged queries, sorted.
      per_query: measure -> float64 [Q], beside `query_ids`.
      num_missing: judged queries that the run lacks; they count as zero.
      num_not_judged: queries of the run without judgements; they are left out.
    """

    query_ids: tuple[str, ...]
    per_query: dict[str, Float64[np.ndarray, "Q"]]
    num_missing: int
    num_not_judged: int

    def values(self, measure: str) -> Float64[np.ndarray, "Q"]:
        """A measure per query, beside `query_ids`.

        Raises:
          UsageError: it was not among those evaluated.
        """
        name = str(Measure.parse(measure))
        if name not in self.per_query:
            raise UsageError(f"measure {measure!r} was not evaluated; evaluated are {', '.join(self.per_query)}")
        return self.per_query[name]

    def mean(self, measure: str) -> float:
        """The mean of a measure over all judged queries."""
        return float(self.values(measure).mean())

    def interval(self, measure: str, *, level: float = 0.95, num_samples: int = 5_000, seed: int = 0) -> Interval:
        """The mean of a measure with its bootstrap confidence interval; see `bootstrap_interval`."""
        return bootstrap_interval(self.values(measure), level=level, num_samples=num_samples, seed=seed)


def evaluate(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str] = DEFAULT_MEASURES,
) -> Evaluation:
    """Measures a run against judgements.

    Args:
      run: query id -> document id -> score, the greater the better.
      qrels: query id -> document id -> relevance.
      measures: such as `nDCG@10`, `RR@10`, `R@100`, `P@5`, `MAP`.

    Raises:
      DataError: nothing is judged, or a score is NaN.
      UsageError: an unknown measure.

    >>> evaluation = evaluate({"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 1}, "other": {"a": 1}}, ["RR", "R@1"])
    >>> evaluation.mean("RR"), evaluation.mean("R@1"), evaluation.num_missing
    (0.25, 0.0, 1)
    """
    if not qrels:
        raise DataError("there are no judgements to evaluate against")
    parsed = [Measure.parse(text) for text in measures]
    query_ids = tuple(sorted(qrels))
    judged = [_judge(query_id, run.get(query_id, {}), qrels[query_id]) for query_id in query_ids]
    return Evaluation(
        query_ids=query_ids,
        per_query={str(measure): np.array([measure.of(j) for j in judged]) for measure in parsed},
        num_missing=sum(query_id not in run for query_id in query_ids),
        num_not_judged=sum(query_id not in qrels for query_id in run),
    )


def bootstrap_interval(
    values: Float64[np.ndarray, "Q"], *, level: float = 0.95, num_samples: int = 5_000, seed: int = 0
) -> Interval:
    """The percentile bootstrap interval of a mean over queries.

    Args:
      values: float64 [Q], a measure per query, Q at least 1.
      level: the interval's coverage, between 0 and 1.
      num_samples: how often Q queries are drawn with replacement.
      seed: of the draws.

    Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; for retrieval: Sakai,
    "Evaluating evaluation metrics based on the bootstrap", SIGIR 2006.
    """
    return macro_interval([values], level=level, num_samples=num_samples, seed=seed)


def macro_interval(
    groups: Sequence[Float64[np.ndarray, "Q"]], *, level: float = 0.95, num_samples: int = 5_000, seed: int = 0
) -> Interval:
    """The mean over groups of their means over queries, with its percentile bootstrap interval.

    Every sample draws each group's queries anew and keeps the groups: the interval speaks of other queries of the same
    folders, not of other folders.

    Args:
      groups: of each a float64 [Q], a measure per query; at least one group, each with at least one query.
      level: the interval's coverage, between 0 and 1.
      num_samples: how often the queries of a group are drawn with replacement.
      seed: of the draws.

    Reference: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.2 (several samples).

    >>> macro_interval([np.array([1.0, 1.0]), np.array([0.5])])
    Interval(mean=0.75, low=0.75, high=0.75)
    """
    if not 0 < level < 1:
        raise UsageError(f"level={level} must lie between 0 and 1")
    generator = np.random.default_rng(seed)
    means = np.mean([_resampled_means(values, num_samples, generator) for values in groups], axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    mean = float(np.mean([values.mean() for values in groups]))
    return Interval(mean=mean, low=float(low), high=float(high))


def paired_randomization(
    a: Float64[np.ndarray, "Q"], b: Float64[np.ndarray, "Q"], *, num_permutations: int = 10_000, seed: int = 0
) -> float:
    """The two-sided p value of Fisher's paired randomisation test on the difference of two means.

    Under the null hypothesis a query's two values may be exchanged, so the sign of its difference is a coin's. With T
    the number of random sign vectors whose mean difference is at least as far from zero as the one observed,
    p = (T + 1) / (num_permutations + 1), which is never 0.

    Args:
      a: float64 [Q], a measure of one run per query.
      b: float64 [Q], the same measure of the other, on the same queries.
      num_permutations: random sign vectors.
      seed: of them.

    Raises:
      DataError: the two have different lengths.

    References: Smucker, Allan and Carterette, "A comparison of statistical significance tests for information retrieval
    evaluation", CIKM 2007; the + 1: Phipson and Smyth, "Permutation p-values should never be zero", 2010.

    >>> paired_randomization(np.array([.1, .2, .3]), np.array([.1, .2, .3]))
    1.0
    """
    if a.shape != b.shape:
        raise DataError(f"the two runs have values of {a.shape} and {b.shape} queries; evaluate both on the same qrels")
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    total = difference.sum()
    # Sums in another order differ in their last bits; a vector as extreme as the observed one must count.
    threshold = abs(total) - 1e-12 * np.abs(difference).sum()
    generator = np.random.default_rng(seed)
    num_extreme = 0
    for num_rows in _chunks(num_permutations, len(difference)):
        row_bytes = -(-len(difference) // 8)
        bits = np.frombuffer(generator.bytes(num_rows * row_bytes), np.uint8).reshape(num_rows, row_bytes)
        kept = np.unpackbits(bits, axis=1, count=len(difference)).astype(np.float64) @ difference
        num_extreme += int((np.abs(2 * kept - total) >= threshold).sum())
    return (num_extreme + 1) / (num_permutations + 1)


def macro_randomization(
    a: Sequence[Float64[np.ndarray, "Q"]],
    b: Sequence[Float64[np.ndarray, "Q"]],
    *,
    num_permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """`paired_randomization` on the difference of two means over groups of their means over queries.

    A query of a small group weighs more than one of a large group, as it does in that mean.

    Args:
      a: of each group a float64 [Q], a measure of one run per query.
      b: the same of the other run.
      num_permutations: random sign vectors.
      seed: of them.

    Raises:
      DataError: the two have different lengths.
    """
    weighted = [np.concatenate([values / len(values) for values in run]) for run in (a, b)]
    return paired_randomization(*weighted, num_permutations=num_permutations, seed=seed)


def _judge(query_id: str, scores: Mapping[str, float], judgements: Mapping[str, int]) -> Judged:
    """Finds the relevant documents' ranks by counting what stands before each, without sorting all documents."""
    relevant = {doc_id: relevance for doc_id, relevance in judgements.items() if relevance >= 1}
    ideal_gains = np.array(sorted(relevant.values(), reverse=True), np.float64)
    found = [doc_id for doc_id in relevant if doc_id in scores]
    singles = single_precision(scores.values(), len(scores))
    if np.isnan(singles).any():
        raise DataError(f"query {query_id!r}: the run has a score that is NaN, which orders nothing")
    ascending = np.sort(singles)
    ranks = []
    for doc_id, score in zip(found, single_precision((scores[d] for d in found), len(found)), strict=True):
        first, last = np.searchsorted(ascending, score, side="left"), np.searchsorted(ascending, score, side="right")
        rank = 1 + len(ascending) - int(last)
        if last - first > 1:
            tied = (other for other, single in zip(scores, singles, strict=True) if single == score)
            rank += sum(other > doc_id for other in tied)
        ranks.append(rank)
    order = np.argsort(np.array(ranks, np.int64))
    gains = np.array([relevant[doc_id] for doc_id in found], np.float64)
    return Judged(np.array(ranks, np.int64)[order], gains[order], ideal_gains)


def _resampled_means(
    values: Float64[np.ndarray, "Q"], num_samples: int, generator: np.random.Generator
) -> Float64[np.ndarray, "M"]:
    """The means of `num_samples` draws of Q values with replacement."""
    means = [
        values[generator.integers(len(values), size=(num_rows, len(values)))].mean(axis=1)
        for num_rows in _chunks(num_samples, len(values))
    ]
    return np.concatenate(means)


def _chunks(num_rows: int, num_columns: int) -> list[int]:
    """Splits rows so that a chunk holds a bounded count of numbers."""
    most = max(1, _CHUNK_NUMBERS // max(1, num_columns))
    return [min(most, num_rows - start) for start in range(0, num_rows, most)]
