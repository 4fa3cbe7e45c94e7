"""A retriever and a corpus to a negatives folder: checked, encoded, searched, written."""

import dataclasses
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from jaxscale.errors import DataError
from jaxscale.store import commit
from retrieval.contract import EmbeddingContract
from retrieval.encode import ComputeDtype, TextEncoder
from retrieval.search.dense import QueryEncoder, comparable
from retrieval.towers import negatives_folder
from retrieval.towers.mining import Mining, mine
from retrieval.towers.negatives_folder import NegativesDescription, queries_sha256, write_negatives
from retrieval.towers.pairs import PairSource
from retrieval.towers.retriever_folder import LoadedTowers
from retrieval.vectors import CorpusHash, Vectors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Miner:
    """Who mines, and by what.

    Attributes:
      towers: the retriever.
      mining: the rules.
      split: the name of the split whose queries are mined for.
      compute_dtype: dtype of the encoders' products.
      vectors: the corpus's committed vectors; None: it is encoded along the way.
    """

    towers: LoadedTowers
    mining: Mining
    split: str
    compute_dtype: ComputeDtype
    vectors: Vectors | None

    @property
    def contract(self) -> EmbeddingContract:
        """Of the vectors that are searched."""
        return self.towers.contract if self.vectors is None else self.vectors.description.contract

    def description(self, source: PairSource) -> NegativesDescription:
        """What the negatives will be; everything that can be checked before the search is.

        Args:
          source: the corpus and the judgements of the split.

        Raises:
          UsageError: the vectors are of another space, or the rules do not suit the corpus or its scores.
          DataError: the vectors are of another corpus.
        """
        self.contract.require_speaks(self.towers.identity("query"), joined=self.towers.contract)
        corpus = CorpusHash.of(source.docs).sha256
        if self.vectors is not None and self.vectors.description.corpus != corpus:
            raise DataError(
                f"{self.vectors.path}: these vectors are of the corpus {self.vectors.description.corpus[:12]}, but the "
                f"corpus to mine is {corpus[:12]}; embed it with `jaxscale embed`, or leave --vectors out"
            )
        self.mining.check_corpus(len(source.docs))
        self.mining.check_scores(self.contract.score)
        return NegativesDescription(
            mining=self.mining,
            contract=self.contract,
            query_encoder=self.towers.identity("query").sha256,
            document_encoder=self.towers.identity("document").sha256
            if self.vectors is None
            else self.vectors.description.model,
            corpus=corpus,
            queries=queries_sha256(source),
            split=self.split,
            compute_dtype=self.compute_dtype,
        )

    def mine_to(self, out: Path, source: PairSource, mesh: Mesh) -> commit.Committed:
        """Mines the negatives of a corpus and commits their folder.

        Args:
          out: the folder to make.
          source: the corpus and the judgements of the split.
          mesh: its devices share every batch and the search.

        Raises:
          UsageError: `out` is there already, or as `description`.
          DataError: as `description`.
          MachineError: another writer is at work on `out`, or the disk is full.
        """
        commit.check_place(out, format=negatives_folder.FORMAT, replace=False)
        description = self.description(source)
        texts = [source.queries[query_id].text for query_id in source.qrels]
        encoder = QueryEncoder(self.towers, self.contract, mesh, compute_dtype=self.compute_dtype)
        mined = mine(source, encoder.encode(texts), self._document_vectors(source, mesh), mesh, self.mining)
        identity = None if self.vectors is None else self.vectors.manifest.identity
        return write_negatives(out, source, mined, description, identity)

    def _document_vectors(self, source: PairSource, mesh: Mesh) -> Float32[np.ndarray, "N E"]:
        if self.vectors is not None:
            return comparable(self.vectors.read(), self.contract)
        encoder = TextEncoder(self.towers.document, mesh, compute_dtype=self.compute_dtype)
        return comparable(encoder.encode([doc.passage for doc in source.docs]).vectors, self.contract)
