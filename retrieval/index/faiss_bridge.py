"""faiss: vectors to an index, an index to bytes and back, and its search; the only module here that knows faiss."""

import contextlib
from collections.abc import Iterator
from typing import Any

import faiss as typed_faiss
import numpy as np
from jaxtyping import Float32, UInt8

from jaxscale.errors import DataError
from retrieval.index.parameters import Flat, Hnsw, IvfFlat, IvfPq, Parameters
from retrieval.search.topk import NO_ROW, TopK

faiss: Any = typed_faiss  # its stubs lack much of what it has
VERSION = str(faiss.__version__)


def build(
    vectors: Float32[np.ndarray, "N E"], parameters: Parameters, *, seed: int, num_threads: int
) -> UInt8[np.ndarray, "_"]:
    """Trains an index and adds the vectors, row i under the id i.

    Args:
      vectors: what to index.
      parameters: kind and parameters, all settled.
      seed: of k-means.
      num_threads: threads that faiss may use; with one an HNSW graph is the same every time.

    Returns:
      The bytes of `faiss.serialize_index`.
    """
    index = _empty(vectors.shape[1], parameters, seed)
    with threads(num_threads):
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    return np.asarray(faiss.serialize_index(index))


def load(content: bytes) -> Any:
    """A faiss index out of the bytes that `build` gave; never of bytes whose checksum nobody compared.

    Raises:
      DataError: faiss can't read them; they are of another release.
    """
    try:
        return faiss.deserialize_index(np.frombuffer(content, np.uint8))
    except RuntimeError as error:
        raise DataError(f"faiss {VERSION} can't read this index ({error}); build it again") from error


def search(
    index: Any, parameters: Parameters, queries: Float32[np.ndarray, "Q E"], k: int, *, num_threads: int
) -> TopK:
    """The `k` best rows by faiss's own scores; row -1 where it finds fewer.

    Args:
      index: as `load` gives it.
      parameters: those it was built with; they say how far to look.
      queries: query vectors.
      k: how many rows, at least 1.
      num_threads: threads that faiss may use.
    """
    with threads(num_threads):
        scores, rows = index.search(np.ascontiguousarray(queries), k, params=_how_far(parameters, k))
    found = rows != NO_ROW
    scores = np.where(found, scores, -np.inf).astype(np.float32)
    order = np.lexsort((rows, -scores), axis=-1)
    return TopK(rows=np.take_along_axis(rows, order, axis=1), scores=np.take_along_axis(scores, order, axis=1))


@contextlib.contextmanager
def threads(num_threads: int) -> Iterator[None]:
    """Lets faiss use so many threads in the block; it counts them for the whole process."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num_threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _empty(num_dims: int, parameters: Parameters, seed: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    match parameters:
        case Flat():
            return faiss.IndexFlatIP(num_dims)
        case Hnsw():
            index = faiss.IndexHNSWFlat(num_dims, parameters.num_neighbors, metric)
            index.hnsw.efConstruction = parameters.ef_construction
            return index
        case IvfFlat():
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(num_dims), num_dims, parameters.nlist, metric)
        case IvfPq():
            index = faiss.IndexIVFPQ(
                faiss.IndexFlatIP(num_dims),
                num_dims,
                parameters.nlist,
                parameters.num_subvectors,
                parameters.num_bits,
                metric,
            )
            index.pq.cp.seed = seed
    index.cp.seed = seed
    return index


def _how_far(parameters: Parameters, k: int) -> Any:
    match parameters:
        case IvfFlat() | IvfPq():
            return faiss.SearchParametersIVF(nprobe=parameters.nprobe)
        case Hnsw():
            return faiss.SearchParametersHNSW(efSearch=max(parameters.ef_search, k))
        case Flat():
            return None
