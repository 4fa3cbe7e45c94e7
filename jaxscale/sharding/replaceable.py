"""A part of a program that is one equation until it is differentiated, so that it can be replaced as a whole.

Plans and counts look into it as into any call. It is nothing to the compiler: lowered, differentiated or vectorised, it
is the equations that it holds, as if they had been written out.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxscale.sharding.jaxprs import REPLACEABLE

_replaceable = Primitive(REPLACEABLE)
_replaceable.multiple_results = True


def replaceable(function: Callable[..., jax.Array], mark: Hashable, *operands: jax.Array) -> jax.Array:
    """function(*operands), findable in a program by its mark.

    Args:
      function: traceable; closes over no arrays.
      mark: says what is computed to whoever may replace it; see `jaxscale.sharding.jaxprs.mark_of`.
      *operands: of the function, in the order that a replacement is to take them.

    >>> import jax.numpy as jnp
    >>> jax.grad(lambda x: replaceable(jnp.sin, "sine", x))(0.0)
    Array(1., dtype=float32, weak_type=True)
    """
    jaxpr = jax.make_jaxpr(function)(*operands)
    (made,) = _replaceable.bind(*operands, jaxpr=jaxpr, mark=mark)
    return made


def _written_out(*operands: Any, jaxpr: Any, mark: Hashable) -> Sequence[Any]:
    return jaxpr_as_fun(jaxpr)(*operands)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    given = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]

    def of_given(*some: Any) -> Sequence[Any]:
        whole = list(primals)
        for i, value in zip(given, some, strict=True):
            whole[i] = value
        return _written_out(*whole, **params)

    return jax.jvp(of_given, [primals[i] for i in given], [tangents[i] for i in given])


def _batched(operands: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[Sequence[Any], Sequence[int]]:
    made = jax.vmap(lambda *each: tuple(_written_out(*each, **params)), in_axes=tuple(dims))(*operands)
    return made, [0] * len(made)


_replaceable.def_impl(_written_out)
_replaceable.def_abstract_eval(lambda *operands, jaxpr, mark: jaxpr.out_avals)
mlir.register_lowering(_replaceable, mlir.lower_fun(_written_out, multiple_results=True))
ad.primitive_jvps[_replaceable] = _jvp
batching.primitive_batchers[_replaceable] = _batched
