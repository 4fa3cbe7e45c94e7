"""Where a student starts: from some of the teacher's own layers, or from another encoder with a head to the space.

Reference: Sanh et al. 2019, DistilBERT, section 3 (every second layer of the teacher), https://arxiv.org/abs/1910.01108
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from jaxscale.errors import UsageError
from jaxscale.nn.headless import headless, headless_params
from jaxscale.nn.keys import named_key
from jaxscale.nn.layer_choice import with_layers
from retrieval.towers.encoder import Encoder, init_projection
from retrieval.towers.loading import load_towers
from retrieval.towers.retriever_folder import LoadedTowers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
    """The small query tower.

    Attributes:
      num_layers: so many of the teacher's own layers, the first ones unless `layer_step` says otherwise; embeddings,
        head, pooling, prefix and tokenizer are the teacher's too. None where `init_from` is given.
      layer_step: takes every k-th layer, beginning with the first; None: layers that lie evenly over the teacher's, of
        6 the first and fourth for 2.
      init_from: another encoder instead, in any folder that opens as a retriever: its query tower, pooling, prefix and
        tokenizer are taken. Where its vectors have other dims than the space, a linear map is put behind it and
        learned.
      dropout_rate: while training.
    """

    num_layers: int | None = None
    layer_step: int | None = 1
    init_from: str = ""
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_layers", "layer_step"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"student.{name}={value} must be at least 1")

    def check(self) -> None:
        """Checks that it says where to start.

        Raises:
          UsageError: it says so twice, or not at all.
        """
        if self.init_from and self.num_layers is not None:
            raise UsageError(
                f"student.init_from={self.init_from!r} brings its own layers, but student.num_layers={self.num_layers} "
                "is given too; use `--init-from DIR`, which takes the place of both"
            )
        if not self.init_from and self.num_layers is None:
            raise UsageError(
                "the student has nothing to start from; add `--student.num-layers N`, so many of the teacher's layers, "
                "or `--init-from DIR`, another encoder"
            )


def start_student(student: Student, teacher: LoadedTowers, max_length: int, seed: int) -> Encoder:
    """The student before its first step, as an encoder of the teacher's space.

    Args:
      student: what the job asks for.
      teacher: the retriever whose query tower is the teacher.
      max_length: tokens kept of a query.
      seed: of a head that the model to start from lacks.

    Raises:
      DataError: the model to start from is missing or malformed.
      UsageError: the teacher has no such layers, or the model does not fit the space or the length.
    """
    source = load_towers(Path(student.init_from)).query if student.init_from else _layers_of(student, teacher.query)
    config, num_dims = source.config, teacher.contract.num_dims
    if max_length > config.transformer.max_positions:
        raise UsageError(
            f"data.query_buckets ends at {max_length} tokens, but the student has "
            f"max_positions={config.transformer.max_positions}; end it there"
        )
    params = {**source.params, "transformer": headless_params(source.params["transformer"])}
    if config.num_dims != num_dims:
        if config.projection_dim is not None:
            raise UsageError(
                f"the student {student.init_from} has a projection to {config.projection_dim} dims, but the teacher's "
                f"space has {num_dims}; start from a model without one"
            )
        key = named_key(jax.random.key(seed), "student/projection")
        drawn = init_projection(config.transformer.d_model, num_dims, key)
        params["projection"] = jax.tree.map(np.asarray, drawn)
        config = dataclasses.replace(config, projection_dim=num_dims)
    transformer = dataclasses.replace(headless(config.transformer), dropout_rate=student.dropout_rate)
    config = dataclasses.replace(
        config, transformer=transformer, normalize=teacher.contract.normalized, max_length=max_length
    )
    return Encoder(config=config, params=params, tokenizer=source.tokenizer)


def _layers_of(student: Student, teacher: Encoder) -> Encoder:
    """The teacher with some of its layers."""
    deep = teacher.config.transformer
    num_layers, step = student.num_layers or 0, student.layer_step
    evenly = step is None and num_layers <= deep.num_layers
    layers = [i * deep.num_layers // num_layers if evenly else i * (step or 1) for i in range(num_layers)]
    if layers[-1] >= deep.num_layers:
        most = -(-deep.num_layers // (step or 1))
        raise UsageError(
            f"student.num_layers={num_layers} with layer_step={step} asks for layer {layers[-1] + 1} "
            f"of a teacher that has {deep.num_layers}; use at most {most}"
        )
    transformer, params = with_layers(deep, teacher.params["transformer"], layers)
    return Encoder(
        config=dataclasses.replace(teacher.config, transformer=transformer),
        params=teacher.params | {"transformer": params},
        tokenizer=teacher.tokenizer,
    )
