"""Model FLOPs utilization, in the ways that people count it: each a formula with its reference.

All are FLOPs over what the devices could do at peak in the same time: F / (t n P), with F the FLOPs of a step, t its
time in seconds, n the number of devices and P their peak in FLOP/s. They differ in what F counts.
"""

import dataclasses

from jaxscale.cost.flops import ModelFlops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utilization:
    """One step's time against the peak, by every way of counting.

    Attributes:
      mfu: F is what the mathematics needs: forward and backward, nothing twice, attention whole.
        Reference: Chowdhery et al. 2022 (PaLM), appendix B, https://arxiv.org/abs/2204.02311
      mfu_causal: the same with attention halved, as half its scores are masked.
        Reference: Dao 2023 (FlashAttention-2), section 4.1, https://arxiv.org/abs/2307.08691
      hfu: hardware FLOPs utilization: F is what is computed, with what `remat` computes again.
        Reference: Korthikanti et al. 2022, section 6.2 and appendix A, https://arxiv.org/abs/2205.05198
      peak_flops_per_s: P, of one device.
    """

    mfu: float
    mfu_causal: float
    hfu: float
    peak_flops_per_s: float


def utilization(
    model: ModelFlops, hardware_flops: int, *, step_s: float, num_devices: int, peak_flops_per_s: float
) -> Utilization:
    """Every way of counting, of one step.

    Args:
      model: of a step of all devices together.
      hardware_flops: of the program that is run, all devices together.
      step_s: the step's time.
      num_devices: that share the step.
      peak_flops_per_s: of one device, dense, for the dtype of the contractions.

    >>> half = utilization(ModelFlops(forward=2, backward=4, between_data=0), 8, step_s=1, num_devices=2,
    ...                    peak_flops_per_s=6)
    >>> half.mfu, round(half.hfu, 3)
    (0.5, 0.667)
    """
    capacity = step_s * num_devices * peak_flops_per_s
    return Utilization(
        mfu=model.total / capacity,
        mfu_causal=model.causal_halved / capacity,
        hfu=hardware_flops / capacity,
        peak_flops_per_s=peak_flops_per_s,
    )


def palm_flops_per_token(
    num_params: int, *, num_layers: int, num_heads: int, head_dim: int, sequence_length: int
) -> int:
    """6 N + 12 L H Q T: a decoder's FLOPs per token of training, from its sizes alone.

    Args:
      num_params: N, numbers in matrices that every token is multiplied with; a table that is only looked up is none.
      num_layers: L.
      num_heads: H, query heads.
      head_dim: Q.
      sequence_length: T.

    Reference: Chowdhery et al. 2022 (PaLM), appendix B, https://arxiv.org/abs/2204.02311

    >>> palm_flops_per_token(100, num_layers=1, num_heads=2, head_dim=4, sequence_length=8)
    1368
    """
    return 6 * num_params + 12 * num_layers * num_heads * head_dim * sequence_length
