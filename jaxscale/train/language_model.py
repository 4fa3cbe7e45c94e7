"""The job of training a language model, and its losses: next token and masked tokens.

There is no data source for it yet: such a job is for `explain`, `plan` and `tune`, which need none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key

from jaxscale.errors import UsageError
from jaxscale.nn.config import Remat, TransformerConfig
from jaxscale.nn.functional import Params
from jaxscale.nn.shrink import shrink
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.planned_step import PlannedStep
from jaxscale.train.randomness import named_key
from jaxscale.train.token_prediction import TokenPrediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelJob:
    """All that says what a language model's training step is: a decoder's next token, or an encoder's masked tokens.

    Attributes:
      transformer: the model.
      sequence_length: tokens per example.
      training: seed, steps, batch, optimizer, number format.
      operation: mesh, checkpoints, logging.
      z_loss: weight of the squared logarithm of the softmax's denominator; 0 for none.
      load_balance_loss: weight of the experts' load balance; 0 for none, and without experts.
      router_z_loss: weight of the squared logarithm of the router's softmax's denominator; the same.
      remat: what of each layer the backward pass computes again rather than keep it: nothing (False), all (True), or
        all but the results of matmuls with weights ("matmuls").
    """

    transformer: TransformerConfig
    sequence_length: int
    training: TrainingIdentity
    operation: Operation
    z_loss: float = 0.0
    load_balance_loss: float = 0.0
    router_z_loss: float = 0.0
    remat: Remat = True

    def __post_init__(self) -> None:
        if not 1 <= self.sequence_length <= self.transformer.max_positions:
            raise UsageError(
                f"sequence_length={self.sequence_length} must be between 1 and the transformer's "
                f"max_positions={self.transformer.max_positions}"
            )
        for name in ("z_loss", "load_balance_loss", "router_z_loss"):
            if not getattr(self, name) >= 0.0:
                raise UsageError(f"{name}={getattr(self, name)} must be at least 0")
        if self.transformer.experts is None and (self.load_balance_loss or self.router_z_loss):
            raise UsageError(
                f"load_balance_loss={self.load_balance_loss} and router_z_loss={self.router_z_loss} are of experts, "
                "which the transformer has none of; use 0"
            )

    def planned_step(self) -> PlannedStep:
        """The training step on shapes alone.

        Its batch is `tokens` and `targets`, int32 [B S]. A decoder's target is the token that follows, an encoder's the
        token that was there before it was masked; `NO_TARGET` stands where none is predicted.
        """
        training, dims = self.training, (self.training.global_batch_size, self.sequence_length)
        return PlannedStep(
            loss=lambda params, batch: self.loss(params, batch, named_key(training.seed, "loss")),
            params=jax.eval_shape(lambda: self.computation.init_params(named_key(training.seed, "params"))),
            batch={name: jax.ShapeDtypeStruct(dims, jnp.int32) for name in ("tokens", "targets")},
            optimizer=training.optimizer.transformation(),
            num_tokens=dims[0] * dims[1],
            grad_accum=training.grad_accum,
        )

    def loss(self, params: Params, batch: Mapping[str, jax.Array], key: Key[Array, ""]) -> Float32[Array, ""]:
        """The mean loss of a batch or a microbatch, in float32.

        Args:
          params: as `functional.init_params` makes them.
          batch: as `planned_step` describes it.
          key: for dropout.
        """
        return self.computation.loss(params, batch, key)[0]

    @property
    def computation(self) -> TokenPrediction:
        """First parameters and loss."""
        return TokenPrediction(
            transformer=self.transformer,
            z_loss=self.z_loss,
            load_balance_loss=self.load_balance_loss,
            router_z_loss=self.router_z_loss,
            remat=self.remat,
            compute_dtype=self.training.compute_dtype,
        )

    def shrunk(self, *, num_layers: int = 2, sequence_length: int = 16, global_batch_size: int = 16) -> Self:
        """A job of the same structure that any machine can run, in float32; see `jaxscale.nn.shrink`.

        Args:
          num_layers: of the small model.
          sequence_length: tokens per example.
          global_batch_size: examples per step.
        """
        return dataclasses.replace(
            self,
            transformer=shrink(self.transformer, num_layers=num_layers, max_positions=sequence_length),
            sequence_length=sequence_length,
            training=dataclasses.replace(self.training, global_batch_size=global_batch_size, compute_dtype="float32"),
        )
