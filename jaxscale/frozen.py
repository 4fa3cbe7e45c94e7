"""Parameters that a step reads and leaves as they are: what a tree of parameters has below `frozen`, at its top.

They are placed by a plan, kept in checkpoints and donated like all others; they have no gradient and no state of an
optimizer.
"""

from collections.abc import Callable
from typing import Any

import jax

FROZEN = "frozen"


def trained(params: Any) -> Any:
    """A tree of parameters without those that are frozen; the tree itself where none are.

    >>> trained({"frozen": {"kernel": 1}, "bias": 2})
    {'bias': 2}
    """
    if not (isinstance(params, dict) and FROZEN in params):
        return params
    return {name: leaf for name, leaf in params.items() if name != FROZEN}


def with_frozen(trained_params: Any, params: Any) -> Any:
    """The first tree, which is as `trained` gives it, with what is frozen in the second.

    >>> with_frozen({"bias": 3}, {"frozen": {"kernel": 1}, "bias": 2})
    {'frozen': {'kernel': 1}, 'bias': 3}
    """
    held = trained(params)
    return trained_params if held is params else {FROZEN: params[FROZEN], **trained_params}


def positions(params: Any) -> tuple[int, ...]:
    """The positions of the frozen leaves among all of the tree's.

    >>> positions({"bias": 2, "frozen": {"kernel": 1}, "scale": 3})
    (1,)
    """
    held = with_frozen(jax.tree.map(lambda _: False, trained(params)), jax.tree.map(lambda _: True, params))
    return tuple(i for i, is_held in enumerate(jax.tree.leaves(held)) if is_held)


def value_and_grad(function: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """As `jax.value_and_grad` of the first argument, with the gradient of what is trained alone."""

    def of_params(params: Any, *others: Any) -> Any:
        def of_trained(chosen: Any, *others: Any) -> Any:
            return function(with_frozen(chosen, params), *others)

        return jax.value_and_grad(of_trained, has_aux=has_aux)(trained(params), *others)

    return of_params
