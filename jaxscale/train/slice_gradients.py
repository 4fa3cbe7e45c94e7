"""The gradient of a microbatch as one for each slice, so that slices meet once per step and not once per microbatch."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float32, PRNGKeyArray

from jaxscale import frozen
from jaxscale.sharding import per_slice
from jaxscale.train.objective import Params

# The weight that a part of a batch has in the batch's mean loss.
Weight = Callable[[Mapping[str, jax.Array]], Float32[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SliceGradients:
    """Loss and gradient by slice, for a loss that is a mean over what is in the examples.

    The loss of a microbatch is the mean of its parts' losses by their weights, and so is every metric of it and the
    gradient: exactly what one computation of the whole gives.

    Attributes:
      loss: of one slice's part of a microbatch, its activations pinned.
      weight: of a part.
      num_slices: of the mesh.
      batch_shardings: of a part, by leaf.
      parameter_shardings: where the parameters are that the loss is computed with; a tree like them.
      gradient_shardings: where the gradient is to be.
    """

    loss: Callable[..., Any]
    weight: Weight
    num_slices: int
    batch_shardings: Mapping[str, NamedSharding]
    parameter_shardings: Any
    gradient_shardings: Any

    def value_and_grad(self, params: Params, microbatch: Mapping[str, jax.Array], key: PRNGKeyArray) -> Any:
        """As `jax.value_and_grad(loss, has_aux=True)`, every leaf [slices ...] and yet to be added up over them.

        Args:
          params: parameters, where `parameter_shardings` says.
          microbatch: leaves [B ...], B divisible by the slices.
          key: the same for every part.
        """
        parts = per_slice.cut(dict(microbatch), self.num_slices, dict(self.batch_shardings))
        weights = per_slice.for_each(self.weight)(parts)
        total = jnp.sum(weights)
        shares = weights / jnp.where(total > 0, total, 1.0)

        def weighted(params: Params, part: Mapping[str, jax.Array], share: Float32[Array, ""]) -> Any:
            loss, extra = self.loss(params, part, key)
            return loss * share, jax.tree.map(lambda value: value * share, extra)

        # A copy of the parameters for every slice, which no device makes: it has its slice's already. With one for all
        # of them XLA looks rows of a table up for all slices at once, and sends them between the slices.
        copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_slices, *x.shape)), params)
        copies = per_slice.kept_apart(copies, self.parameter_shardings)
        of_parts = per_slice.for_each(frozen.value_and_grad(weighted, has_aux=True))
        values, gradient = of_parts(copies, parts, shares)
        return values, per_slice.kept_apart(gradient, frozen.trained(self.gradient_shardings))
