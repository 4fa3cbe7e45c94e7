"""What an objective of tokens asks of the model it trains: parameters and a loss."""

from collections.abc import Mapping
from typing import Protocol, Self

import jax
from jaxtyping import Array, Float32, Key

from jaxscale.nn.config import EncoderDecoderConfig, TransformerConfig
from jaxscale.nn.functional import Params


class Prediction(Protocol):
    """A model and its loss: `TokenPrediction` or `TargetPrediction`; hashable, all of it static."""

    @property
    def transformer(self) -> TransformerConfig | EncoderDecoderConfig:
        """The model."""
        ...

    def __hash__(self) -> int:
        """Of all its fields: programs are kept by it."""
        ...

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Fresh float32 weights. Pure and traceable."""
        ...

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Key[Array, ""]
    ) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
        """The mean loss over the predicted tokens of a batch, and scalars to log. Pure and traceable."""
        ...

    def without_regularization(self) -> Self:
        """The same with nothing in the loss but that of the tokens."""
        ...
