"""A ShardingPlan: for every leaf a spec with its reasons; turned into shardings on a mesh, a table, and JSON."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, axis_of, in_parts, spec_of
from jaxscale.observe.units import format_bytes
from jaxscale.sharding.activations import PlannedActivation
from jaxscale.sharding.graph import NotUnderstood, Role, path_of
from jaxscale.sharding.islands import IslandsOnMesh, PlannedIsland
from jaxscale.sharding.jaxprs import Address
from jaxscale.sharding.layouts import StoredLayout
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.specs import BATCH_AXES, AxisFactors, Spec, factors_of, num_parts, partition_spec, spec_text

_HEADER = ("leaf", "shape", "split over", "per device", "of it", "rule", "why")
# Where a training state keeps what was planned; a tree with these fields is a state, any other is one of the trees.
_FIELDS: dict[Role, str] = {"parameter": "params", "optimizer": "opt_state", "batch": "batch"}


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The names of the axes, of more than one device, that the examples of a batch are split over."""
    return tuple(axis for axis, size in mesh.shape.items() if size > 1 and axis_of(axis) in BATCH_AXES)


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The leading dim over `batch_axes`, every other dim whole."""
    return NamedSharding(mesh, P(batch_axes(mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def row_sharded(mesh: Mesh) -> NamedSharding:
    """The leading dim over all devices of the mesh, its axes flattened in their order."""
    return NamedSharding(mesh, P(mesh.axis_names))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedLeaf:
    """Where one array lives, and why.

    Attributes:
      role: what the array is.
      path: its place in its tree.
      shape: of the whole array.
      dtype: its name.
      spec: for every dim the mesh axes it is split over.
      rules: the rules that placed or left it, in their order.
      reasons: what each of them says.
      rejected: what was considered and not done.
      layout: in which order it is stored, so that a dim of several parts can be split; None for the logical order.
      bytes_per_device: of the part that one device holds.
    """

    role: Role
    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: Spec
    rules: tuple[str, ...]
    reasons: tuple[str, ...]
    rejected: tuple[str, ...]
    layout: StoredLayout | None
    bytes_per_device: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingPlan:
    """Where every array of a computation lives on a mesh of one spec.

    Attributes:
      mesh: the sizes of the mesh's axes, all resolved.
      limits: what it was derived under.
      leaves: parameters, then the batch, then the optimizer's state.
      activations: the intermediate results worth pinning, in the order of the loss's program.
      not_understood: the operations that linked nothing, so that dims which meet only there are planned apart.
      islands: the functions that each device computes on its own parts.
    """

    mesh: MeshSpec
    limits: Limits
    leaves: tuple[PlannedLeaf, ...]
    activations: tuple[PlannedActivation, ...]
    not_understood: tuple[NotUnderstood, ...]
    islands: tuple[PlannedIsland, ...] = typed_json.added(())

    @property
    def factors(self) -> AxisFactors:
        """Of every axis that some array is split over in part: the ways of its parts, as `{"tensor": (2, 4)}`."""
        factors = factors_of(self.mesh, [leaf.spec for leaf in self.leaves] + [a.spec for a in self.activations])
        if factors is None:
            raise UsageError(f"mesh {self.mesh}: the parts of its axes that the plan names do not fit each other")
        return factors

    def device_mesh(self, mesh: Mesh) -> Mesh:
        """The mesh that the plan's shardings are on: the same devices in the same order, `factors` taken apart.

        Raises:
          UsageError: the mesh has another spec.
        """
        self._check_mesh(mesh)
        return in_parts(mesh, {axis: ways for axis, ways in self.factors.items() if axis in mesh.shape})

    def shardings(self, mesh: Mesh, tree: Any) -> Any:
        """The sharding of every leaf of `tree`, in the same structure; for `jit` and `device_put`.

        Args:
          mesh: of the plan's spec.
          tree: a tree of arrays (or of their shapes): the parameters, the optimizer's state, or a training state that
            has them in the fields `params` and `opt_state`. Scalars that were not planned are whole on every device.

        Raises:
          UsageError: the mesh has another spec, or a leaf was not planned, or not with this shape.
        """
        mesh, factors = self.device_mesh(mesh), self.factors

        def sharding(found: PlannedLeaf | None) -> NamedSharding:
            return replicated(mesh) if found is None else NamedSharding(mesh, partition_spec(found.spec, factors))

        leaves, structure = self._planned(tree)
        return jax.tree.unflatten(structure, [sharding(found) for found in leaves])

    def layouts(self, tree: Any) -> dict[int, StoredLayout]:
        """The layouts of those leaves that are not stored in their logical order, by position in `jax.tree.leaves`.

        For `store_leaves`, `restore_leaves`, `initialise` and `place`.

        Args:
          tree: as for `shardings`.

        Raises:
          UsageError: a leaf was not planned, or not with this shape.
        """
        found = enumerate(self._planned(tree)[0])
        return {i: leaf.layout for i, leaf in found if leaf is not None and leaf.layout is not None}

    def _planned(self, tree: Any) -> tuple[list[PlannedLeaf | None], Any]:
        """What was planned for every leaf of a tree, None for a scalar that was not, and the tree's structure."""
        planned = {(leaf.role, leaf.path): leaf for leaf in self.leaves}
        fields = {name: role for role, name in _FIELDS.items()}

        def find(key_path: tuple[Any, ...], leaf: Any) -> PlannedLeaf | None:
            path = path_of(key_path)
            field, _, inside = path.partition("/")
            candidates = [(fields[field], inside)] if field in fields else []
            candidates += [(role, path) for role in _FIELDS]
            found = next((planned[c] for c in candidates if c in planned and planned[c].shape == leaf.shape), None)
            if found is None and leaf.shape != ():
                raise UsageError(
                    f"{path} of shape {tuple(leaf.shape)} is not in the sharding plan; derive the plan from trees of "
                    f"this structure (it has {len(self.leaves)} leaves, the first is {self.leaves[0].path})"
                )
            return found

        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        return [find(key_path, leaf) for key_path, leaf in leaves], structure

    def batch_sharding(self, mesh: Mesh) -> NamedSharding:
        """The sharding of a batch's leaves that have examples: that dim over the batch's axes, the others whole.

        Raises:
          UsageError: the mesh has another spec, or splits positions too, and then no sharding is that of every leaf.
        """
        if any(leaf.role == "batch" and any(leaf.spec[1:]) for leaf in self.leaves):
            raise UsageError(
                f"mesh {self.mesh} splits more than the examples; use plan.shardings(mesh, batch), which is per leaf"
            )
        return batch_sharded(self.device_mesh(mesh))

    def activation_shardings(self, mesh: Mesh) -> dict[tuple[Address, int], tuple[NamedSharding, ...]]:
        """Where the pinned activations live, by the equation that makes each and the output that it is.

        Returns:
          For each the shardings that it goes through; the last is where it lives.

        Raises:
          UsageError: the mesh has another spec.
        """
        mesh, factors = self.device_mesh(mesh), self.factors
        return {
            (made.address, made.output): tuple(
                NamedSharding(mesh, partition_spec(spec, factors)) for spec in (*made.through, made.spec)
            )
            for made in self.activations
        }

    def islands_on(self, mesh: Mesh) -> IslandsOnMesh:
        """The functions that each device computes on its own parts, on a mesh.

        Raises:
          UsageError: the mesh has another spec.
        """
        return IslandsOnMesh(islands=self.islands, mesh=self.device_mesh(mesh), factors=self.factors)

    def total_bytes_per_device(self, role: Role) -> int:
        """The bytes of all leaves of one role that one device holds."""
        return sum(leaf.bytes_per_device for leaf in self.leaves if leaf.role == role)

    def render(self, *, every_leaf: bool = False, sources: Mapping[Address, str] | None = None) -> str:
        """The plan as a table for people, which ends with what was not understood.

        Args:
          every_leaf: also the optimizer's leaves that are split as the parameter they are made from.
          sources: the user's lines that make the pinned activations, where they are known.
        """
        shown = [leaf for leaf in self.leaves if every_leaf or leaf.rules != ("follows",)]
        hidden = [leaf for leaf in self.leaves if leaf not in shown]
        lines = [f"mesh {self.mesh}: {self.mesh.num_devices} devices", ""]
        lines += render_table([_HEADER, *(row for leaf in shown for row in _rows(leaf, self.mesh))])
        if hidden:
            held = format_bytes(sum(leaf.bytes_per_device for leaf in hidden))
            lines += ["", f"{len(hidden)} leaves of optimizer state follow their parameters: {held} per device"]
        totals = [f"{role} {format_bytes(self.total_bytes_per_device(role))}" for role in _FIELDS]
        lines += ["", f"in all, per device: {', '.join(totals)}"]
        if self.activations:
            lines += ["", f"{len(self.activations)} results are pinned where the program makes them:"]
            lines += render_table([_activation_row(made, sources or {}) for made in self.activations])
        lines += [line for island in self.islands for line in ("", island.text())]
        if not self.not_understood:
            return "\n".join([*lines, "", "not understood: nothing; every operation was followed"])
        lines += ["", "not understood, so that dims which meet only there are planned apart:"]
        lines += [
            f"  {n.primitive} x {n.count}{f', first at {n.source}' * bool(n.source)}" for n in self.not_understood
        ]
        return "\n".join(lines)

    def to_json(self) -> Any:
        """The plan as JSON values."""
        return typed_json.encode(self)

    @classmethod
    def from_json(cls, value: Any) -> "ShardingPlan":
        """The plan that `to_json` wrote.

        Raises:
          DataError: a field is unknown, missing or mistyped.
        """
        return typed_json.decode(cls, value, "plan")

    def _check_mesh(self, mesh: Mesh) -> None:
        if spec_of(mesh) != self.mesh:
            raise UsageError(f"the plan is for mesh {self.mesh}, got mesh {spec_of(mesh)}; derive a plan for that mesh")


