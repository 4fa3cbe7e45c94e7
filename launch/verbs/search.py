"""`jaxscale search`: one query gives hits, a file of queries gives a TREC run."""

import dataclasses
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxscale.data.lines import check_place
from jaxscale.errors import UsageError
from jaxscale.mesh import mesh_from_text
from retrieval.encode import ComputeDtype
from retrieval.formats.beir import BeirFolder
from retrieval.formats.trec import write_run
from retrieval.retriever import DEV_MEASURE, Hit, Retriever, Sources
from retrieval.search.hybrid import FusionConfig
from retrieval.search.queries import read_queries
from retrieval.towers.loading import EncoderOverrides

_SNIPPET_CHARS = 200
_ONE_OR_MANY = "give --query TEXT for one query, or --queries FILE --run FILE for many"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Searches by vectors (exactly, or through an index), by BM25, or by both.

    A model with --vectors or --index is a dense search, --bm25 alone is BM25, both together are a hybrid search. Its
    lists are fused by a convex sum of z-scores, whose weight is given (--dense-weight) or chosen by nDCG@10 on the
    queries of a dev split (--dev), or by reciprocal ranks (--fusion rrf). --home names one folder that holds model,
    index or vectors, bm25 and corpus under these names.

    Example: jaxscale search --model runs/small --vectors vectors --corpus corpus --query "open a file"
    Example: jaxscale search --model runs/small --index index --bm25 bm25 --corpus corpus --dev dev
      --queries corpus --split test --k 100 --run hybrid.trec
    """

    query: str | None = None
    """One query; its hits are printed."""
    queries: Path | None = None
    """Many: a file (jsonl with _id and text, or tsv) or a BEIR folder."""
    split: str | None = None
    """Of a BEIR folder in --queries: those judged in this split."""
    run_file: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """The TREC run to write; one that exists is replaced, in one step, when the search is done."""
    tag: str = "jaxscale"
    """The run's name, inside the file."""
    k: int = 10
    """Hits for each query."""
    home: Path | None = None
    """One folder that holds the parts below under their names."""
    model: Path | None = None
    """Encodes the queries: a retriever, a model or a training run."""
    index: Path | None = None
    """An index."""
    vectors: Path | None = None
    """Vectors, searched exactly."""
    bm25: Path | None = None
    """A BM25 index."""
    corpus: Path | None = None
    """The BEIR folder that gives hits their texts, and dev queries."""
    hybrid: bool = False
    """Insists that both are there: vectors and BM25."""
    fusion: Literal["zscore", "rrf"] = "zscore"
    """How a hybrid search fuses."""
    dense_weight: float | None = None
    """Of the dense list in the sum of z-scores, 0 to 1."""
    dev: str | None = None
    """The split of --corpus whose queries choose the weight."""
    depth: int = 100
    """Rows of each list that are fused."""
    mesh: str = ""
    """Where queries are encoded and vectors searched; all devices when empty."""
    compute_dtype: ComputeDtype = "float32"
    """Of the query encoder's products."""
    encoder: EncoderOverrides = dataclasses.field(default_factory=EncoderOverrides)
    """As in `jaxscale embed`."""
    check: Literal["full", "sizes"] = "full"
    """Compare every byte with the manifests first, or sizes only (which says unverified)."""

    def __post_init__(self) -> None:
        if (self.query is None) == (self.queries is None):
            raise UsageError(_ONE_OR_MANY)
        if (self.queries is None) != (self.run_file is None):
            raise UsageError("--queries and --run go together: the run holds what the queries find")
        if self.run_file is not None:
            check_place(self.run_file)
        if self.tag.split() != [self.tag]:
            raise UsageError(f"tag={self.tag!r} must be one word: it stands in every line of the run")
        if self.query is not None and not self.query.strip():
            raise UsageError("the query is empty; expected words to search for")
        if self.k < 1:
            raise UsageError(f"k={self.k} must be at least 1, the number of hits wanted for each query")
        if self.dense_weight is not None and self.dev is not None:
            raise UsageError("--dense-weight and --dev are both given; the weight is given, or chosen on dev")

    def run(self) -> dict[str, Any]:
        """Searches, prints hits or writes the run, and says how it was done."""
        queries = None if self.queries is None else read_queries(self.queries, self.split)
        retriever, how = self._open()
        if not retriever.verified:
            print("jaxscale: unverified: only names and sizes were compared (--check sizes)", file=sys.stderr)
        report = {"how": how, "k": self.k, "verified": retriever.verified}
        if self.query is not None:
            return report | {"query": self.query, "hits": _print_hits(retriever.search(self.query, self.k))}
        if queries is None or self.run_file is None:
            raise UsageError(_ONE_OR_MANY)
        run = retriever.run(queries, self.k)
        write_run(self.run_file, run, self.tag)
        num_hits = sum(map(len, run.values()))
        print(f"{self.run_file}: {len(queries):,} queries, {num_hits:,} hits, {how['search']} search")
        return report | {"run": str(self.run_file), "num_queries": len(queries), "num_hits": num_hits}

    def _open(self) -> tuple[Retriever, dict[str, Any]]:
        """The retriever, and in which way it searches."""
        sources = self._sources()
        self._check_fusion(sources.is_hybrid)
        weight = {} if self.dense_weight is None else {"dense_weight": self.dense_weight}
        retriever = Retriever.load(
            sources,
            fusion=FusionConfig(method=self.fusion, depth=self.depth, **weight),
            mesh=mesh_from_text(self.mesh),
            compute_dtype=self.compute_dtype,
            overrides=self.encoder,
            check=self.check,
        )
        if not sources.is_hybrid:
            return retriever, {"search": "bm25" if sources.model is None else "dense"}
        how = {"search": "hybrid", "fusion": self.fusion, "depth": self.depth}
        if self.dev is not None:
            retriever, chosen = self._choose_weight(retriever)
            return retriever, how | chosen
        return retriever, how | weight

    def _sources(self) -> Sources:
        given = {
            name: getattr(self, name)
            for name in ("model", "index", "vectors", "bm25", "corpus")
            if getattr(self, name) is not None
        }
        if self.home is None:
            return Sources(**given)
        return dataclasses.replace(Sources.of_home(self.home), **given)

    def _check_fusion(self, is_hybrid: bool) -> None:
        weighted = self.dense_weight is not None or self.dev is not None
        if self.hybrid and not is_hybrid:
            raise UsageError("--hybrid needs --bm25 beside --model and --vectors or --index")
        if weighted and (self.fusion == "rrf" or not is_hybrid):
            raise UsageError(
                "--dense-weight and --dev are for the sum of z-scores of a hybrid search; "
                + ("--fusion rrf has no weight" if is_hybrid else "this search has one list only")
            )
        if self.fusion == "rrf" and not is_hybrid:
            raise UsageError("--fusion rrf is for a hybrid search; this search has one list only")
        if is_hybrid and self.fusion == "zscore" and not weighted:
            raise UsageError(
                "a hybrid search needs the weight of its dense list: --dense-weight W, or --dev SPLIT to choose it on "
                "the dev queries of --corpus; or --fusion rrf, which has none"
            )

    def _choose_weight(self, retriever: Retriever) -> tuple[Retriever, dict[str, Any]]:
        corpus = self.corpus if self.home is None or self.corpus is not None else self.home / "corpus"
        if corpus is None or self.dev is None:
            raise UsageError("--dev names a split of --corpus: give the BEIR folder that has it")
        qrels = BeirFolder.open(corpus, check="full").qrels(self.dev)
        chosen_for, chosen = retriever.choose_fusion_weight(read_queries(corpus, self.dev), qrels)
        measured = dict(chosen.measured)
        best, bm25 = measured[chosen.dense_weight], measured[0.0]
        print(
            f"dense weight {chosen.dense_weight} chosen on {self.dev!r}: {DEV_MEASURE} {best:.4f}, "
            f"BM25 alone {bm25:.4f}",
            file=sys.stderr,
        )
        return chosen_for, {"dense_weight": chosen.dense_weight, "dev": self.dev, DEV_MEASURE: chosen.measured}


def _print_hits(hits: list[Hit]) -> list[dict[str, Any]]:
    for hit in hits:
        title = hit.doc.title if hit.doc is not None else ""
        print(f"{hit.rank:>3}  {hit.score:.4f}  {hit.doc_id}{f'  {title}' if title else ''}")
        if hit.doc is not None and hit.doc.text.strip():
            print(f"     {textwrap.shorten(hit.doc.text, _SNIPPET_CHARS, placeholder=' ...')}")
    return [dataclasses.asdict(hit) for hit in hits]
