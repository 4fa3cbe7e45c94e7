"""What a distillation's training step computes: how far the student's vectors of queries are from the teacher's.

Where the space's vectors have length 1, the squared distance of two is 2 (1 - cosine): both terms then pull alike, and
their weights add up. Where lengths count (a space scored by `dot`), the first minds the length, the second does not.

Reference: Gao et al. 2024, Scaling Retrievers with LLMs (ScalingNote): its second stage distils a small query tower by
mean squared error and cosine, on queries alone, https://arxiv.org/abs/2411.15766
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from jaxscale import typed_json
from jaxscale.errors import UsageError
from jaxscale.nn.functional import Params
from retrieval.contract import Score
from retrieval.towers.encoder import SMALLEST_SQUARED_NORM, EncoderConfig, apply_encoder, init_encoder, normalize
from retrieval.towers.in_batch import parts_of, relations
from retrieval.towers.loss import info_nce


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The terms of the loss; their weighted sum is minimised.

    Attributes:
      squared_error: of the squared distance from the teacher's vector.
      cosine: of 1 - cosine to the teacher's vector.
      contrastive: of InfoNCE of the query against frozen document vectors of the batch, its own relevant one first;
        above 0 it needs `teacher.vectors`, and queries without a relevant document are left out.
      ranking: of how far the student's softmax over all these document vectors is from the teacher's, as a KL
        divergence; it asks for the same, and does not mind which document is relevant.
      error_over_dims: whether the squared error of a vector is the `sum` over its dims or the `mean`, which is E times
        less.
      temperature: of InfoNCE and of `ranking`.
    """

    squared_error: float = 1.0
    cosine: float = 1.0
    contrastive: float = 0.0
    error_over_dims: Literal["sum", "mean"] = "sum"
    temperature: float = 0.05
    ranking: float = typed_json.added(0.0)

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("squared_error", "cosine", "contrastive", "ranking")}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UsageError(f"loss.{name}={weight} must be at least 0 and finite")
        if not any(weights.values()):
            names = ", ".join(f"loss.{name}" for name in weights)
            raise UsageError(f"{names} are all 0; nothing would be learned")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(f"loss.temperature={self.temperature} must be above 0; 0.05 is usual for cosine scores")

    @property
    def document_term(self) -> str:
        """The first term that needs document vectors, with its weight; empty where none does."""
        return next((f"loss.{name}={w}" for name in ("contrastive", "ranking") if (w := getattr(self, name))), "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """The loss of a student as a function of its parameters and a batch.

    Attributes:
      student: what it computes.
      weights: the terms.
      score: how the space compares vectors.
      compute_dtype: of the transformer's products.
    """

    student: EncoderConfig
    weights: LossWeights
    score: Score
    compute_dtype: str

    def init_params(self, key: Array) -> Params:
        """Fresh weights, for their shapes: a student always starts from a model."""
        return init_encoder(self.student, key)

    def loss(
        self, params: Params, batch: Mapping[str, jax.Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The weighted sum of the terms, each the mean over the batch, and each by itself.

        Args:
          params: the student's.
          batch: described at `QueryBatches.batch`.
          key: for dropout.
        """
        vectors = apply_encoder(
            self.student,
            params,
            batch["query_tokens"],
            batch["query_mask"],
            compute_dtype=jnp.dtype(self.compute_dtype),
            dropout_key=key,
        )
        weights, teacher = self.weights, batch["teacher_vectors"]
        error = jnp.mean(squared_errors(vectors, teacher, over_dims=weights.error_over_dims))
        cosine = jnp.mean(cosines(vectors, teacher))
        loss = weights.squared_error * error + weights.cosine * (1.0 - cosine)
        metrics = {"squared_error": error, "cosine": cosine}
        if weights.contrastive:
            contrastive, metrics["in_batch_accuracy"] = self._contrastive(vectors, batch)
            metrics["contrastive"] = contrastive
            loss = loss + weights.contrastive * contrastive
        if weights.ranking:
            ours, theirs = (normalize(v) if self.score == "cosine" else v for v in (vectors, teacher))
            metrics["ranking"] = divergence(ours, theirs, batch["document_vectors"][:, 0], weights.temperature)
            loss = loss + weights.ranking * metrics["ranking"]
        return loss, metrics

    def _contrastive(
        self, vectors: Float32[Array, "B E"], batch: Mapping[str, jax.Array]
    ) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
        related = relations(*parts_of(batch), positives="own", mask_same_document=True, mask_known_positives=True)
        temperature = jnp.asarray(self.weights.temperature, jnp.float32)
        queries = normalize(vectors) if self.score == "cosine" else vectors
        loss, hits = info_nce(queries, batch["document_vectors"], temperature, related, symmetric=False)
        return loss, jnp.mean(hits)


def divergence(
    student: Float32[Array, "B E"], teacher: Float32[Array, "B E"], documents: Float32[Array, "D E"], temperature: float
) -> Float32[Array, ""]:
    """The mean over queries of KL(teacher || student), of their softmax over the same documents.

    >>> queries, documents = jnp.eye(2), jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> divergence(queries, queries, documents, 0.05).item()
    0.0
    >>> bool(divergence(queries[::-1], queries, documents, 0.05) > 1)
    True
    """
    ours, theirs = (
        # HIGHEST: on accelerators a float32 product would otherwise be rounded to bfloat16 or TF32.
        jax.nn.log_softmax(jnp.matmul(queries, documents.T, precision=jax.lax.Precision.HIGHEST) / temperature)
        for queries in (student, teacher)
    )
    return jnp.mean(jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=1))


def squared_errors(
    student: Float32[Array, "B E"], teacher: Float32[Array, "B E"], *, over_dims: Literal["sum", "mean"]
) -> Float32[Array, "B"]:
    """The squared distance of each pair of vectors, or its E-th part.

    >>> squared_errors(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]]), over_dims="mean").tolist()
    [2.5]
    """
    reduce = jnp.sum if over_dims == "sum" else jnp.mean
    return reduce(jnp.square(student - teacher), axis=-1)


def cosines(student: Float32[Array, "B E"], teacher: Float32[Array, "B E"]) -> Float32[Array, "B"]:
    """The cosine of each pair of vectors; 0 where one is zero.

    >>> cosines(jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[4.0, 3.0], [1.0, 0.0]])).tolist()
    [0.9599999785423279, 0.0]
    """
    squared = jnp.sum(jnp.square(student), axis=-1) * jnp.sum(jnp.square(teacher), axis=-1)
    return jnp.sum(student * teacher, axis=-1) * jax.lax.rsqrt(jnp.maximum(squared, jnp.float32(SMALLEST_SQUARED_NORM)))