def render_table(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines with the columns aligned, the last one free.

    >>> render_table([("a", "bb", "c"), ("aaa", "b", "d")])
    ['a    bb  c', 'aaa  b   d']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def share_of(leaf: PlannedLeaf, mesh: MeshSpec) -> str:
    """How much of a leaf one device holds: `1/8`, or `all`."""
    parts = math.prod(num_parts(mesh, axes) for axes in leaf.spec)
    return f"1/{parts}" if parts > 1 else "all"


def storage_text(layout: StoredLayout) -> str:
    """In which order a leaf is stored, for people."""
    return f"stored in {layout.num_shards} pieces of each part {layout.parts}"


def _activation_row(made: PlannedActivation, sources: Mapping[Address, str]) -> tuple[str, ...]:
    place = f"equation {'.'.join(map(str, made.address))}{f' output {made.output}' if made.output else ''}"
    shape = " ".join(map(str, made.shape))
    return f"  {sources.get(made.address) or place}", shape, spec_text(made.spec), made.rule, made.reason


def _rows(leaf: PlannedLeaf, mesh: MeshSpec) -> list[tuple[str, ...]]:
    shape = " ".join(map(str, leaf.shape)) or "scalar"
    name = leaf.path if leaf.role == "parameter" else f"{_FIELDS[leaf.role]}: {leaf.path}".removesuffix(": ")
    whys = list(zip(leaf.rules, leaf.reasons, strict=True))
    if leaf.layout is not None:
        whys.append(("", storage_text(leaf.layout)))
    whys += [("rejected", reason) for reason in leaf.rejected]
    held = (format_bytes(leaf.bytes_per_device), share_of(leaf, mesh))
    first = (name, f"{shape} {leaf.dtype}", spec_text(leaf.spec), *held, *whys[0])
    return [first, *(("", "", "", "", "", *why) for why in whys[1:])]
