"""A user's Flax model as the loop wants one: parameters made of a key, and the model again out of parameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import flax.linen
import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from jaxscale.errors import UsageError
from jaxscale.frozen import FROZEN
from jaxscale.train.objective import Params

# What a user gives: a function of a random key that makes an nnx module, or a Linen module.
UserModel: TypeAlias = Callable[[PRNGKeyArray], nnx.Module] | flax.linen.Module


class Adapter(Protocol):
    """What there is to be known of a model."""

    def init_params(self, key: PRNGKeyArray) -> Params:
        """Fresh parameters, a nested dict. Traceable."""
        ...

    def bound(self, params: Params) -> Any:
        """The model with these parameters, to be called. Traceable."""
        ...


@dataclasses.dataclass(frozen=True)
class _NnxModel:
    make: Callable[[PRNGKeyArray], nnx.Module]

    def init_params(self, key: PRNGKeyArray) -> Params:
        _, params, rest = nnx.split(self.make(key), nnx.Param, ...)
        if others := sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(rest)}):
            raise UsageError(
                f"the model keeps {', '.join(others)} besides nnx.Param, which is neither trained nor saved; give "
                "layers with dropout their rngs in the call, and take norms without running averages"
            )
        made: Params = nnx.to_pure_dict(params)
        return _all_trained(made)

    def bound(self, params: Params) -> Any:
        return nnx.merge(self._graphdef, params)

    @functools.cached_property
    def _graphdef(self) -> Any:
        return nnx.graphdef(nnx.eval_shape(lambda: self.make(jax.random.key(0))))


@dataclasses.dataclass(frozen=True)
class _LinenModel:
    module: flax.linen.Module
    inputs: tuple[Any, ...]

    def init_params(self, key: PRNGKeyArray) -> Params:
        made = self.module.init(key, *self.inputs)
        if others := sorted(made.keys() - {"params"}):
            raise UsageError(
                f"the model keeps the collections {', '.join(others)} besides params, which are neither trained nor "
                "saved; take norms without running averages"
            )
        params: Params = made["params"]
        return _all_trained(params)

    def bound(self, params: Params) -> Any:
        return self.module.bind({"params": params})


def _all_trained(params: Params) -> Params:
    if FROZEN in params:
        raise UsageError(
            f"the model has a part named {FROZEN!r} at its top, where training keeps what it leaves as it is; name it "
            "otherwise"
        )
    return params


def adapted(
    model: UserModel, inputs: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None, batch: Mapping[str, Any]
) -> Adapter:
    """The adapter of a user's model.

    Args:
      model: as the user gave it.
      inputs: of a batch what a Linen model is called with to make its parameters; None for an nnx module.
      batch: of which the shapes count.

    Raises:
      UsageError: the model is neither, or a Linen module lacks `inputs`.
    """
    if isinstance(model, flax.linen.Module):
        if inputs is None:
            raise UsageError(
                "a Linen module makes its parameters from what it is called with: give `inputs`, a function of a "
                "batch such as lambda batch: (batch['x'],)"
            )
        return _LinenModel(model, inputs(batch))
    if isinstance(model, nnx.Module) or not callable(model):
        raise UsageError(
            f"model: got {type(model).__name__}, expected a Linen module, or a function that makes an nnx module of a "
            "random key, such as lambda key: Net(rngs=nnx.Rngs(key))"
        )
    return _NnxModel(model)
