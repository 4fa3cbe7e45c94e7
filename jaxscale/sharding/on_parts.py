"""Functions that a plan has every device compute on its own parts of their operands, by hand-written communication.

A model writes `on_parts(body, dims, *operands)`. Where nothing is planned, that is the body on whole arrays. A plan
that splits them puts a `shard_map` of the body in its place (`islands`), and tells the body which mesh axes split which
dim; so the model has neither a mesh nor a `PartitionSpec`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from jaxscale.errors import UsageError

# The name of its equations.
NAME = "on_parts"
# Dims of an operand, and the mesh axes over which each is kept in parts that are to be gathered.
Stored = tuple[tuple[int, tuple[str, ...]], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a body is told of its operands; nothing is split where it is called on whole arrays.

    Attributes:
      axes: by the letter of a dim, the mesh axes that it is split over, outermost first.
      stored: of every operand, the dims that are split over further axes because the operand is kept in parts, as fully
        sharded parameters are: the body gathers them (`jax.lax.all_gather`, tiled) before it computes with them.
      platform: of the devices, as `tpu`; "" where nothing is split.
    """

    axes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    stored: tuple[Stored, ...] = ()
    platform: str = ""

    def over(self, letter: str) -> tuple[str, ...]:
        """The mesh axes that a dim is split over.

        >>> Parts(axes=(("F", ("tensor",)),)).over("F"), Parts().over("F")
        (('tensor',), ())
        """
        return dict(self.axes).get(letter, ())

    def stored_over(self, operand: int) -> Stored:
        """The dims of an operand that are to be gathered first, and the axes over which."""
        return self.stored[operand] if self.stored else ()


# Of (parts, *operands); pure and traceable, hashable, and it closes over no arrays.
Body = Callable[..., jax.Array]


def on_parts(body: Body, dims: str, *operands: jax.Array) -> jax.Array:
    """`body(Parts(), *operands)`, which a plan may have computed by every device on its own parts.

    Args:
      body: given the parts of its operands, returns the part of its result, the communication between devices its own.
      dims: a letter for each dim of the operands and the result. What capital letters name may be split, over the same
        axes wherever the letter stands; what small ones name is whole.
      *operands: arrays.

    Raises:
      UsageError: the letters do not fit the arrays.

    >>> double = lambda parts, x, w: x @ w
    >>> on_parts(double, "Bd,dF->BF", jax.numpy.ones((2, 3)), jax.numpy.ones((3, 4))).shape
    (2, 4)
    """
    letters, result = parse(dims)
    whole = jax.make_jaxpr(lambda *arrays: body(Parts(), *arrays))(
        *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands)
    )
    ranks, expected = [x.ndim for x in operands], [len(names) for names in letters]
    if ranks != expected or len(whole.out_avals) != 1 or whole.out_avals[0].ndim != len(result):
        made = [aval.ndim for aval in whole.out_avals]
        raise UsageError(f"dims={dims!r} do not fit operands of {ranks} dims and results of {made}")
    (made,) = _on_parts.bind(*operands, call_jaxpr=whole, body=body, letters=dims)
    return cast(jax.Array, made)


def parse(dims: str) -> tuple[tuple[str, ...], str]:
    """The letters of every operand, and those of the result.

    >>> parse("BSd,EdF->BSd")
    (('BSd', 'EdF'), 'BSd')
    """
    operands, _, result = dims.partition("->")
    return tuple(operands.split(",")), result


_on_parts = Primitive(NAME)
_on_parts.multiple_results = True


def _run(*operands: Any, call_jaxpr: Any, body: Body, letters: str) -> Sequence[jax.Array]:
    made: Sequence[jax.Array] = jaxpr_as_fun(call_jaxpr)(*operands)
    return made


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> Any:
    tangents = tuple(ad.instantiate_zeros(tangent) for tangent in tangents)
    # Differentiated, it is the operations of its body: a plan has been applied before.
    return jax.jvp(lambda *operands: _run(*operands, **params), tuple(primals), tangents)


def _batch(operands: Sequence[Any], in_axes: Sequence[Any], **params: Any) -> Any:
    made = jax.vmap(lambda *one: _run(*one, **params), in_axes=tuple(in_axes))(*operands)
    return made, [0] * len(made)


_on_parts.def_impl(lambda *operands, **params: jax.jit(lambda *arrays: _run(*arrays, **params))(*operands))
_on_parts.def_abstract_eval(lambda *avals, call_jaxpr, **_: call_jaxpr.out_avals)
ad.primitive_jvps[_on_parts] = _jvp
batching.primitive_batchers[_on_parts] = _batch
mlir.register_lowering(_on_parts, mlir.lower_fun(_run, multiple_results=True))
