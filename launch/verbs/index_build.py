"""`jaxscale index build`: committed vectors, or a corpus for BM25, become a committed index."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import mesh_from_text
from retrieval.contract import EmbeddingContract
from retrieval.formats.beir import BeirFolder
from retrieval.index.bm25_folder import build_bm25
from retrieval.index.build import BuildOptions, build_index
from retrieval.index.parameters import IndexRequest, Kind
from retrieval.search.bm25 import DEFAULT_B, DEFAULT_K1, BM25Config
from retrieval.search.dense import QueryEncoder
from retrieval.search.queries import read_queries
from retrieval.towers.loading import EncoderOverrides, load_towers
from retrieval.vectors import open_vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Builds an index and commits it with its recall@10 against exact search.

    flat, ivf_flat, ivf_pq and hnsw index --vectors through faiss; bm25 indexes the words of --corpus. Parameters that
    are not given are chosen from the number of vectors and their dims. Recall is measured on --recall-queries,
    encoded by --model; without them on sampled documents, which is usually easier than real queries.

    Example: jaxscale index build --vectors vectors --kind ivf_pq --out index
    Example: jaxscale index build --corpus corpus --kind bm25 --out bm25
    """

    kind: Literal["flat", "ivf_flat", "ivf_pq", "hnsw", "bm25"]
    """What kind of index."""
    out: Path
    """The directory to make."""
    vectors: Path | None = None
    """The vectors to index."""
    corpus: Path | None = None
    """The BEIR folder to index (bm25)."""
    replace: bool = False
    """Replace an index that is at --out already, in one step."""
    nlist: int | None = None
    """Cells of k-means (ivf_flat, ivf_pq)."""
    nprobe: int | None = None
    """Cells searched (ivf_flat, ivf_pq)."""
    num_subvectors: int | None = None
    """Parts a vector is cut into; must divide its dims (ivf_pq)."""
    num_bits: int | None = None
    """Bits of each part's code (ivf_pq)."""
    refine_factor: int | None = None
    """The best refine_factor * k are scored again with the true vectors; 0 for none (ivf_pq)."""
    num_neighbors: int | None = None
    """Edges of a node (hnsw)."""
    ef_construction: int | None = None
    """Candidates looked at while building (hnsw)."""
    ef_search: int | None = None
    """Candidates looked at while searching (hnsw)."""
    k1: float | None = None
    """How soon more occurrences stop counting; 0.9 when not given (bm25)."""
    b: float | None = None
    """How much long passages are held back; 0.4 when not given (bm25)."""
    seed: int = 0
    """Of k-means and of the sampled queries."""
    num_threads: int | None = None
    """Threads of faiss: all cores when not given, one for hnsw, so that its bytes are the same every time."""
    num_recall_queries: int = 256
    """How many documents are sampled to measure recall with."""
    recall_queries: Path | None = None
    """Real queries to measure recall with: a file of queries or a BEIR folder; needs --model."""
    split: str | None = None
    """Of a BEIR folder in --recall-queries: the queries judged in this split."""
    model: Path | None = None
    """Encodes --recall-queries."""
    encoder: EncoderOverrides = dataclasses.field(default_factory=EncoderOverrides)
    """As in `jaxscale embed`."""
    mesh: str = ""
    """Where exact search runs; all devices when empty."""

    def run(self) -> dict[str, Any]:
        """Builds the index and says what it is."""
        return self._build_bm25() if self.kind == "bm25" else self._build_faiss(self.kind)

    def _build_bm25(self) -> dict[str, Any]:
        self._refuse(("vectors", "model", "recall_queries", *_FAISS_PARAMETERS), "a bm25 index")
        if self.corpus is None:
            raise UsageError("a bm25 index is built from words: give --corpus, a BEIR folder")
        config = BM25Config(k1=DEFAULT_K1 if self.k1 is None else self.k1, b=DEFAULT_B if self.b is None else self.b)
        corpus = BeirFolder.open(self.corpus, check="full")
        opened = build_bm25(corpus, self.out, config, replace=self.replace)
        described = opened.description
        print(
            f"{self.out}: BM25 over {described.num_rows:,} passages and {described.num_terms:,} terms, "
            f"k1={described.config.k1}, b={described.config.b}"
        )
        return {"out": str(self.out), "identity": opened.manifest.identity, **opened.manifest.counts}

    def _build_faiss(self, kind: Kind) -> dict[str, Any]:
        self._refuse(("corpus", "k1", "b"), f"a {kind} index")
        if self.vectors is None:
            raise UsageError(f"a {kind} index is built from vectors: give --vectors, which `jaxscale embed` makes")
        if (self.recall_queries is None) != (self.model is None):
            raise UsageError("--recall-queries and --model go together: the model encodes the queries")
        options = BuildOptions(seed=self.seed, num_threads=self.num_threads, num_recall_queries=self.num_recall_queries)
        parameters = {name: getattr(self, name) for name in _FAISS_PARAMETERS}
        request = IndexRequest(kind=kind, **parameters)
        vectors = open_vectors(self.vectors, check="full")
        mesh = mesh_from_text(self.mesh)
        queries = self._encoded_queries(vectors.description.contract, mesh)
        built = build_index(vectors, self.out, request, mesh, options=options, queries=queries, replace=self.replace)
        described = built.description
        print(f"{self.out}: {kind} over {described.num_rows:,} vectors of {described.num_dims} dims")
        print(f"parameters: {described.parameters}")
        if described.recall is not None and described.recall.value is not None:
            measured = described.recall
            print(
                f"recall@{measured.k} {measured.value:.4f} against exact search, over {measured.num_queries} queries "
                f"({measured.queries})"
            )
        return {
            "out": str(self.out),
            "identity": built.manifest.identity,
            "parents": built.manifest.parents,
            "parameters": typed_json.encode(described.parameters),
            "recall": typed_json.encode(described.recall),
        }

    def _encoded_queries(self, contract: EmbeddingContract, mesh: Mesh) -> Float32[np.ndarray, "Q E"] | None:
        if self.recall_queries is None or self.model is None:
            return None
        towers = load_towers(self.model, overrides=self.encoder)
        texts = [query.text for query in read_queries(self.recall_queries, self.split)]
        return QueryEncoder(towers, contract, mesh).encode(texts)

    def _refuse(self, names: tuple[str, ...], what: str) -> None:
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]
        if given:
            raise UsageError(f"{what} does not take {', '.join(given)}")


_FAISS_PARAMETERS = (
    "nlist",
    "nprobe",
    "num_subvectors",
    "num_bits",
    "refine_factor",
    "num_neighbors",
    "ef_construction",
    "ef_search",
)
