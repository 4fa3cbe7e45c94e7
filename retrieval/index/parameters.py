"""The kinds of index and their parameters: what can be asked for, and what is chosen from N and E where nothing is."""

import dataclasses
import math
from typing import Literal

from jaxscale import typed_json
from jaxscale.errors import DataError, UsageError

Kind = Literal["flat", "ivf_flat", "ivf_pq", "hnsw"]

# faiss's ClusteringParameters.min_points_per_centroid: with fewer k-means warns, and its centroids mean little.
POINTS_PER_CENTROID = 39
_PQ_BITS = (8, 6, 4)


@typed_json.union_member
@dataclasses.dataclass(frozen=True, kw_only=True)
class Flat:
    """Every vector is compared."""


@typed_json.union_member
@dataclasses.dataclass(frozen=True, kw_only=True)
class IvfFlat:
    """Cells of k-means; the vectors of the nearest cells are compared.

    Attributes:
      nlist: how many cells.
      nprobe: how many of them are searched.
    """

    nlist: int
    nprobe: int

    def __post_init__(self) -> None:
        _check_cells(self.nlist, self.nprobe)


@typed_json.union_member
@dataclasses.dataclass(frozen=True, kw_only=True)
class IvfPq:
    """Cells of k-means whose vectors are product-quantised; the best are scored again with the true vectors.

    Attributes:
      nlist: how many cells.
      nprobe: how many of them are searched.
      num_subvectors: parts that a vector is cut into (faiss's M).
      num_bits: bits of the code of each part.
      refine_factor: the best `refine_factor * k` are scored again, for which a search holds the true vectors in memory;
        0 returns the approximate scores and keeps no vectors.
    """

    nlist: int
    nprobe: int
    num_subvectors: int
    num_bits: int
    refine_factor: int

    def __post_init__(self) -> None:
        _check_cells(self.nlist, self.nprobe)
        if not 1 <= self.num_bits <= 12:
            raise UsageError(f"num_bits={self.num_bits} must be between 1 and 12; 8 is usual")
        if self.num_subvectors < 1:
            raise UsageError(f"num_subvectors={self.num_subvectors} must be at least 1")
        if self.refine_factor < 0:
            raise UsageError(f"refine_factor={self.refine_factor} must be at least 0 (no refinement); 10 is usual")


@typed_json.union_member
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hnsw:
    """A navigable small-world graph.

    Attributes:
      num_neighbors: edges of a node (faiss's M).
      ef_construction: candidates looked at while building.
      ef_search: candidates looked at while searching.

    Reference: Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using HNSW graphs, 2018.
    """

    num_neighbors: int
    ef_construction: int
    ef_search: int

    def __post_init__(self) -> None:
        if self.num_neighbors < 2:
            raise UsageError(f"num_neighbors={self.num_neighbors} must be at least 2; 32 is usual")
        if min(self.ef_construction, self.ef_search) < 1:
            raise UsageError(
                f"ef_construction={self.ef_construction} and ef_search={self.ef_search} must be at least 1"
            )


Parameters = Flat | IvfFlat | IvfPq | Hnsw


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """What is asked for: a kind, and those of its parameters that are not to be chosen.

    Attributes:
      kind: `flat`, `ivf_flat`, `ivf_pq` or `hnsw`.
      nlist: cells (IVF).
      nprobe: cells searched (IVF).
      num_subvectors: parts of a vector (PQ); must divide its dims.
      num_bits: bits of a part's code (PQ).
      refine_factor: times k candidates scored again (PQ); 0 for none.
      num_neighbors: edges of a node (HNSW).
      ef_construction: candidates while building (HNSW).
      ef_search: candidates while searching (HNSW).
    """

    kind: Kind
    nlist: int | None = None
    nprobe: int | None = None
    num_subvectors: int | None = None
    num_bits: int | None = None
    refine_factor: int | None = None
    num_neighbors: int | None = None
    ef_construction: int | None = None
    ef_search: int | None = None

    def __post_init__(self) -> None:
        taken = _PARAMETERS_OF[self.kind]
        given = [f.name for f in dataclasses.fields(self) if f.name != "kind" and getattr(self, f.name) is not None]
        foreign = [name for name in given if name not in taken]
        if foreign:
            raise UsageError(
                f"a {self.kind} index has no {' or '.join(foreign)}; it takes {', '.join(taken) or 'no parameters'}"
            )


