"""Tables that say which tensor of a Hugging Face folder is which of our parameters, read in both directions.

A row names their tensor, our leaf, and how the dims of the one become those of the other:

    Row("model.layers.{layer}.self_attn.q_proj.weight", "layers/attention/query/kernel", "(H C) D -> D H C")

Their [H * C, D] is our [D, H, C]; from right to left the same row exports it. Dims in parentheses are one dim, the
first changing slowest. `1:3` is a dim of 3 out of which the second is meant: GPT-2 keeps query, key and value in one.
`{layer}` and `{expert}` count from 0, and are the first dims of our leaf, which holds all layers.

Legend: D model, H query heads, K key-value heads, C head width, F feed-forward, E experts, V vocabulary, P positions,
T token types, R buckets of relative positions.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from jaxscale.nn.config import NUM_RELATIVE_BUCKETS, TransformerConfig

_COUNTERS = ("layer", "expert")


class Row(NamedTuple):
    """One line of a family's table.

    Attributes:
      theirs: the tensor's name, with `{layer}` and `{expert}` where there is one for each.
      ours: the leaf's path.
      dims: theirs -> ours.
    """

    theirs: str
    ours: str
    dims: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rearranged:
    """Dims of one tensor as another's: an exact, invertible reshape and transpose.

    Attributes:
      factored: the tensor's shape with every dim in parentheses taken apart.
      shape: the tensor's shape.
      taken: for every factored dim the index that is meant, or None for all of it.
      order: of the dims that are left, as ours has them.
    """

    factored: tuple[int, ...]
    shape: tuple[int, ...]
    taken: tuple[int | None, ...]
    order: tuple[int, ...]

    @property
    def ours_shape(self) -> tuple[int, ...]:
        """The shape that it has with us."""
        left = [size for size, index in zip(self.factored, self.taken, strict=True) if index is None]
        return tuple(left[i] for i in self.order)

    def as_ours(self, theirs: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Our array as a view of theirs: to read it from there, and to write it there.

        >>> theirs = np.arange(6).reshape(2, 3)
        >>> parse("(H C) D -> D H C", {"H": 2, "C": 1, "D": 3}).as_ours(theirs)[:, 1, 0].tolist()
        [3, 4, 5]
        >>> theirs = np.zeros((1, 4))
        >>> parse("D (1:2 F) -> D F", {"D": 1, "F": 2}).as_ours(theirs)[...] = [[7, 8]]
        >>> theirs.tolist()
        [[0.0, 0.0, 7.0, 8.0]]
        """
        taken = tuple(slice(None) if index is None else index for index in self.taken)
        return theirs.reshape(self.factored)[taken].transpose(self.order)


def parse(dims: str, sizes: Mapping[str, int]) -> Rearranged:
    """Reads the third column of a table.

    Args:
      dims: theirs -> ours.
      sizes: of the dims.

    >>> parse("D (0:3 H C) -> D H C", {"D": 4, "H": 2, "C": 2}).shape
    (4, 12)
    """
    left, right = dims.split(" -> ")
    groups = [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", left)]
    factors = [factor for group in groups for factor in group]
    size_of = {factor: int(factor.partition(":")[2]) if ":" in factor else sizes[factor] for factor in factors}
    kept = [factor for factor in factors if ":" not in factor]
    return Rearranged(
        factored=tuple(size_of[factor] for factor in factors),
        shape=tuple(math.prod(size_of[factor] for factor in group) for group in groups),
        taken=tuple(int(factor.partition(":")[0]) if ":" in factor else None for factor in factors),
        order=tuple(kept.index(factor) for factor in right.split()),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """One tensor of theirs and where it belongs.

    Attributes:
      theirs: its name.
      ours: our leaf's path.
      index: where in the leaf: of the layer, or the layer and the expert; empty for a leaf that is not stacked.
      rearranged: how its dims become ours.
      stacked: the sizes of the dims that `index` counts in.
    """

    theirs: str
    ours: str
    index: tuple[int, ...]
    rearranged: Rearranged
    stacked: tuple[int, ...]

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        """Of our whole leaf."""
        return self.stacked + self.rearranged.ours_shape


def places(rows: Sequence[Row], config: TransformerConfig) -> list[Place]:
    """A table's rows for each layer and expert of a Transformer, or of one of an encoder-decoder's two stacks."""
    sizes = sizes_of(config)
    counts = {"layer": config.num_layers, "expert": sizes["E"]}
    found = []
    for row in rows:
        counted = [name for name in _COUNTERS if f"{{{name}}}" in row.theirs]
        rearranged = parse(row.dims, sizes)
        for index in itertools.product(*(range(counts[name]) for name in counted)):
            name = row.theirs.format(**dict(zip(counted, index, strict=True)))
            stacked = tuple(counts[name] for name in counted)
            found.append(Place(theirs=name, ours=row.ours, index=index, rearranged=rearranged, stacked=stacked))
    return found


def sizes_of(config: TransformerConfig) -> dict[str, int]:
    """The sizes that letters stand for."""
    return {
        "D": config.d_model,
        "H": config.num_heads,
        "K": config.num_kv_heads,
        "C": config.head_dim,
        "F": config.d_ff,
        "E": 0 if config.experts is None else config.experts.num_experts,
        "V": config.vocab_size,
        "P": config.max_positions,
        "T": config.type_vocab_size,
        "R": NUM_RELATIVE_BUCKETS,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Everything about the names of one model's tensors.

    Attributes:
      places: of its tensors.
      prefix: what stands before the names in some folders, and not in others; `places` are without it.
      renamed: old endings of names and today's.
      ignored: a pattern of whole names that hold nothing learned, or heads that our model does without.
      copies: names that may be there too, and then must equal another: tied tensors.
    """

    places: Sequence[Place]
    prefix: str = ""
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: str = ""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def canonical(self, name: str) -> str:
        """The name as `places` have it."""
        name = name.removeprefix(self.prefix)
        for old, new in self.renamed.items():
            name = name.replace(old, new)
        return name

    def ignores(self, name: str) -> bool:
        """Whether a canonical name is of no use here."""
        return bool(self.ignored) and re.fullmatch(self.ignored, name) is not None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of their tensors, by name, in the order of the table."""
        return {place.theirs: place.rearranged.shape for place in self.places}

    def by_tensor(self) -> dict[str, list[Place]]:
        """Places by tensor: several where theirs holds more than one of ours."""
        grouped: dict[str, list[Place]] = {}
        for place in self.places:
            grouped.setdefault(place.theirs, []).append(place)
        return grouped

    def leaf_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of our leaves, by path."""
        return {place.ours: place.leaf_shape for place in self.places}
