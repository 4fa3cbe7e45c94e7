"""One report of all that a step costs on a topology under a plan, and what to change where it does not fit."""

import dataclasses
from typing import Any

from jaxscale import frozen, typed_json
from jaxscale.cost.chips import Chip, Topology
from jaxscale.cost.communication import Traffic, count_traffic
from jaxscale.cost.device_work import DeviceWork, count_device_work, update_hbm_bytes
from jaxscale.cost.flops import FlopCount, ModelFlops, count_flops, count_model_flops
from jaxscale.cost.gathered import copy_bytes, gathering
from jaxscale.cost.memory import MemoryUse, count_memory
from jaxscale.cost.placement import Placement, place
from jaxscale.cost.programs import Loss, forward_program, gradient_program, microbatch_of
from jaxscale.cost.roofline import StepBound, bound_step
from jaxscale.cost.utilization import Utilization, utilization
from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec
from jaxscale.sharding.gathered import gathered_dtypes
from jaxscale.sharding.jaxprs import Program
from jaxscale.sharding.plan import ShardingPlan

_MAX_TENSORS = 40


@dataclasses.dataclass(frozen=True)
class StepPrograms:
    """The programs of one microbatch of a step, traced once for any number of plans.

    Attributes:
      forward: of the loss.
      gradient: of its value and gradient.
      num_params: leaves of the parameters, which are the programs' first inputs.
      num_microbatches: that make up a step.
      frozen: positions of the parameters that have no gradient.
      gather_once: whether they share weights that are gathered once; see `jaxscale.sharding.gathered`.
    """

    forward: Program
    gradient: Program
    num_params: int
    num_microbatches: int
    frozen: tuple[int, ...] = ()
    gather_once: bool = False

    def place(self, plan: ShardingPlan) -> Placement:
        """How a plan splits the values of the gradient's program.

        Args:
          plan: derived for the same parameters and batch.
        """
        leaves = [leaf for leaf in plan.leaves if leaf.role != "optimizer"]
        shared = self.gather_once and self.num_microbatches > 1
        dtypes = gathered_dtypes(leaves, self.forward) if shared else ()
        gathered = {position: dtype for position, dtype in enumerate(dtypes) if dtype is not None}
        return place(self.gradient, plan.mesh, leaves, gathered=gathered)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepEstimate:
    """What a step costs, counted from its program and its plan; nothing was compiled or run.

    Attributes:
      mesh: how the devices are used.
      topology: what they are.
      num_microbatches: of a step.
      num_tokens: of a step; 0 where the caller gave none.
      model: FLOPs that the mathematics needs, all devices together.
      hardware: FLOPs of the program that is run, all devices together, if none is done twice.
      work: of one device; FLOPs that several devices do are counted on each.
      memory: of one device at its peak; `tensors` has the largest only.
      traffic: of one device.
      bound: on the step's time.
      tokens_per_s: at most, by the overlapped bound; None where a figure of the chip is missing.
      utilization: at most, by the same bound.
      assumptions: what the figures take for granted.
      gathered_bytes: of one device, in copies of weights that are gathered once for all microbatches; 0 where each
        microbatch gathers them.
    """

    mesh: MeshSpec
    topology: Topology
    num_microbatches: int
    num_tokens: int
    model: ModelFlops
    hardware: FlopCount
    work: DeviceWork
    memory: MemoryUse
    traffic: Traffic
    bound: StepBound
    tokens_per_s: float | None
    utilization: Utilization | None
    assumptions: tuple[str, ...]
    gathered_bytes: int = typed_json.added(0)

    @property
    def repeated_work(self) -> float:
        """FLOPs of all devices over those of the program: above 1 where devices do the same."""
        return sum(self.work.flops.values()) * self.mesh.num_devices / max(self.hardware.total, 1)

    def fits(self, chip: Chip | None = None) -> bool | None:
        """Whether the peak is within the memory that a program may use of a device; None where that is not known.

        Args:
          chip: of another topology; by default that of the estimate.
        """
        limit = (chip or self.topology.chip).limit_bytes_per_device
        return None if limit is None else self.memory.peak <= limit

    def to_json(self) -> Any:
        """The report as JSON values."""
        return typed_json.encode(self)

    @classmethod
    def from_json(cls, value: Any) -> "StepEstimate":
        """The report that `to_json` wrote.

        Raises:
          DataError: a field is unknown, missing or mistyped.
        """
        return typed_json.decode(cls, value, "estimate")


