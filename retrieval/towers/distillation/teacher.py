"""The teacher: a retriever's query tower, its vectors of the queries, and the frozen documents of its space."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from jaxscale.errors import DataError, UsageError
from jaxscale.mesh import spec_of
from jaxscale.store import commit
from retrieval.embed import DEFAULT_SHARD_SIZE, embed_described
from retrieval.encode import ComputeDtype, TextEncoder
from retrieval.index.folder import OpenedIndex, open_index
from retrieval.records import Doc, Query
from retrieval.towers.distillation.loss import cosines
from retrieval.towers.loading import load_towers
from retrieval.towers.retriever_folder import LoadedTowers
from retrieval.vectors import CorpusHash, Vectors, VectorsDescription, open_vectors

# Of vectors that were made elsewhere, so many are compared with what the teacher makes here; another machine's rounding
# leaves 0.9999.
_NUM_EMBEDDED_AGAIN = 16
_SAME_TEXT_COSINE = 0.999


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher and the documents that its vectors search.

    Attributes:
      retriever: a retriever, model, run or Hugging Face folder: its query tower is the teacher, and its document tower
        goes with the student.
      query_vectors: committed vectors of the queries by that tower, a row for each query's id; made there where there
        are none. Empty: beside the run.
      vectors: frozen vectors of the documents, which dev queries and some terms of the loss meet; empty for none.
      index: a frozen index of them; dev queries search it where there are no `vectors`; empty for none.
      compute_dtype: dtype of the teacher's products, where its vectors are made.
    """

    retriever: str = ""
    query_vectors: str = ""
    vectors: str = ""
    index: str = ""
    compute_dtype: ComputeDtype = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenDocuments:
    """What is searched, every byte of it verified; nothing here is ever written.

    Attributes:
      vectors: of the documents, or None.
      index: of them, or None.
    """

    vectors: Vectors | None
    index: OpenedIndex | None

    @property
    def identities(self) -> dict[str, str]:
        """The identity of each part's manifest, which names every byte of it."""
        parts = {"vectors": self.vectors, "index": self.index}
        return {name: part.manifest.identity for name, part in parts.items() if part is not None}


def open_teacher(teacher: Teacher) -> LoadedTowers:
    """Opens the retriever.

    Raises:
      DataError: there is none.
      VerificationError: it is damaged.
    """
    return load_towers(Path(teacher.retriever))


def open_documents(teacher: Teacher, towers: LoadedTowers) -> FrozenDocuments:
    """Opens the frozen vectors and index, and checks that the teacher may search them.

    Args:
      teacher: where they are.
      towers: the teacher's retriever.

    Raises:
      DataError: there are none, or they are of two corpora.
      UsageError: they are of another space than the teacher.
      VerificationError: they are damaged.
    """
    vectors = open_vectors(Path(teacher.vectors)) if teacher.vectors else None
    index = open_index(Path(teacher.index)) if teacher.index else None
    for name, part in (("vectors", vectors), ("index", index)):
        if part is not None:
            try:
                part.description.contract.require_speaks(towers.identity("query"), joined=towers.contract)
            except UsageError as error:
                raise UsageError(f"teacher.{name}={part.path}: not of the teacher's space: {error}") from None
    if vectors is not None and index is not None and vectors.description.corpus != index.description.corpus:
        raise DataError(f"teacher.index={index.path} is of another corpus than teacher.vectors={vectors.path}")
    return FrozenDocuments(vectors=vectors, index=index)


def teacher_vectors(teacher: Teacher, towers: LoadedTowers, queries: Sequence[Query], mesh: Mesh) -> Vectors:
    """The teacher's committed vectors of the queries; made, shard by shard, where they are not there yet.

    Args:
      teacher: where they are, or shall be.
      towers: the teacher's retriever.
      queries: whose vectors are needed, each id once.
      mesh: where they are made.

    Raises:
      DataError: those that are there lack a query, or are of other texts.
      UsageError: those that are there are not the teacher's.
      VerificationError: they are damaged.
    """
    path = Path(teacher.query_vectors)
    docs = [Doc(query.id, "", query.text) for query in queries]
    if commit.is_committed(path):
        vectors = open_vectors(path)
        _require_teachers(vectors, towers)
        if vectors.description.corpus != CorpusHash.of(docs).sha256:
            again = TextEncoder(towers.query, mesh, compute_dtype=vectors.description.compute_dtype)
            _require_these_texts(vectors, queries, again)
        return vectors
    description = VectorsDescription(
        contract=towers.contract,
        model=towers.identity("query").sha256,
        corpus=CorpusHash.of(docs).sha256,
        num_rows=len(docs),
        shard_size=DEFAULT_SHARD_SIZE,
        compute_dtype=teacher.compute_dtype,
        mesh=str(spec_of(mesh)),
        jax_version=jax.__version__,
    )
    encoder = TextEncoder(towers.query, mesh, compute_dtype=teacher.compute_dtype)
    return embed_described(lambda: docs, path, description, encoder.encode, on_shard=_print_progress)


def rows_of_queries(vectors: Vectors, queries: Sequence[Query]) -> Float32[np.ndarray, "N E"]:
    """The teacher's vectors of queries, in their order.

    Args:
      vectors: the teacher's, of these queries and perhaps others.
      queries: the N queries.

    Raises:
      DataError: a query has no vector there.
    """
    place = {query_id: row for row, query_id in enumerate(vectors.read_ids())}
    missing = [query.id for query in queries if query.id not in place]
    if missing:
        raise DataError(
            f"teacher.query_vectors={vectors.path}: {len(missing)} of {len(queries)} queries are missing in the "
            f"teacher's vectors, such as {missing[0]!r}; embed them all, or name a place where they are to be made"
        )
    return vectors.read()[[place[query.id] for query in queries]]


def _require_teachers(vectors: Vectors, towers: LoadedTowers) -> None:
    """Refuses vectors that another encoder made, such as the document tower."""
    described, where = vectors.description, f"teacher.query_vectors={vectors.path}"
    if described.contract.space != towers.contract.space:
        raise UsageError(
            f"{where} is of the space {described.contract.space[:12]}, the teacher of {towers.contract.space[:12]}; "
            "give the teacher's own vectors of the queries"
        )
    wanted = towers.identity("query").sha256
    if described.model == wanted:
        return
    is_document = described.model == towers.identity("document").sha256
    who = "by the document tower, which is no teacher of queries" if is_document else f"by {described.model[:12]}"
    raise UsageError(f"{where} was made {who}; expected vectors by the teacher's query tower {wanted[:12]}")


def _require_these_texts(vectors: Vectors, queries: Sequence[Query], encoder: TextEncoder) -> None:
    """Refuses vectors of other texts under the queries' ids, as far as a few of them, embedded again, can tell."""
    some = queries[:: -(-len(queries) // _NUM_EMBEDDED_AGAIN)]
    again = encoder.encode([query.text for query in some]).vectors
    found = np.asarray(cosines(jnp.asarray(again), jnp.asarray(rows_of_queries(vectors, some))))
    if found.min() < _SAME_TEXT_COSINE:
        raise DataError(
            f"teacher.query_vectors={vectors.path}: the row of query {some[int(found.argmin())].id!r} has a cosine of "
            f"{found.min():.3f} to the teacher's vector of its text; the rows are of other texts, embed these"
        )


def _print_progress(done: int, total: int, was_there: bool) -> None:
    print(f"teacher: shard {done}/{total}{' was there' if was_there else ''}", file=sys.stderr, flush=True)
