"""The peak of a device's memory in a step, by class: from the plan's leaves and the liveness of the gradient's program.

Two moments can be the peak: the worst of the forward and backward pass, or the optimizer's update, when all gradients
are there. Donated, the update writes over the old parameters and state; else it needs them twice. Copies of weights
that are gathered once for all microbatches are there until the last of these is done.
"""

import dataclasses
from typing import Literal

from jaxscale.cost.gathered import copy_bytes
from jaxscale.cost.liveness import Held, follow
from jaxscale.cost.placement import Placement
from jaxscale.sharding import jaxprs
from jaxscale.sharding.graph import Role
from jaxscale.sharding.jaxprs import Program
from jaxscale.sharding.plan import PlannedLeaf, ShardingPlan

MemoryClass = Literal["parameters", "optimizer", "batch", "gradients", "kept", "temporaries"]
_CLASS_OF: dict[Role, MemoryClass] = {"parameter": "parameters", "optimizer": "optimizer", "batch": "batch"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """One array in a device's memory at the peak.

    Attributes:
      kind: the class it is counted in.
      name: a leaf's path, or the operation that made it.
      source: the user's line that made it; empty for leaves.
      shape: of the whole array.
      dtype: its name.
      num_bytes: of one device's part.
    """

    kind: MemoryClass
    name: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes on one device at the moment of a step when most are in use.

    Attributes:
      parameters: as the plan stores them.
      optimizer: its state.
      batch: the examples of all microbatches.
      gradients: those there at the peak, and the sums over microbatches.
      kept: activations kept for the backward pass that are there at the peak.
      temporaries: everything else that is there at the peak.
      all_kept: activations kept when the backward pass begins, whether or not that is the peak.
      moment: which moment the peak is.
      tensors: all arrays that are there, largest first.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    kept: int
    temporaries: int
    all_kept: int
    moment: Literal["backward", "update"]
    tensors: tuple[Tensor, ...]

    @property
    def by_class(self) -> dict[str, int]:
        """The bytes of every class."""
        names = ("parameters", "optimizer", "batch", "gradients", "kept", "temporaries")
        return {name: getattr(self, name) for name in names}

    @property
    def peak(self) -> int:
        """The sum of the classes."""
        return sum(self.by_class.values())


def count_memory(
    program: Program, placement: Placement, plan: ShardingPlan, *, num_microbatches: int = 1, donated: bool = True
) -> MemoryUse:
    """The peak of a training step.

    Args:
      program: the gradient's, of one microbatch, as `programs.gradient_program` makes it.
      placement: of the same program.
      plan: of the step; its leaves are counted as they are stored.
      num_microbatches: gradients are summed over; above 1 the sums are there beside a microbatch's gradients.
      donated: whether the update writes over the old parameters and state.

    Reference: Korthikanti et al. 2022, section 4 (activations of a Transformer), https://arxiv.org/abs/2205.05198;
    Rajbhandari et al. 2019 (ZeRO), section 3, https://arxiv.org/abs/1910.02054
    """
    liveness = follow(program, placement)
    leaves = _stored(program, plan, num_microbatches)
    gradients = _gradients(program, placement, plan)
    in_backward = [_of_value(held) for held in liveness.worst.values]
    if num_microbatches > 1:
        in_backward += [dataclasses.replace(g, name=f"sum of gradients: {g.name}") for g in gradients]
    in_backward += _copies(placement, plan)
    in_update = list(gradients)
    if not donated:
        copied = [tensor for tensor in leaves if tensor.kind in ("parameters", "optimizer")]
        in_update += [dataclasses.replace(t, kind="temporaries", name=f"new {t.name}") for t in copied]
    is_update = _total(in_update) > _total(in_backward)
    made = in_update if is_update else in_backward
    tensors = sorted((*leaves, *made), key=lambda tensor: -tensor.num_bytes)
    by_class = {kind: _total([t for t in tensors if t.kind == kind]) for kind in _CLASSES}
    return MemoryUse(
        **by_class,
        all_kept=liveness.between_passes.num_bytes,
        moment="update" if is_update else "backward",
        tensors=tuple(tensors),
    )


_CLASSES: tuple[MemoryClass, ...] = ("parameters", "optimizer", "batch", "gradients", "kept", "temporaries")


def _total(tensors: list[Tensor]) -> int:
    return sum(tensor.num_bytes for tensor in tensors)


def _stored(program: Program, plan: ShardingPlan, num_microbatches: int) -> tuple[Tensor, ...]:
    """What is there before the step; of the batch `num_microbatches` times what the program reads."""
    batch = {
        leaf.path: (num_microbatches * shape[0], leaf.shape[0])
        for leaf, shape in zip(plan.leaves, map(jaxprs.shape_of, program.inputs), strict=False)
        if leaf.role == "batch" and leaf.shape
    }

    def num_bytes(leaf: PlannedLeaf) -> int:
        # The plan may be of one microbatch or of all of them.
        all_of_them, planned = batch.get(leaf.path, (1, 1)) if leaf.role == "batch" else (1, 1)
        return leaf.bytes_per_device * all_of_them // planned

    return tuple(_of_leaf(leaf, num_bytes(leaf)) for leaf in plan.leaves)


def _copies(placement: Placement, plan: ShardingPlan) -> list[Tensor]:
    """Weights that were gathered for all microbatches."""
    found = copy_bytes(plan, placement.gathered).items()
    return [
        Tensor(
            kind="temporaries",
            name=f"gathered: {plan.leaves[position].path}",
            source="",
            shape=plan.leaves[position].shape,
            dtype=str(placement.gathered[position]),
            num_bytes=num_bytes,
        )
        for position, num_bytes in found
    ]


def _of_leaf(leaf: PlannedLeaf, num_bytes: int) -> Tensor:
    return Tensor(
        kind=_CLASS_OF[leaf.role],
        name=leaf.path,
        source="",
        shape=leaf.shape,
        dtype=leaf.dtype,
        num_bytes=num_bytes,
    )


def _of_value(held: Held) -> Tensor:
    kind: MemoryClass = "gradients" if held.is_gradient else "kept" if held.is_kept else "temporaries"
    return Tensor(
        kind=kind,
        name=held.what,
        source=held.source,
        shape=held.shape,
        dtype=held.dtype,
        num_bytes=held.num_bytes,
    )


def _gradients(program: Program, placement: Placement, plan: ShardingPlan) -> list[Tensor]:
    """All gradients, as they are stored."""
    paths = [leaf.path for leaf in plan.leaves if leaf.role == "parameter"]
    made = []
    for path, variable in zip(paths, program.outputs[1:], strict=True):
        shape = jaxprs.shape_of(variable)
        dtype = variable.aval.dtype
        size = placement.bytes_of((), variable, kept=True) if not jaxprs.is_literal(variable) else dtype.itemsize
        made.append(Tensor(kind="gradients", name=path, source="", shape=shape, dtype=str(dtype), num_bytes=size))
    return made
