"""A corpus to committed vectors: shard by shard, resumable, and byte for byte the same however often it was killed."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxscale.errors import DataError
from jaxscale.mesh import spec_of
from jaxscale.store import commit
from jaxscale.store.failpoints import failpoint
from retrieval.encode import ComputeDtype, EncodedTexts, TextEncoder
from retrieval.formats.beir import BeirFolder
from retrieval.records import Doc
from retrieval.towers.retriever_folder import LoadedTowers
from retrieval.vectors import (
    FORMAT,
    VERSION,
    CorpusHash,
    Vectors,
    VectorsDescription,
    claim_draft,
    discard_shards,
    finish_draft,
    open_vectors,
    require_same_description,
    shard_is_complete,
    write_shard,
)

DEFAULT_SHARD_SIZE = 16_384

Encode = Callable[[Sequence[str]], EncodedTexts]
OnShard = Callable[[int, int, bool], None]


def embed_corpus(
    towers: LoadedTowers,
    corpus: BeirFolder,
    out: Path,
    mesh: Mesh,
    *,
    shard_size: int = DEFAULT_SHARD_SIZE,
    compute_dtype: ComputeDtype = "float32",
    on_shard: OnShard | None = None,
) -> Vectors:
    """Encodes every passage of a corpus with a retriever's document encoder; the same call goes on after a kill.

    Args:
      towers: the retriever; its contract goes with the vectors.
      corpus: what to encode.
      out: the directory to make, see docs/formats/vectors.md.
      mesh: its devices share every batch.
      shard_size: documents a shard, the unit that a kill can cost.
      compute_dtype: dtype of the encoder's products.
      on_shard: told `(shards done, shards in all, whether this one was there already)` after every shard.

    Returns:
      The vectors, opened and verified. Where `out` holds the same ones already, nothing is computed.

    Raises:
      UsageError: `out`, or a draft beside it, belongs to another model, corpus or setting.
      DataError: the corpus is malformed, empty, or changed between two readings.
      MachineError: another writer is at work on `out`, or the disk is full.
    """
    corpus_hash = CorpusHash.of(corpus.docs())
    description = VectorsDescription(
        contract=towers.contract,
        model=towers.identity("document").sha256,
        corpus=corpus_hash.sha256,
        num_rows=corpus_hash.num_docs,
        shard_size=shard_size,
        compute_dtype=compute_dtype,
        mesh=str(spec_of(mesh)),
        jax_version=jax.__version__,
    )

    encoder = TextEncoder(towers.document, mesh, compute_dtype=compute_dtype)
    return embed_described(corpus.docs, Path(out), description, encoder.encode, on_shard=on_shard)


def embed_described(
    read_docs: Callable[[], Iterable[Doc]],
    out: Path,
    description: VectorsDescription,
    encode: Encode,
    *,
    on_shard: OnShard | None = None,
) -> Vectors:
    """`embed_corpus` with everything that describes the vectors settled.

    Args:
      read_docs: gives the documents from the first on.
      out: the directory to make.
      description: what the vectors are.
      encode: texts to vectors; what it gives for a text may depend on the other texts of the call, and on nothing else.
      on_shard: as in `embed_corpus`.

    Raises:
      UsageError, DataError, MachineError: as `embed_corpus`.
    """
    if description.num_rows == 0:
        raise DataError("the corpus is empty: there is nothing to embed")
    if commit.is_committed(out):
        vectors = open_vectors(out, check="full")
        require_same_description(out, vectors.manifest.config, description)
        return vectors
    with commit.draft(out, format=FORMAT, version=VERSION, resumable=True) as draft:
        claim_draft(draft.path, description)
        corpus_hash = CorpusHash()
        for number, docs in enumerate(_shards(map(corpus_hash.add, read_docs()), description.shard_size)):
            was_there = shard_is_complete(draft.path, number)
            if not was_there:
                _embed_shard(draft.path, number, docs, encode)
            if on_shard is not None:
                on_shard(number + 1, description.num_shards, was_there)
        if corpus_hash.sha256 != description.corpus:
            discard_shards(draft.path)
            raise DataError("the corpus changed while it was read; leave it alone and run the same again")
        failpoint("embed.before_finish")
        finish_draft(draft, description)
    return open_vectors(out, check="full")


def print_progress(done: int, total: int, was_there: bool) -> None:
    """Says on stderr how many shards are done; for `on_shard`."""
    print(f"embed: shard {done}/{total}{' was there' if was_there else ''}", file=sys.stderr, flush=True)


def _embed_shard(directory: Path, number: int, docs: list[Doc], encode: Encode) -> None:
    encoded = encode([doc.passage for doc in docs])
    failpoint("embed.shard_encoded")
    ids = [doc.id for doc in docs]
    write_shard(directory, number, ids=ids, vectors=encoded.vectors, num_truncated=encoded.num_truncated)


def _shards(docs: Iterable[Doc], shard_size: int) -> Iterator[list[Doc]]:
    remaining = iter(docs)
    while shard := list(itertools.islice(remaining, shard_size)):
        yield shard
