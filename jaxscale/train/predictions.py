"""What an objective of tokens asks of the model it trains: parameters and a loss."""

from collections.abc import Mapping
from typing import Protocol, Self

import jax
from jaxtyping import Array, Float32, Key

from jaxscale.nn.config import EncoderDecoderConfig, TransformerConfig
from jaxscale.nn.functional import Params
from jaxscale.train.slice_gradients import Weight


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

    def part_weight(self, batch: Mapping[str, jax.Array]) -> Float32[Array, ""]:
        """The weight of a part of a batch in the batch's loss: its predicted tokens. Pure and traceable."""
        ...

    @property
    def averages_parts(self) -> bool:
        """Whether the loss of a batch is the mean of its parts' losses by their weights."""
        ...


def part_weight(computation: Prediction) -> Weight | None:
    """The weight of a part of a batch; None where the loss is no mean of its parts'. See `objective.AveragesParts`."""
    return computation.part_weight if computation.averages_parts else None
