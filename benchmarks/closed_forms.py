"""Bytes that a device sends in a training step by the papers' formulas: Megatron over `tensor`, ZeRO-3 over `fsdp`.

Everything is float32. Over `tensor` what a row-split matmul makes is added up forward, and what a column-split one read
backward; computing a layer again adds up again what its own later parts read. Over `fsdp` every matrix is gathered
forward and backward, and its gradient reduced and scattered; what is small is a copy, whose gradient is added up.

References: Shoeybi et al. 2019, "Megatron-LM", section 3, https://arxiv.org/abs/1909.08053; Rajbhandari et al. 2020,
"ZeRO", section 7, https://arxiv.org/abs/1910.02054; Chowdhery et al. 2022, "PaLM", section 2 (parallel layers),
https://arxiv.org/abs/2204.02311
"""

import math

from jaxscale.cost.rings import ring_bytes
from jaxscale.mesh import MeshSpec
from jaxscale.nn.config import TransformerConfig

_BYTES = 4
# A row-wise softmax over a split vocabulary adds up its maximum, its denominator and the target's score.
_NUMBERS_PER_TOKEN = 3


def decoder_bytes(config: TransformerConfig, mesh: MeshSpec, *, num_examples: int, length: int) -> dict[str, float]:
    """Of a decoder whose backward pass computes its layers again, by axis.

    Args:
      config: the model; its vocabulary, heads and MLPs are split over `tensor`.
      mesh: with `data` and `fsdp` for the examples.
      num_examples: in a batch.
      length: tokens per example.
    """
    c, tensor = config, mesh.tensor
    tokens = num_examples * length // (mesh.data * mesh.fsdp)
    # Attention and MLP forward and backward, and attention again, which the MLP reads. Parallel parts are added first.
    per_layer = 2 if c.parallel else 5
    added = stream_bytes(tokens * c.d_model, c.num_layers * per_layer + 2, tensor)
    added += stream_bytes(tokens, _NUMBERS_PER_TOKEN, tensor)
    kv_parts = math.gcd(c.num_kv_heads, tensor)
    kv = 2 * c.d_model * c.head_dim * c.num_kv_heads // kv_parts
    # Devices with the same keys and values add up the gradients of their kernels, each for the rows that it keeps.
    added += ring_bytes("all_reduce", _BYTES * c.num_layers * kv // mesh.fsdp, tensor // kv_parts)
    table = c.d_model * c.vocab_size // tensor
    num_tables = 1 if c.tied_output else 2
    matrices = c.num_layers * (2 * c.d_model * c.head_dim * c.num_heads // tensor + kv + _mlp(c) // tensor)
    positions = c.max_positions * c.d_model if c.positions == "learned" else 0
    gathered = 2 * matrices + (num_tables + 1) * table + positions
    shared = zero_bytes(gathered, matrices + num_tables * table + positions, mesh.fsdp)
    shared += ring_bytes("all_reduce", _BYTES * _num_small(c, tensor), mesh.fsdp)
    return {"tensor": added, "fsdp": shared}


def stack_bytes(
    mesh: MeshSpec,
    *,
    num_layers: int,
    num_sums: int,
    num_tokens: int,
    d_model: int,
    layer_params: int,
    small_params: int,
) -> dict[str, float]:
    """Of layers around a residual stream, with no vocabulary, by axis.

    Args:
      mesh: with `data` and `fsdp` for the examples.
      num_layers: of them.
      num_sums: how often a layer's step adds up the stream over `tensor`.
      num_tokens: in a batch.
      d_model: width of the stream.
      layer_params: of a layer's matrices, all split over `tensor`.
      small_params: of a layer, copies.
    """
    tokens = num_tokens // (mesh.data * mesh.fsdp)
    matrices = num_layers * layer_params // mesh.tensor
    return {
        "tensor": stream_bytes(tokens * d_model, num_layers * num_sums, mesh.tensor),
        "fsdp": zero_bytes(2 * matrices, matrices, mesh.fsdp)
        + ring_bytes("all_reduce", _BYTES * num_layers * small_params, mesh.fsdp),
    }


def stream_bytes(num_values: int, num_sums: int, num_devices: int) -> float:
    """Of adding up so many values so often."""
    return num_sums * ring_bytes("all_reduce", _BYTES * num_values, num_devices)


def zero_bytes(num_gathered: int, num_scattered: int, num_devices: int) -> float:
    """Of gathering so many values, and reducing and scattering so many."""
    gathered = ring_bytes("all_gather", _BYTES * num_gathered, num_devices)
    return gathered + ring_bytes("reduce_scatter", _BYTES * num_scattered, num_devices)


def _mlp(c: TransformerConfig) -> int:
    one = (3 if c.gated else 2) * c.d_model * c.d_ff
    return one if c.experts is None else c.experts.num_experts * one


def _num_small(c: TransformerConfig, tensor: int) -> int:
    """Norms, biases and routers, those over split columns in parts."""
    norms = (c.num_layers * (1 if c.parallel else 2) + 1) * c.d_model * (2 if c.norm == "layernorm" else 1)
    routers = 0 if c.experts is None else c.num_layers * c.d_model * c.experts.num_experts
    if not c.use_bias:
        return norms + routers
    columns = c.head_dim * (c.num_heads + 2 * c.num_kv_heads) + c.d_ff
    return norms + routers + c.num_layers * (columns // tensor + 2 * c.d_model)
