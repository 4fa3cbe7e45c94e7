"""The loss that the step differentiates: the objective's, the plan's activations pinned in the program at hand."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from jaxscale.sharding.constrain import constrain
from jaxscale.sharding.derive import plan_of
from jaxscale.sharding.plan import ShardingPlan
from jaxscale.sharding.specs import Spec
from jaxscale.sharding.trace import trace_step
from jaxscale.train.objective import Params
from jaxscale.train.step import LossFn

# The key among the leaves of the batch that the plan is derived from; no name that a leaf would have.
_KEY = "(key)"


class PinnedLoss:
    """A loss with the activations pinned that the plan says, for a batch of whatever shapes it is traced with.

    Its program is the one that the plan is derived from, to the key, which is an argument of both. Batches of other
    lengths may have another program, so their pins are derived from that one; if it would have the parameters elsewhere
    than they are, nothing is pinned and the compiler decides. On one device it is the loss itself.

    Args:
      loss_fn: the objective's.
      plan: derived from `planned_loss(loss_fn)`.
      mesh: of the plan's spec.
    """

    def __init__(self, loss_fn: LossFn, plan: ShardingPlan, mesh: Mesh) -> None:
        self._loss_fn, self._plan, self._mesh = loss_fn, plan, mesh
        self._pinned: dict[Any, LossFn] = {}

    def __call__(
        self, params: Params, batch: Mapping[str, jax.Array], key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """As the loss.

        Raises:
          UsageError: at tracing, a value can't be split as the plan says.
        """
        if self._mesh.size == 1:
            return self._loss_fn(params, batch, key)
        arguments = (params, dict(batch), key)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
        bucket = tuple((name, leaf.shape, str(leaf.dtype)) for name, leaf in sorted(batch.items()))
        if bucket not in self._pinned:
            self._pinned[bucket] = self._pin(*shapes)
        return self._pinned[bucket](*arguments)

    def _pin(self, params: Any, batch: dict[str, Any], key: Any) -> LossFn:
        plan = self._plan_for(params, planned_inputs(batch, key))
        pins = plan.activation_shardings(self._mesh) if plan else {}
        return constrain(self._loss_fn, pins, params, batch, key) if pins else self._loss_fn

    def _plan_for(self, params: Any, inputs: dict[str, Any]) -> ShardingPlan | None:
        """The plan of the loss of these inputs; None if it would place the parameters elsewhere than they are."""
        shapes = {leaf.path: leaf.shape for leaf in self._plan.leaves if leaf.role == "batch"}
        if shapes == {name: leaf.shape for name, leaf in inputs.items()}:
            return self._plan
        graph = trace_step(planned_loss(self._loss_fn), params, inputs)
        plan = plan_of(graph, self._plan.mesh, self._plan.limits)
        return plan if _parameter_specs(plan) == _parameter_specs(self._plan) else None


def planned_loss(loss_fn: LossFn) -> Any:
    """The loss as a function of parameters and inputs, for `derive`."""

    def loss(params: Params, inputs: Mapping[str, Any]) -> Any:
        return loss_fn(params, {name: leaf for name, leaf in inputs.items() if name != _KEY}, inputs[_KEY])

    return loss


def planned_inputs(batch: Mapping[str, Any], key: Any) -> dict[str, Any]:
    """The inputs of `planned_loss`."""
    return {**batch, _KEY: key}


def _parameter_specs(plan: ShardingPlan) -> dict[str, Spec]:
    return {leaf.path: leaf.spec for leaf in plan.leaves if leaf.role == "parameter"}
