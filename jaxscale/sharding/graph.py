"""The contraction graph: which dims of which arrays must be split together, and which operations contract them.

Plain data, made by `trace` and read by the rules. Dims are tuples of factors (see `factors`), most significant first.
"""

import dataclasses
import math
from typing import Any, Literal

import jax

from jaxscale.sharding.factors import Dim, Dims

Role = Literal["parameter", "optimizer", "batch"]


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

    def dim_size(self, dim: Dim) -> int:
        """The size of a dim: the product of its factors."""
        return math.prod(self.sizes[factor] for factor in dim)


def path_of(key_path: tuple[Any, ...]) -> str:
    """A leaf's place in its tree, as `layers/mlp/up/kernel`: a label, which no rule reads."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")
