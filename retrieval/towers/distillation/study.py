"""What students keep of their teacher and how fast they are: measured on one machine, in one run, by turns."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscale.errors import UsageError
from jaxscale.nn.functional import Params
from retrieval.encode import ComputeDtype, TextEncoder
from retrieval.evaluate import Evaluation, evaluate, paired_randomization
from retrieval.formats.trec import Qrels, Run
from retrieval.towers.encoder import Encoder

MEASURES = ("nDCG@10", "R@50", "R@100")
DEPTH = 100
MANY = 32
_NUM_ROUNDS = 3
_MS_PER_S = 1000.0

# Texts to vectors; only how long it takes is looked at.
Encode = Callable[[Sequence[str]], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """One measure of a tower on the test queries.

    Attributes:
      value: its mean.
      share: of the teacher's mean; 1 for the teacher.
      p: of a paired randomisation test against the teacher, two-sided; 1 for the teacher.
    """

    value: float
    share: float
    p: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a tower encodes queries, from text to vector.

    Attributes:
      p50_ms: the median time of one query by itself, in ms.
      p99_ms: the 99th percentile of it, in ms.
      queries_per_s: `MANY` at once, by their median time.
    """

    p50_ms: float
    p99_ms: float
    queries_per_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerFigures:
    """All that the study says of a tower.

    Attributes:
      name: `teacher`, or the student's.
      num_layers: of its transformer.
      num_params: all that it has learned.
      num_params_in_layers: without the tables of embeddings, of which a query reads a few rows.
      kept: by measure.
      speed: of its queries.
    """

    name: str
    num_layers: int
    num_params: int
    num_params_in_layers: int
    kept: dict[str, Kept]
    speed: Speed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """The figures of a teacher and its students, and how they were counted.

    Attributes:
      towers: the teacher first.
      num_queries: test queries that are judged.
      num_timed: of them, by which speed was measured.
      split: whose queries they are.
      searched: `index` or `vectors`.
      compute_dtype: of the encoders' products.
      mesh: where they encoded.
    """

    towers: tuple[TowerFigures, ...]
    num_queries: int
    num_timed: int
    split: str
    searched: str
    compute_dtype: ComputeDtype
    mesh: str


def kept_of(runs: Mapping[str, Run], qrels: Qrels, teacher: str) -> dict[str, dict[str, Kept]]:
    """Each run's measures beside the teacher's.

    Args:
      runs: by the tower's name.
      qrels: the judgements.
      teacher: which of them is the teacher's.

    Raises:
      DataError: nothing is judged.
      UsageError: the teacher finds nothing, so that there is nothing to keep.
    """
    evaluated = {name: evaluate(run, qrels, MEASURES) for name, run in runs.items()}
    reference = evaluated[teacher]
    for measure in MEASURES:
        if not reference.mean(measure) > 0:
            raise UsageError(f"the teacher's {measure} is 0 on these queries, so that there is nothing to keep of it")
    return {name: {m: _kept(found, reference, m) for m in MEASURES} for name, found in evaluated.items()}


def _kept(found: Evaluation, reference: Evaluation, measure: str) -> Kept:
    value = found.mean(measure)
    p = paired_randomization(found.values(measure), reference.values(measure))
    return Kept(value=value, share=value / reference.mean(measure), p=p)


def check_many(queries: Sequence[object]) -> None:
    """Refuses fewer queries than are encoded at once.

    Raises:
      UsageError: there are too few.
    """
    if len(queries) < MANY:
        raise UsageError(f"{len(queries)} queries are too few to measure {MANY} at once; name a larger split")


def speeds_of(
    encoders: Mapping[str, Encoder], texts: Sequence[str], mesh: Mesh, *, compute_dtype: ComputeDtype
) -> dict[str, Speed]:
    """Times the towers by turns on the same queries, all programs compiled before.

    Args:
      encoders: by name.
      texts: queries; at least `MANY`.
      mesh: where they encode.
      compute_dtype: of their products.

    Raises:
      UsageError: there are too few queries.
    """
    check_many(texts)
    placed = {name: TextEncoder(encoder, mesh, compute_dtype=compute_dtype) for name, encoder in encoders.items()}
    encode: dict[str, Encode] = {name: encoder.encode for name, encoder in placed.items()}
    single = [[text] for text in texts]
    several = [texts[start : start + MANY] for start in range(0, len(texts) - MANY + 1, MANY)]
    alone, together = by_turns(encode, single), by_turns(encode, several)
    return {
        name: Speed(
            p50_ms=float(np.percentile(alone[name], 50)) * _MS_PER_S,
            p99_ms=float(np.percentile(alone[name], 99)) * _MS_PER_S,
            queries_per_s=MANY / float(np.median(together[name])),
        )
        for name in encoders
    }


def by_turns(
    encode: Mapping[str, Encode], batches: Sequence[Sequence[str]], *, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """How long each encoder takes for each batch, in s, `_NUM_ROUNDS` times, after one time that is not counted.

    For every batch each encoder has its turn, another one first in each round, so that what else the machine does meets
    all of them alike.

    Args:
      encode: by name.
      batches: of texts.
      clock: seconds.
    """
    names, times_s = list(encode), {name: list[float]() for name in encode}
    for name in names:
        for batch in batches:
            encode[name](batch)
    for number in range(_NUM_ROUNDS):
        first = number % len(names)
        for batch in batches:
            for name in names[first:] + names[:first]:
                start = clock()
                encode[name](batch)
                times_s[name].append(clock() - start)
    return times_s


def count_params(params: Params) -> tuple[int, int]:
    """How many numbers a tower has learned, and how many of them are not in tables of embeddings."""

    def count(tree: object) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    return count(params), count(params) - count(params["transformer"]["embeddings"])
