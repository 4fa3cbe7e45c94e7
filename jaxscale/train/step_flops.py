"""What one step computes, counted on its own program: the FLOPs that MFU and HFU are made of."""

import dataclasses
from typing import Any

import jax

from jaxscale import frozen
from jaxscale.cost.chips import chip_of_device
from jaxscale.cost.flops import count_flops, count_model_flops
from jaxscale.cost.programs import forward_program, gradient_program, microbatch_of
from jaxscale.train.batch_shapes import BatchShapes
from jaxscale.train.job import TrainingIdentity
from jaxscale.train.objective import Params
from jaxscale.train.pinned_loss import planned_inputs, planned_loss
from jaxscale.train.randomness import named_key
from jaxscale.train.step import LossFn


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFlops:
    """FLOPs of one step, on all devices together, and what a device could do.

    Attributes:
      model: that the mathematics needs: forward, and one contraction for each operand with a gradient.
      hardware: of all contractions in the program, with what `remat` computes again.
      chip: what the devices are; empty where no figures are published.
      peak_per_s_per_device: its dense peak of the compute dtype; None where none is published.
    """

    model: int
    hardware: int
    chip: str
    peak_per_s_per_device: float | None


def step_flops(loss: LossFn, identity: TrainingIdentity, params: Params, batch: BatchShapes) -> StepFlops:
    """Counts a step by tracing it; nothing is computed.

    Args:
      loss: the objective's.
      identity: its microbatches and compute dtype.
      params: shapes.
      batch: shapes of a global batch.

    Reference: Chowdhery et al. 2022 (PaLM), appendix B, https://arxiv.org/abs/2204.02311
    """
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in batch.items()}
    inputs = planned_inputs(microbatch_of(shapes, identity.grad_accum), _key(identity))

    def value(params: Params, inputs: Any) -> Any:
        return planned_loss(loss)(params, inputs)[0]

    forward = forward_program(value, params, inputs)
    model = count_model_flops(forward, len(jax.tree.leaves(params)), frozen.positions(params))
    hardware = count_flops(gradient_program(value, params, inputs))
    chip = chip_of_device(jax.devices()[0].device_kind)
    return StepFlops(
        model=model.total * identity.grad_accum,
        hardware=hardware.total * identity.grad_accum,
        chip=chip.name if chip else "",
        peak_per_s_per_device=chip.peak_of(identity.compute_dtype) if chip else None,
    )


def _key(identity: TrainingIdentity) -> Any:
    return jax.eval_shape(lambda: named_key(identity.seed, "loss"))
