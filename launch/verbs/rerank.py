"""`jaxscale rerank`: a cross-encoder puts the first documents of a TREC run in another order."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxscale.data.lines import check_place
from jaxscale.errors import UsageError
from jaxscale.mesh import mesh_from_text
from retrieval.encode import ComputeDtype
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import read_run, write_run
from retrieval.reranking.reranker import Reranker
from retrieval.reranking.runs import require_known, rerank_run
from retrieval.search.queries import read_queries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Scores the first documents of every query of a run with a cross-encoder, and writes the run in that order.

    Documents below the depth keep their order, behind those that were scored.

    Example: jaxscale rerank --model runs/reranker --corpus corpus --split test --run hybrid.trec --out reranked.trec
    """

    model: Path
    """A re-ranker, or the training run that exported one."""
    corpus: Path
    """The BEIR folder with the texts of queries and documents."""
    run_file: Annotated[Path, tyro.conf.arg(name="run")]
    """The TREC run to re-rank."""
    out: Path
    """The TREC run to write; one that exists is replaced, in one step, when all is scored."""
    split: str | None = None
    """The run's queries must be among those judged in this split."""
    depth: int = 100
    """Documents of each query that are scored."""
    tag: str = "jaxscale-rerank"
    """The new run's name, inside the file."""
    mesh: str = ""
    """Devices that share every batch, e.g. data=8; all of them when empty."""
    compute_dtype: ComputeDtype = "float32"
    """Of the cross-encoder's products."""

    def __post_init__(self) -> None:
        check_place(self.out)
        if self.tag.split() != [self.tag]:
            raise UsageError(f"tag={self.tag!r} must be one word: it stands in every line of the run")
        if self.depth < 1:
            raise UsageError(f"depth={self.depth} must be at least 1, the documents of each query that are re-ranked")

    def run(self) -> dict[str, Any]:
        """Re-ranks, writes the run and says how much was scored."""
        run = read_run(self.run_file)
        queries = {query.id: query.text for query in read_queries(self.corpus, self.split)}
        named = {doc for scores in run.values() for doc in scores}
        docs = BeirFolder.open(self.corpus, check="full").docs()
        passages = {doc.id: doc.passage for doc in docs if doc.id in named}
        of_split = f"{self.corpus}" + ("" if self.split is None else f" judged in {self.split!r}")
        require_known(run, queries, passages, run_file=self.run_file, queries_of=of_split)
        reranker = Reranker.load(self.model, mesh=mesh_from_text(self.mesh), compute_dtype=self.compute_dtype)
        write_run(self.out, rerank_run(reranker, run, queries, passages, self.depth), self.tag)
        num_scored = sum(min(self.depth, len(scores)) for scores in run.values())
        print(f"{self.out}: {len(run):,} queries, {num_scored:,} documents re-ranked, to a depth of {self.depth}")
        return {
            "run": str(self.out),
            "of": str(self.run_file),
            "reranker": reranker.identity,
            "depth": self.depth,
            "num_queries": len(run),
            "num_scored": num_scored,
        }
