"""The job of training an encoder-decoder, and its loss: the next token of a target sequence, given a source.

There is no data source for it yet: such a job is for `explain`, `plan` and `tune`, which need none.
"""

import dataclasses
from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key

from jaxscale.errors import UsageError
from jaxscale.nn.config import EncoderDecoderConfig, Remat
from jaxscale.nn.functional import Params
from jaxscale.nn.shrink import shrink_encoder_decoder
from jaxscale.train.job import Operation, TrainingIdentity
from jaxscale.train.planned_step import PlannedStep
from jaxscale.train.predictions import part_weight
from jaxscale.train.randomness import named_key
from jaxscale.train.target_prediction import TargetPrediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceToSequenceJob:
    """All that says what an encoder-decoder's training step is.

    Attributes:
      transformer: the model, without experts.
      source_length: tokens of a source.
      target_length: tokens of a target.
      training: seed, steps, batch, optimizer, number format.
      operation: mesh, checkpoints, logging.
      z_loss: weight of the squared logarithm of the softmax's denominator; 0 for none.
      remat: what of each layer the backward pass computes again rather than keep it: nothing (False), all (True), or
        all but the results of matmuls with weights ("matmuls").
    """

    transformer: EncoderDecoderConfig
    source_length: int
    target_length: int
    training: TrainingIdentity
    operation: Operation
    z_loss: float = 0.0
    remat: Remat = True

    def __post_init__(self) -> None:
        for name, config in (("source", self.transformer.encoder), ("target", self.transformer.decoder)):
            length = getattr(self, f"{name}_length")
            if not 1 <= length <= config.max_positions:
                raise UsageError(
                    f"{name}_length={length} must be between 1 and the {config.kind}'s "
                    f"max_positions={config.max_positions}"
                )
            if config.experts is not None:
                raise UsageError(f"transformer.{config.kind}.experts must be None: their losses are not in this job's")
        if not self.z_loss >= 0.0:
            raise UsageError(f"z_loss={self.z_loss} must be at least 0")

    def planned_step(self) -> PlannedStep:
        """The training step on shapes alone.

        Its batch is int32 `sources` [B T], `tokens` and `targets` [B S]: what the decoder has read so far, and the
        token that follows it, `NO_TARGET` where none is predicted.
        """
        training, num_examples = self.training, self.training.global_batch_size
        lengths = {"sources": self.source_length, "tokens": self.target_length, "targets": self.target_length}
        return PlannedStep(
            loss=lambda params, batch: self.loss(params, batch, named_key(training.seed, "loss")),
            params=jax.eval_shape(lambda: self.computation.init_params(named_key(training.seed, "params"))),
            batch={name: jax.ShapeDtypeStruct((num_examples, n), jnp.int32) for name, n in lengths.items()},
            optimizer=training.optimizer.transformation(),
            num_tokens=num_examples * (self.source_length + self.target_length),
            grad_accum=training.grad_accum,
            part_weight=part_weight(self.computation),
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
    def computation(self) -> TargetPrediction:
        """First parameters and loss."""
        return TargetPrediction(
            transformer=self.transformer,
            z_loss=self.z_loss,
            remat=self.remat,
            compute_dtype=self.training.compute_dtype,
        )

    def shrunk(self, *, num_layers: int = 2, sequence_length: int = 16, global_batch_size: int = 16) -> Self:
        """A job of the same structure that any machine can run, in float32; see `jaxscale.nn.shrink`.

        Args:
          num_layers: of the small encoder, and of the decoder.
          sequence_length: tokens of a source; a target has half of it.
          global_batch_size: examples per step.
        """
        return dataclasses.replace(
            self,
            transformer=shrink_encoder_decoder(self.transformer, num_layers=num_layers, max_positions=sequence_length),
            source_length=sequence_length,
            target_length=sequence_length // 2,
            training=dataclasses.replace(self.training, global_batch_size=global_batch_size, compute_dtype="float32"),
        )
