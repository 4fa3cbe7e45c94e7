"""The contraction graph: which dims of which arrays must be split together, and which operations contract them.

Plain data, made by `trace` and read by the rules. Dims are tuples of factors (see `factors`), most significant first.
"""

import dataclasses
import math
from typing import Any, Literal

import jax

from jaxscale.sharding.factors import Dim, Dims
from jaxscale.sharding.jaxprs import Address

Role = Literal["parameter", "optimizer", "batch"]
Kind = Literal["contraction", "lookup", "routing", "boundary"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """One array that lives across steps or comes in with a batch."""

    role: Role
    # Where it stands in its tree; a label for people, which no rule reads.
    path: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    dims: Dims
    # Of optimizer state: the position, among the leaves, of the one parameter whose gradient it is made from.
    follows: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operand:
    """One side of a contraction."""

    # Which value it is; two contractions that read the same one say so.
    value: int
    # Whether it depends on the batch; else it is made of parameters and constants alone.
    is_data: bool
    num_elements: int
    # The parameters (positions among the leaves) it is made of, where it does not depend on the batch.
    parameters: frozenset[int]
    # Factors of the dims that the other side does not have, in their order.
    free: Dim
    shape: tuple[int, ...] = ()
    dims: Dims = ()
    # The equation that made it and which of its outputs it is; None where that can't be told where to live.
    made_by: tuple[Address, int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contraction:
    """A `dot_general`, run `num_runs` times in a step's forward pass."""

    left: Operand
    right: Operand
    contracted: Dim
    batch: Dim
    num_outputs: int
    num_flops: int
    num_runs: int
    # Where it stands, and the user's line that made it.
    address: Address = ()
    source: str = ""
    # Whether it stands in a `shard_map`, where what each device computes is written by hand.
    is_manual: bool = False
    # Whether the backward pass computes it again, rather than keep what it made.
    is_recomputed: bool = False

    @property
    def is_of_parameters(self) -> bool:
        """Whether it multiplies something that depends on the batch with something that does not."""
        return self.left.is_data != self.right.is_data

    @property
    def outputs(self) -> frozenset[int]:
        """Every factor of what it makes."""
        return frozenset((*self.batch, *self.left.free, *self.right.free))

    @property
    def factors(self) -> frozenset[int]:
        """Every factor that takes part."""
        return frozenset(self.contracted) | self.outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reduction:
    """A sum, maximum or the like, of something that depends on the batch, over whole dims."""

    reduced: frozenset[int]
    num_outputs: int
    num_runs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activation:
    """A result that can be told where to live: of a contraction, of a lookup, of a custom rule that holds such."""

    kind: Kind
    address: Address
    # Which output of the equation.
    output: int
    shape: tuple[int, ...]
    dims: Dims
    # Of a contraction: its position among the graph's.
    contraction: int | None = None
    # Factors of what is indexed, of a lookup or a routing.
    indexed: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnParts:
    """A function that the devices may compute on their own parts of its operands; see `on_parts`."""

    address: Address
    # The letters of the dims.
    dims: str
    operands: tuple[Dims, ...]
    # Of every operand that does not depend on the batch, the parameters (positions among the leaves) it is made of.
    parameters: tuple[frozenset[int], ...]
    # The user's line that made it.
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concatenation:
    """A dim that is several dims one after the other: joined by `concatenate`, or taken apart by `split` or slices.

    A fused projection's dim is one: its parts are the queries, the keys and the values.
    """

    dim: Dim
    # Factors of every part, in order, and where each begins.
    parts: tuple[Dim, ...]
    starts: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """An array that the computation closes over: every device gets a copy."""

    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    # The first line of the user's that reads it.
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraint:
    """A `with_sharding_constraint` of the user's: the parts that it asks for of every dim, and over what."""

    shape: tuple[int, ...]
    num_bytes: int
    parts: tuple[tuple[int, tuple[str, ...]], ...]
    # The user's line.
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotUnderstood:
    """A primitive that links nothing, as there is no rule for it; `source` is the first line of the user's with one."""

    primitive: str
    count: int
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """All that the rules know of a computation."""

    leaves: tuple[Leaf, ...]
    # The size of every factor that stands in some leaf or contraction.
    sizes: dict[int, int]
    contractions: tuple[Contraction, ...]
    reductions: tuple[Reduction, ...]
    # Factors that a scan goes through one by one.
    scanned: frozenset[int]
    # Factors that are indexed by something that depends on the batch: the rows of an embedding.
    looked_up: frozenset[int]
    not_understood: tuple[NotUnderstood, ...]
    # Factors along which the batch decides what goes where: a scatter's targets, a choice by `top_k`, a one-hot.
    routed: frozenset[int] = frozenset()
    activations: tuple[Activation, ...] = ()
    concatenations: tuple[Concatenation, ...] = ()
    # Pairs of a dim and a slice of it (or a padding): what splits the first can split the second where it divides.
    slices: tuple[tuple[Dim, Dim], ...] = ()
    on_parts: tuple[OnParts, ...] = ()
    constants: tuple[Constant, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    # Factors that a primitive made which is not understood: what they are split over is not known.
    unknown: frozenset[int] = frozenset()

    def dim_size(self, dim: Dim) -> int:
        """The size of a dim: the product of its factors."""
        return math.prod(self.sizes[factor] for factor in dim)


def path_of(key_path: tuple[Any, ...]) -> str:
    """A leaf's place in its tree, as `layers/mlp/up/kernel`: a label, which no rule reads."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")