_PARAMETERS_OF: dict[Kind, tuple[str, ...]] = {
    "flat": (),
    "ivf_flat": ("nlist", "nprobe"),
    "ivf_pq": ("nlist", "nprobe", "num_subvectors", "num_bits", "refine_factor"),
    "hnsw": ("num_neighbors", "ef_construction", "ef_search"),
}


def choose_parameters(request: IndexRequest, num_rows: int, num_dims: int) -> Parameters:
    """All parameters of an index over N vectors of E dims.

    Args:
      request: what is settled already.
      num_rows: N.
      num_dims: E.

    Raises:
      UsageError: a parameter does not fit the others or E.
      DataError: N is too small to train the k-means; the message names the minimum.

    >>> choose_parameters(IndexRequest(kind="ivf_flat"), 100_000, 128)
    IvfFlat(nlist=1024, nprobe=64)
    >>> choose_parameters(IndexRequest(kind="ivf_pq"), 1_000_000, 384).num_subvectors
    96
    """
    if request.kind == "flat":
        return Flat()
    if request.kind == "hnsw":
        return Hnsw(
            num_neighbors=_or(request.num_neighbors, 32),
            ef_construction=_or(request.ef_construction, 200),
            ef_search=_or(request.ef_search, 128),
        )
    nlist = _or(request.nlist, _choose_nlist(num_rows))
    nprobe = _or(request.nprobe, min(nlist, max(8, nlist // 16)))
    if request.kind == "ivf_flat":
        cells = IvfFlat(nlist=nlist, nprobe=nprobe)
        _require_trainable(num_rows, nlist, f"ivf_flat with nlist={nlist}", "a smaller nlist, or --kind flat or hnsw")
        return cells
    num_bits = _or(request.num_bits, _choose_num_bits(num_rows))
    quantised = IvfPq(
        nlist=nlist,
        nprobe=nprobe,
        num_subvectors=_or(request.num_subvectors, _choose_num_subvectors(num_dims, num_bits)),
        num_bits=num_bits,
        refine_factor=_or(request.refine_factor, 10),
    )
    if num_dims % quantised.num_subvectors:
        divisors = ", ".join(str(d) for d in range(1, num_dims + 1) if num_dims % d == 0)
        raise UsageError(f"num_subvectors={quantised.num_subvectors} must divide the dims {num_dims}; use {divisors}")
    what = f"ivf_pq with nlist={nlist} and num_bits={num_bits}"
    _require_trainable(num_rows, max(nlist, 2**num_bits), what, "smaller ones, or --kind flat or hnsw")
    return quantised


def _or(given: int | None, chosen: int) -> int:
    return chosen if given is None else given


def _choose_nlist(num_rows: int) -> int:
    """The power of two nearest to 4 sqrt(N) (faiss's guideline for N < 1M), with enough vectors for each centroid."""
    nearest = 2 ** round(math.log2(4 * math.sqrt(max(num_rows, 1))))
    return max(1, min(nearest, num_rows // POINTS_PER_CENTROID))


def _choose_num_bits(num_rows: int) -> int:
    return next((bits for bits in _PQ_BITS if POINTS_PER_CENTROID * 2**bits <= num_rows), _PQ_BITS[-1])


def _choose_num_subvectors(num_dims: int, num_bits: int) -> int:
    """As many as make the codes a sixteenth of the vectors, E / 4 bytes: the divisor of E nearest to that."""
    wanted = 2 * num_dims / num_bits
    divisors = [d for d in range(1, num_dims + 1) if num_dims % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), -d))


def _require_trainable(num_rows: int, num_centroids: int, what: str, instead: str) -> None:
    needed = POINTS_PER_CENTROID * num_centroids
    if num_rows < needed:
        raise DataError(
            f"{what} needs at least {needed:,} vectors to train k-means ({POINTS_PER_CENTROID} for each of "
            f"{num_centroids} centroids); got {num_rows:,}: use {instead}"
        )


def _check_cells(nlist: int, nprobe: int) -> None:
    if nlist < 1:
        raise UsageError(f"nlist={nlist} must be at least 1 cell")
    if not 1 <= nprobe <= nlist:
        raise UsageError(f"nprobe={nprobe} must be between 1 and nlist={nlist}")
