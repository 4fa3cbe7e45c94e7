"""Tells the story: corpus, training with a kill, proof of the resume, vectors, indexes, table, searches, report."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxscale.errors import UsageError
from launch.demo.comparison import MEASURES, NATURAL_SPLIT, Comparison, Systems
from launch.demo.resume import ResumeProof, prove_resume, train_with_a_kill
from retrieval.corpora import pydocs
from retrieval.embed import embed_corpus, print_progress
from retrieval.formats.beir import BeirFolder
from retrieval.index.bm25_folder import build_bm25
from retrieval.index.build import build_index
from retrieval.index.folder import IndexDescription
from retrieval.index.parameters import IndexRequest, Kind
from retrieval.records import Query
from retrieval.retriever import Hit
from retrieval.towers.loading import load_towers
from retrieval.vectors import open_vectors

# Those of the hand-written questions that the page shows, chosen by hand too: two that word search and tower answer
# together, and one that neither does.
_SHOWN_QUESTIONS = (
    "wrap a long paragraph so that no line is wider than 70 columns",
    "evenly spaced numbers between a start and an end",
    "how do I delete a folder together with everything inside it",
)
_NUM_HITS = 3
_INDEX_KIND: Kind = "ivf_flat"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownSearch:
    """A question, what the hybrid search found, and which documents answer it."""

    query: Query
    hits: tuple[Hit, ...]
    expected: frozenset[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that the demo found out.

    Attributes:
      home: the folder with everything it made.
      num_docs: passages.
      num_queries: split -> judged queries.
      resume: what killing the training did.
      index: the approximate index, with its measured recall.
      comparisons: one for each set of test queries.
      searches: a few, to look at.
      phases_s: seconds of each phase, in order.
    """

    home: Path
    num_docs: int
    num_queries: dict[str, int]
    resume: ResumeProof
    index: IndexDescription
    comparisons: tuple[Comparison, ...]
    searches: tuple[ShownSearch, ...]
    phases_s: tuple[tuple[str, float], ...]

    @property
    def index_kind(self) -> str:
        """The kind of the approximate index."""
        return _INDEX_KIND

    def summary(self) -> dict[str, Any]:
        """The outcome as JSON values: a measure's mean and 95 % interval by split, system and name."""
        return {
            "num_docs": self.num_docs,
            "num_queries": self.num_queries,
            "measures": {
                c.split: {
                    system: {m: dataclasses.asdict(evaluation.interval(m)) for m in MEASURES}
                    for system, evaluation in c.systems.items()
                }
                for c in self.comparisons
            },
            "hybrid": {
                "dense_weight": self.comparisons[0].dense_weight,
                "p_against_bm25": {c.split: c.hybrid_p for c in self.comparisons},
            },
            "resume": {"bitwise": self.resume.bitwise, **dataclasses.asdict(self.resume)},
            "index": {"kind": self.index_kind, "recall_at_10": self.index.recall and self.index.recall.value},
            "phases_s": {name: round(seconds, 2) for name, seconds in self.phases_s},
            "total_s": round(sum(seconds for _, seconds in self.phases_s), 2),
        }


def tell(home: Path, mesh: Mesh, *, num_steps: int | None = None) -> Outcome:
    """Runs the whole demo.

    Args:
      home: a folder to make; `model`, `vectors`, `index`, `bm25` and `corpus` in it can be searched afterwards.
      mesh: where this process encodes and searches; training has its own processes and mesh.
      num_steps: training steps; the recipe's own number when None.

    Raises:
      UsageError: `home` is there and not empty.
    """
    if home.exists() and any(home.iterdir()):
        raise UsageError(f"--out {home} is there and not empty; remove it or name another folder")
    home.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    with clock.phase("corpus"):
        corpus = _make_corpus(home / "corpus")
    with clock.phase("training, killed and resumed"):
        killed_after = train_with_a_kill(corpus.path, home / "model", num_steps=num_steps)
    with clock.phase("the same steps without a kill"):
        resume = prove_resume(corpus.path, home / "model", home / "unbroken", killed_after)
    with clock.phase("embedding"):
        embed_corpus(load_towers(home / "model"), corpus, home / "vectors", mesh, on_shard=print_progress)
    with clock.phase("indexes"):
        build_bm25(corpus, home / "bm25")
        index = build_index(open_vectors(home / "vectors"), home / "index", IndexRequest(kind=_INDEX_KIND), mesh)
    with clock.phase("searching and measuring"):
        systems = Systems(home, mesh)
        splits = [split for split in ("test", NATURAL_SPLIT) if split in corpus.splits]
        comparisons = tuple(systems.compare(split) for split in splits)
        searches = tuple(_searches(systems))
    return Outcome(
        home=home,
        num_docs=corpus.num_docs,
        num_queries={split: len(corpus.qrels(split)) for split in corpus.splits},
        resume=resume,
        index=index.description,
        comparisons=comparisons,
        searches=searches,
        phases_s=tuple(clock.phases_s),
    )


class _Clock:
    """Measures phases and says on stderr when each begins."""

    def __init__(self) -> None:
        self.phases_s: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        print(f"demo: {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        yield
        self.phases_s.append((name, time.monotonic() - start))


def _make_corpus(path: Path) -> BeirFolder:
    config = pydocs.PydocsConfig()
    return pydocs.write(path, pydocs.build(config), config)


def _searches(systems: Systems) -> Iterator[ShownSearch]:
    """The shown questions that this machine has a passage for, with whatever the search makes of them."""
    if NATURAL_SPLIT not in systems.corpus.splits:
        return
    qrels = systems.corpus.qrels(NATURAL_SPLIT)
    for query in systems.queries(NATURAL_SPLIT):
        if query.text not in _SHOWN_QUESTIONS:
            continue
        hits = systems.hybrid.search(query.text, _NUM_HITS)
        yield ShownSearch(query=query, hits=tuple(hits), expected=frozenset(qrels[query.id]))