def trace_programs(
    loss: Loss, params: Any, batch: Any, *, num_microbatches: int = 1, gather_once: bool = False
) -> StepPrograms:
    """Traces one microbatch of a step; nothing is computed.

    Args:
      loss: a traceable function of (params, batch) that returns a scalar.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      batch: the global batch, a tree of the same; the leading dim of every leaf holds the examples.
      num_microbatches: equal parts that the batch is cut into, one after the other.
      gather_once: whether they share weights that are gathered once.

    Raises:
      UsageError: the batch can't be cut so.
    """
    part = microbatch_of(batch, num_microbatches)
    gradient = gradient_program(loss, params, part)
    forward, num_params = forward_program(loss, params, part), len(gradient.outputs) - 1
    return StepPrograms(forward, gradient, num_params, num_microbatches, frozen.positions(params), gather_once)


def estimate_step(
    programs: StepPrograms, plan: ShardingPlan, topology: Topology, *, num_tokens: int = 0, donated: bool = True
) -> StepEstimate:
    """Counts a step under a plan on a topology.

    Args:
      programs: as `trace_programs` made them.
      plan: derived for the same parameters, batch and optimizer.
      topology: whose chips have the plan's mesh.
      num_tokens: of a step, for the tokens per second.
      donated: whether the update writes over the old parameters and state.

    Raises:
      UsageError: the plan is of another computation, or its mesh has another number of devices.
    """
    leaves = [leaf for leaf in plan.leaves if leaf.role != "optimizer"]
    if len(leaves) != len(programs.gradient.inputs):
        raise UsageError(
            f"the plan has {len(leaves)} parameters and batch leaves, the step {len(programs.gradient.inputs)}; "
            "derive the plan from the same loss, parameters and batch"
        )
    number = programs.num_microbatches
    placement = programs.place(plan)
    work = count_device_work(programs.gradient, placement).times(number)
    work = dataclasses.replace(work, hbm_bytes=work.hbm_bytes + update_hbm_bytes(plan))
    memory = count_memory(programs.gradient, placement, plan, num_microbatches=number, donated=donated)
    traffic = count_traffic(programs.gradient, placement).times(number) + gathering(plan, placement.gathered)
    model = count_model_flops(programs.forward, programs.num_params, programs.frozen).times(number)
    hardware = count_flops(programs.gradient).times(number)
    bound = bound_step(
        flops_by_dtype=work.flops,
        hbm_bytes=work.hbm_bytes,
        traffic=traffic,
        mesh=plan.mesh,
        topology=topology,
        num_microbatches=number,
    )
    return StepEstimate(
        mesh=plan.mesh,
        topology=topology,
        num_microbatches=number,
        num_tokens=num_tokens,
        model=model,
        hardware=hardware,
        work=work,
        memory=dataclasses.replace(memory, tensors=memory.tensors[:_MAX_TENSORS]),
        traffic=traffic,
        bound=bound,
        tokens_per_s=num_tokens / bound.overlapped_s if bound.overlapped_s and num_tokens else None,
        utilization=_utilization(model, hardware, bound, plan.mesh, topology.chip),
        assumptions=_assumptions(plan, hardware, topology, donated),
        gathered_bytes=sum(copy_bytes(plan, placement.gathered).values()),
    )


def _utilization(
    model: ModelFlops, hardware: FlopCount, bound: StepBound, mesh: MeshSpec, chip: Chip
) -> Utilization | None:
    """At the overlapped bound, against the peak of the dtype that most FLOPs are done in."""
    dtype = max(hardware.contractions, key=hardware.contractions.__getitem__, default="bfloat16")
    peak = chip.peak_of(dtype)
    if not bound.overlapped_s or peak is None:
        return None
    return utilization(
        model,
        hardware.total,
        step_s=bound.overlapped_s,
        num_devices=mesh.num_devices,
        peak_flops_per_s=peak,
    )


def _assumptions(plan: ShardingPlan, hardware: FlopCount, topology: Topology, donated: bool) -> tuple[str, ...]:
    made = [
        "values that no split of a leaf leads to are whole on every device",
        "operations on elements are fused with contractions and reductions",
        "the optimizer's update moves nothing between devices",
        f"old parameters and state are {'written over' if donated else 'kept until the update is done'}",
    ]
    chip, mesh = topology.chip, plan.mesh
    num_joined = mesh.num_devices // mesh.slice // chip.devices_per_chip
    if chip.domain_chips is not None and num_joined > chip.domain_chips:
        made.append(f"the fast network joins {num_joined} chips, though its domain has {chip.domain_chips}")
    made += [f"the while loop at {source} runs once" for source in hardware.unbounded_loops]
    made += [f"{name} costs nothing" for name in hardware.not_counted]
    made += [f"{n.primitive} (first at {n.source}) splits nothing" for n in plan.not_understood]
    return tuple(made)
