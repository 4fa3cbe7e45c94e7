"""`jaxscale rerank`: a cross-encoder orders the first documents of a TREC run anew, or scores mined negatives."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxscale.data.lines import check_place
from jaxscale.errors import UsageError
from jaxscale.mesh import mesh_from_text
from jaxscale.store import commit
from retrieval.encode import ComputeDtype
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import read_run, write_run
from retrieval.reranking.reranker import Reranker
from retrieval.reranking.runs import require_known, rerank_run
from retrieval.reranking.scored_negatives import score_negatives
from retrieval.search.queries import read_queries
from retrieval.towers import negatives_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Scores documents with a cross-encoder, which reads each of them together with the query.

    With --run it scores the first documents of every query and writes the run in that order; documents below the depth
    keep their order, behind those that were scored. With --negatives it scores what `jaxscale mine` chose, and the
    relevant documents, and writes them with the scores for a tower to learn (--contrastive.distill of `train`).

    Example: jaxscale rerank --model runs/reranker --corpus corpus --split test --run hybrid.trec --out reranked.trec
    Example: jaxscale rerank --model runs/reranker --corpus corpus --negatives negatives --out scored-negatives
    """

    model: Path
    """A re-ranker, or the training run that exported one."""
    corpus: Path
    """The BEIR folder with the texts of queries and documents."""
    out: Path
    """The TREC run to write, where one that exists is replaced, in one step; or the folder of negatives to make."""
    run_file: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """The TREC run to re-rank."""
    negatives: Path | None = None
    """The folder of negatives to score."""
    split: str | None = None
    """The run's queries must be among those judged in this split."""
    depth: int = 100
    """Documents of each query of the run that are scored."""
    tag: str = "jaxscale-rerank"
    """The new run's name, inside the file."""
    mesh: str = ""
    """Devices that share every batch, e.g. data=8; all of them when empty."""
    compute_dtype: ComputeDtype = "float32"
    """Of the cross-encoder's products."""

    def __post_init__(self) -> None:
        if (self.run_file is None) == (self.negatives is None):
            raise UsageError("give --run FILE to re-rank a run, or --negatives DIR to score mined negatives")
        if self.negatives is not None and self.split is not None:
            raise UsageError(f"--split {self.split} is for --run; the negatives name their own split")
        if self.run_file is not None:
            check_place(self.out)
        if self.tag.split() != [self.tag]:
            raise UsageError(f"tag={self.tag!r} must be one word: it stands in every line of the run")
        if self.depth < 1:
            raise UsageError(f"depth={self.depth} must be at least 1, the documents of each query that are re-ranked")

    def run(self) -> dict[str, Any]:
        """Scores, writes the run or the folder, and says how much was scored."""
        if self.negatives is not None:
            return self._score_negatives(self.negatives)
        assert self.run_file is not None  # `__post_init__` has seen to it
        return self._rerank(self.run_file)

    def _rerank(self, run_file: Path) -> dict[str, Any]:
        run = read_run(run_file)
        queries = {query.id: query.text for query in read_queries(self.corpus, self.split)}
        named = {doc for scores in run.values() for doc in scores}
        docs = BeirFolder.open(self.corpus, check="full").docs()
        passages = {doc.id: doc.passage for doc in docs if doc.id in named}
        of_split = f"{self.corpus}" + ("" if self.split is None else f" judged in {self.split!r}")
        require_known(run, queries, passages, run_file=run_file, queries_of=of_split)
        reranker = self._reranker()
        write_run(self.out, rerank_run(reranker, run, queries, passages, self.depth), self.tag)
        num_scored = sum(min(self.depth, len(scores)) for scores in run.values())
        print(f"{self.out}: {len(run):,} queries, {num_scored:,} documents re-ranked, to a depth of {self.depth}")
        return {
            "run": str(self.out),
            "of": str(run_file),
            "reranker": reranker.identity,
            "depth": self.depth,
            "num_queries": len(run),
            "num_scored": num_scored,
        }

    def _score_negatives(self, negatives: Path) -> dict[str, Any]:
        commit.check_place(self.out, format=negatives_folder.FORMAT, replace=False)
        manifest = score_negatives(self._reranker(), negatives, self.corpus, self.out).manifest
        counts = manifest.counts
        print(f"{self.out}: {counts['negatives']:,} negatives of {counts['queries']:,} queries scored")
        return {"out": str(self.out), "identity": manifest.identity, "counts": counts, "parents": manifest.parents}

    def _reranker(self) -> Reranker:
        return Reranker.load(self.model, mesh=mesh_from_text(self.mesh), compute_dtype=self.compute_dtype)
