"""What an encoder-decoder's training computes: its first parameters, and the loss of a target, given a source."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key

from jaxscale.nn import functional
from jaxscale.nn.config import EncoderDecoderConfig, Remat
from jaxscale.nn.functional import Params
from jaxscale.train.token_loss import num_predicted, token_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetPrediction:
    """The next token of a target sequence, given a source.

    Attributes:
      transformer: the model, without experts.
      z_loss: weight of the squared logarithm of the softmax's denominator.
      remat: what of each layer the backward pass computes again.
      compute_dtype: of matrix products.
    """

    transformer: EncoderDecoderConfig
    z_loss: float
    remat: Remat
    compute_dtype: Literal["float32", "bfloat16"]

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Fresh weights; see `functional.init_params`."""
        return functional.init_params(self.transformer, key)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Key[Array, ""]
    ) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
        """The mean loss of a batch or a microbatch, in float32; nothing beside it to be logged.

        Args:
          params: as `init_params` makes them.
          batch: int32 `sources` [B T], `tokens` and `targets` [B S].
          key: for dropout.
        """
        has_dropout = self.transformer.encoder.dropout_rate or self.transformer.decoder.dropout_rate
        scores = functional.apply_encoder_decoder(
            self.transformer,
            params,
            batch["sources"],
            batch["tokens"],
            compute_dtype=jnp.dtype(self.compute_dtype),
            dropout_key=key if has_dropout else None,
            remat=self.remat,
        )
        return token_loss(scores, batch["targets"], z_loss=self.z_loss), {}

    def part_weight(self, batch: Mapping[str, jax.Array]) -> Float32[Array, ""]:
        """The weight of a part of a batch in the batch's loss: its predicted tokens."""
        return num_predicted(batch["targets"])

    @property
    def averages_parts(self) -> bool:
        """Whether the loss of a batch is the mean of its parts' by their weights: not with dropout, which would leave
        the same out of every part.
        """
        return not (self.transformer.encoder.dropout_rate or self.transformer.decoder.dropout_rate)

    def without_regularization(self) -> "TargetPrediction":
        """The same without dropout and z-loss, to be evaluated."""
        encoder, decoder = (
            dataclasses.replace(part, dropout_rate=0.0) for part in (self.transformer.encoder, self.transformer.decoder)
        )
        transformer = EncoderDecoderConfig(encoder=encoder, decoder=decoder)
        return dataclasses.replace(self, transformer=transformer, z_loss=0.0, remat=False)
