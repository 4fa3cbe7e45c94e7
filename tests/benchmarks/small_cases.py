"""Three cases of the benchmark of collectives, so small that the CPU compiles them in seconds."""

import dataclasses

from benchmarks.collective_cases import Case, decoder, flax_attention, fused_gpt2
from jaxscale.sharding.limits import Limits

_SIZES = {"d_model": 64, "num_examples": 8, "length": 16}
SMALL = {
    "decoder": lambda: decoder(vocab_size=512, **_SIZES),
    "fused_gpt2": lambda: fused_gpt2(num_heads=8, vocab_size=512, **_SIZES),
    "flax_attention": lambda: flax_attention(num_heads=8, **_SIZES),
}


def small(name: str) -> Case:
    """The case; its matrices are large enough for fsdp, its norms and biases are not."""
    return dataclasses.replace(SMALL[name](), limits=Limits(small_leaf_bytes=4096))
