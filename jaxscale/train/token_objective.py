"""The objective of models that predict tokens: rows of them, the loss, held-out text, and a model folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int64, Key

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.nn.functional import Params
from jaxscale.nn.model_folder import ModelFolder, save_model
from jaxscale.train.batch_sizes import BatchSizes
from jaxscale.train.corruption import Corruption
from jaxscale.train.held_out import HeldOutText
from jaxscale.train.predictions import Prediction, part_weight
from jaxscale.train.slice_gradients import Weight

# The leaves of a language model's batch, all int32 [B S].
LEAVES = ("tokens", "targets", "segments", "positions")


class Rows(Protocol):
    """The data's order: sample n is the same for whoever asks."""

    def rows(self, first_sample: int, num: int) -> dict[str, np.ndarray]:
        """Samples first_sample, first_sample + 1, ...: the int32 leaves of a batch, [num ...] each."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenObjective:
    """What `jaxscale.train` trains: see `jaxscale.train.objective.Objective`.

    Attributes:
      computation: parameters and loss.
      data: the training text.
      lengths: of a row of every leaf of a batch.
      sizes: rows of every batch.
      corruption: of every row; None for a decoder, which predicts the text as it is.
      held_out: text to evaluate on, or None.
      tokenizer: goes into the exported folder.
      starting_params: host weights to start from, or None.
      identity: all that makes the run what it is, as JSON values.
      provenance: of the exported model.
    """

    computation: Prediction
    data: Rows
    lengths: Mapping[str, int]
    sizes: BatchSizes
    corruption: Corruption | None
    held_out: HeldOutText | None
    tokenizer: Tokenizer
    starting_params: Params | None
    identity: dict[str, Any]
    provenance: dict[str, str]

    def init_params(self, key: Key[Array, ""]) -> Params:
        """Fresh weights; see `Prediction.init_params`."""
        return self.computation.init_params(key)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Key[Array, ""]
    ) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
        """The loss of a batch's tokens; see `Prediction.loss`."""
        return self.computation.loss(params, batch, key)

    @property
    def part_weight(self) -> Weight | None:
        """Of a part of a batch in its loss; see `jaxscale.train.objective.AveragesParts`."""
        return part_weight(self.computation)

    def sample_ids(self, number: int) -> Int64[np.ndarray, " B"]:
        """The samples of batch `number`, by their places in the data's order."""
        first = self.sizes.first_sample(number)
        return np.arange(first, first + self.sizes.size(number), dtype=np.int64)

    def batch(self, number: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """Rows of global batch `number`, all leaves int32.

        Args:
          number: 0 for the first batch of the data's order.
          rows: which of its rows; each process asks for its own.
        """
        ids = self.sample_ids(number)[rows]
        batch = self.data.rows(int(ids[0]), len(ids))
        if self.corruption is not None:
            batch = self.corruption.applied(batch, ids)
        return {name: batch[name] for name in self.lengths}

    def tokens_per_batch(self, number: int) -> int:
        """Tokens of batch `number` that the model reads, what is empty in its rows included."""
        return self.sizes.size(number) * sum(self.lengths.get(name, 0) for name in ("sources", "tokens"))

    def batch_shapes(self) -> list[dict[str, jax.ShapeDtypeStruct]]:
        """A shape for every size of batch."""
        return [batch_shape(size, self.lengths) for size in self.sizes.distinct]

    def evaluate(self, params: Params, mesh: Mesh) -> dict[str, float]:
        """Loss, perplexity and bits per byte of the held-out text; nothing where there is none."""
        return {} if self.held_out is None else self.held_out.evaluate(self.computation, params, mesh)

    def export(self, params: Params, path: Path) -> None:
        """Writes the model folder; `params` are host arrays."""
        model = ModelFolder(
            config=self.computation.transformer,
            params=params,
            tokenizer=self.tokenizer,
            settings=None,
            provenance=self.provenance,
        )
        save_model(path, model, replace=True)


def batch_shape(num_rows: int, lengths: Mapping[str, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """The leaves of a batch, on shapes alone.

    >>> batch_shape(4, {"tokens": 8})["tokens"].shape
    (4, 8)
    """
    return {name: jax.ShapeDtypeStruct((num_rows, length), np.int32) for name, length in lengths.items()}
