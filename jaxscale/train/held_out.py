"""Held-out text: the mean loss of its tokens under a model, its perplexity, and the bits that a byte of it takes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int64

from jaxscale.nn.functional import Params
from jaxscale.sharding.initialise import place
from jaxscale.sharding.plan import batch_sharded, replicated
from jaxscale.train.predictions import Prediction
from jaxscale.train.randomness import named_key
from jaxscale.train.token_loss import NO_TARGET

# Logits of so many sequences exist at a time on each device.
_NUM_SEQUENCES_PER_DEVICE = 2

# The mean loss of a block, and how many tokens it is over.
_Program = Callable[[Params, Mapping[str, Array]], tuple[Float32[Array, ""], Float32[Array, ""]]]


class Sequences(Protocol):
    """Rows of tokens that can be asked for in any order."""

    @property
    def num_sequences(self) -> int:
        """How many there are."""
        ...

    def sequences(self, indices: Int64[np.ndarray, " N"]) -> dict[str, np.ndarray]:
        """int32 [N ...] leaves of a batch, `targets` (`NO_TARGET` where none) among them."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """The text, and how much of it is read.

    Attributes:
      source: its sequences.
      num_sequences: the first so many are read.
      bytes_per_token: UTF-8 bytes of text that a token stands for, on average; None leaves bits per byte out, as for
        masked tokens, whose bits are no code of the text.
    """

    source: Sequences
    num_sequences: int
    bytes_per_token: float | None

    def evaluate(self, computation: Prediction, params: Params, mesh: Mesh) -> dict[str, float]:
        """The mean loss of a token in nats, `perplexity`, its exponential, and `bits_per_byte`.

        Args:
          computation: the model's; without dropout, z-loss and routers' losses.
          params: on the mesh, in their logical order.
          mesh: where they are.
        """
        program = _program(computation.without_regularization(), mesh)
        total, num_tokens = 0.0, 0
        num_at_once = _NUM_SEQUENCES_PER_DEVICE * mesh.size
        pending, sharding = [], batch_sharded(mesh)
        for first in range(0, self.num_sequences, num_at_once):
            batch = self._block(first, num_at_once)
            pending.append(program(params, place(batch, dict.fromkeys(batch, sharding))))
        for mean, count in pending:
            # Blocks are added up on the host, in float64.
            num_tokens += int(count)
            total += float(mean) * float(count)
        loss = total / max(num_tokens, 1)
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.bytes_per_token is not None:
            metrics["bits_per_byte"] = loss / math.log(2) / self.bytes_per_token
        return metrics

    def _block(self, first: int, num_at_once: int) -> dict[str, np.ndarray]:
        """So many sequences; beyond the last one, copies of it of which nothing is predicted."""
        wanted = np.arange(first, first + num_at_once, dtype=np.int64)
        batch = self.source.sequences(np.minimum(wanted, self.num_sequences - 1))
        there = (wanted < self.num_sequences)[:, None]
        return batch | {"targets": np.where(there, batch["targets"], np.int32(NO_TARGET))}


@functools.lru_cache(maxsize=8)
def _program(computation: Prediction, mesh: Mesh) -> _Program:
    key = named_key(0, "held-out")  # of no effect: there is no dropout

    def mean_and_count(params: Params, batch: Mapping[str, Array]) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
        loss, _ = computation.loss(params, batch, key)
        return loss, jnp.sum((batch["targets"] >= 0).astype(jnp.float32))

    return jax.jit(mean_and_count, out_shardings=replicated(mesh))
