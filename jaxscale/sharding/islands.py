"""What a plan says of functions that devices compute on their own parts: the parts, and the `shard_map` of each."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, axis_of
from jaxscale.sharding import rewrite
from jaxscale.sharding.factors import Dims
from jaxscale.sharding.graph import Graph, OnParts
from jaxscale.sharding.jaxprs import Address
from jaxscale.sharding.on_parts import NAME, Body, Parts, parse
from jaxscale.sharding.rewrite import Edit
from jaxscale.sharding.specs import AxisFactors, DimAxes, Spec, names_on_mesh, partition_spec
from jaxscale.sharding.splits import Splits, spec_of_value


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedIsland:
    """A function of `on_parts`, and the parts of its operands that each device computes it on.

    Attributes:
      address: of its equation, in the program of the loss.
      dims: the letters of the dims of its operands and its result.
      axes: of the letters whose dims are split: what they are computed over.
      stored: of every operand, dim by dim, the axes over which it is only kept in parts; the function gathers these.
      source: the user's line.
    """

    address: Address
    dims: str
    axes: dict[str, DimAxes]
    stored: tuple[Spec, ...]
    source: str

    def text(self) -> str:
        """The island for people."""
        split = [f"{letter} over {'*'.join(axes)}" for letter, axes in sorted(self.axes.items())]
        gathered = sorted({axis for spec in self.stored for axes in spec for axis in axes})
        what = ", ".join([*split, *(f"what is kept over {axis} gathered" for axis in gathered)])
        return f"each device computes its own part of {self.source or self.dims}, {self.dims}: {what}"


def islands_of(graph: Graph, mesh: MeshSpec, specs: Sequence[Spec], splits: Splits) -> tuple[PlannedIsland, ...]:
    """The islands of a computation; none where nothing of a function's operands is split.

    Args:
      graph: the computation.
      mesh: with every size resolved.
      specs: one per leaf of the graph.
      splits: what its factors are computed over.
    """
    found = (_island(graph, mesh, specs, splits, function) for function in graph.on_parts)
    return tuple(island for island in found if island.axes or any(any(spec) for spec in island.stored))


@dataclasses.dataclass(frozen=True, kw_only=True)
class IslandsOnMesh:
    """The islands of a plan on a mesh.

    Attributes:
      islands: of the plan.
      mesh: that the plan's shardings are on.
      factors: the axes that it has taken apart.
    """

    islands: tuple[PlannedIsland, ...]
    mesh: Mesh
    factors: AxisFactors

    def edits_of(self, jaxpr: Any) -> dict[Address, Edit]:
        """The islands as edits of the program that they were planned for: each a `shard_map` in place of its equation.

        Raises:
          UsageError: it is another program.
        """
        edits = {}
        for island in self.islands:
            equation = rewrite.find(jaxpr, island.address)
            if equation is None or equation.primitive.name != NAME:
                raise UsageError(
                    f"address {island.address} has no function of on_parts, where the plan has {island.source}; derive "
                    "the plan from this function, with arguments of these shapes"
                )
            body = equation.params["body"]
            edits[island.address] = Edit(replacement=_shard_map(body, island, self.mesh, self.factors))
        return edits


def _island(graph: Graph, mesh: MeshSpec, specs: Sequence[Spec], splits: Splits, function: OnParts) -> PlannedIsland:
    letters, _ = parse(function.dims)
    axes: dict[str, DimAxes] = {}
    for names, dims in zip(letters, function.operands, strict=True):
        for letter, mine in zip(names, spec_of_value(graph, mesh, dims, splits), strict=True):
            if letter.isupper() and mine:
                axes.setdefault(letter, mine)
    stored = []
    for names, dims, parameters in zip(letters, function.operands, function.parameters, strict=True):
        kept: list[DimAxes] = [()] * len(names)
        if len(parameters) == 1:
            (parameter,) = parameters
            kept = _kept(graph.leaves[parameter].dims, specs[parameter], dims)
        computed = {axis_of(axis) for letter in names for axis in axes.get(letter, ())}
        stored.append(tuple(tuple(axis for axis in one if axis_of(axis) not in computed) for one in kept))
    return PlannedIsland(
        address=function.address, dims=function.dims, axes=axes, stored=tuple(stored), source=function.source
    )


def _kept(leaf: Dims, spec: Spec, dims: Dims) -> list[DimAxes]:
    """Over which axes each of these dims is kept, by the dim of the parameter that has the same factors."""
    by_dim = {dim: axes for dim, axes in zip(leaf, spec, strict=True) if dim}
    return [by_dim.get(dim, ()) for dim in dims]


def _shard_map(body: Body, island: PlannedIsland, mesh: Mesh, factors: AxisFactors) -> "_ShardMap":
    letters, result = parse(island.dims)

    def spec_of(names: str, kept: Spec) -> PartitionSpec:
        computed = (island.axes.get(letter, ()) for letter in names)
        return partition_spec(tuple((*mine, *also) for mine, also in zip(computed, kept, strict=True)), factors)

    def on_mesh(axes: DimAxes) -> tuple[str, ...]:
        return tuple(name for axis in axes for name in names_on_mesh(axis, factors))

    return _ShardMap(
        body=body,
        parts=Parts(
            axes=tuple((letter, on_mesh(axes)) for letter, axes in sorted(island.axes.items())),
            stored=tuple(
                tuple((dim, on_mesh(axes)) for dim, axes in enumerate(spec) if axes) for spec in island.stored
            ),
            platform=mesh.devices.flat[0].platform,
        ),
        mesh=mesh,
        in_specs=tuple(spec_of(names, kept) for names, kept in zip(letters, island.stored, strict=True)),
        out_spec=spec_of(result, ((),) * len(result)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ShardMap:
    """The function on parts of its operands: what stands in the place of its equation."""

    body: Body
    parts: Parts
    mesh: Mesh
    in_specs: tuple[PartitionSpec, ...]
    out_spec: PartitionSpec

    def __call__(self, *operands: jax.Array) -> jax.Array:
        # A body's sums over axes, and those of its derivative rules, are its own: there is nothing for jax to check.
        mapped = jax.shard_map(
            functools.partial(self.body, self.parts),
            mesh=self.mesh,
            in_specs=self.in_specs,
            out_specs=self.out_spec,
            check_vma=False,
        )
        made: jax.Array = mapped(*operands)
        return made
