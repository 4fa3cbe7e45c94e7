"""The one module that knows how jaxprs are laid out, in both dialects: jax 0.10 and jax 0.12.

In 0.10 a closed jaxpr wraps an open one and `scan` counts its constants and carries; in 0.12 the two jaxprs are one
class and `scan` holds flat trees of its inputs. Everything else reads `Program` and `Equation`.
"""

import dataclasses
import functools
import math
import pathlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Literal
from jax.sharding import NamedSharding

from jaxscale.sharding import on_parts

# The primitive of `jaxscale.sharding.replaceable`.
REPLACEABLE = "replaceable"

# Primitives that run one inner jaxpr once, on exactly their operands.
_CALLS = frozenset(
    {
        "checkpoint",
        "closed_call",
        "core_call",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_vmap_call",
        "jit",
        on_parts.NAME,
        "pjit",
        "remat",
        "remat2",
        REPLACEABLE,
    }
)
_CALL_PARAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")

# The parameter that holds the programs that may be changed, by primitive. Those of custom derivatives are not here: a
# changed body would disagree with its own derivative. Nor are kernels and `shard_map`, which see one device's part.
_CHANGEABLE = {
    "scan": "jaxpr",
    "while": "body_jaxpr",
    "cond": "branches",
    **dict.fromkeys(("jit", "pjit", "checkpoint", "remat", "remat2", REPLACEABLE), "jaxpr"),
    **dict.fromkeys(("closed_call", "core_call"), "call_jaxpr"),
}

# Primitives that have their body computed again by the backward pass.
_REMATERIALIZED = frozenset({"checkpoint", "remat", "remat2"})

# Where an equation stands: positions of equations, outermost program first, and after the position of a `cond` the
# number of the branch. (3,) is the fourth equation of a program; (3, 0) the first of the body or the called program
# it holds; (3, 1, 0) the first of the second branch of a `cond`. Of a `while` it is the body that is meant.
Address = tuple[int, ...]
_SITE_PACKAGES = pathlib.Path(jax.__file__).parent.parent
_SHARDING = pathlib.Path(__file__).parent
_LIBRARIES = (
    *(str(_SITE_PACKAGES / name) for name in ("jax", "flax", "optax", "jaxtyping")),
    str(_SHARDING / "on_parts.py"),
)


@dataclasses.dataclass(frozen=True)
class Equation:
    """One equation: a primitive's name, what it reads and makes, its parameters."""

    name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    params: Mapping[str, Any]
    source_info: Any

    @property
    def output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of what it makes."""
        return tuple(shape_of(variable) for variable in self.outputs)

    @property
    def source(self) -> str:
        """`file.py:line` of the user's code that made it; empty where jax kept none."""
        raised = self.source_info.traceback
        for frame in [] if raised is None else raised.frames:
            if not frame.file_name.startswith(_LIBRARIES):
                return f"{pathlib.PurePath(frame.file_name).name}:{frame.line_num}"
        return ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A jaxpr: variables for its constants and inputs, its equations in order, its outputs."""

    jaxpr: Any

    @property
    def constants(self) -> tuple[Any, ...]:
        """Variables that stand for arrays closed over."""
        return tuple(self.jaxpr.constvars)

    @property
    def inputs(self) -> tuple[Any, ...]:
        """Variables that stand for the arguments."""
        return tuple(self.jaxpr.invars)

    @property
    def outputs(self) -> tuple[Any, ...]:
        """Variables or literals that are the results."""
        return tuple(self.jaxpr.outvars)

    @functools.cached_property
    def equations(self) -> tuple[Equation, ...]:
        """The equations, in the order they run."""
        return tuple(
            Equation(str(e.primitive), tuple(e.invars), tuple(e.outvars), e.params, e.source_info)
            for e in self.jaxpr.eqns
        )


@dataclasses.dataclass(frozen=True)
class Scan:
    """A `scan`: its body takes `num_consts` constants, `num_carry` carries, and slices of the rest."""

    body: Program
    num_consts: int
    num_carry: int
    length: int


@dataclasses.dataclass(frozen=True)
class While:
    """A `while`: its operands are the condition's constants, the body's, and the carries."""

    body: Program
    num_cond_consts: int
    num_body_consts: int


@dataclasses.dataclass(frozen=True)
class Branches:
    """A `cond`: its first operand chooses the branch, which takes the others."""

    branches: tuple[Program, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of one inner program on the equation's operands."""

    program: Program


@dataclasses.dataclass(frozen=True)
class Island:
    """A `shard_map`: its body sees parts; for every dim of its operands and results, how many and over which axes."""

    program: Program
    in_parts: tuple[tuple[tuple[int, tuple[str, ...]], ...], ...]
    out_parts: tuple[tuple[tuple[int, tuple[str, ...]], ...], ...]


def trace(function: Callable[..., Any], *arguments: Any) -> Program:
    """The program of `function` for abstract or concrete arguments; nothing is computed.

    Args:
      function: a traceable function.
      arguments: trees of arrays or of `jax.ShapeDtypeStruct`.
    """
    return _program(jax.make_jaxpr(function)(*arguments))


def inner(equation: Equation) -> Scan | While | Branches | Call | Island | None:
    """The programs that an equation holds, or None for a plain operation (or one nobody here understands)."""
    params = equation.params
    if equation.name == "scan":
        num_consts, num_carry = _scan_counts(params)
        return Scan(_program(params["jaxpr"]), num_consts, num_carry, params["length"])
    if equation.name == "while":
        return While(_program(params["body_jaxpr"]), params["cond_nconsts"], params["body_nconsts"])
    if equation.name == "cond":
        return Branches(tuple(_program(branch) for branch in params["branches"]))
    if equation.name == "shard_map":
        sizes = dict(params["mesh"].shape)
        ins = zip(params["in_specs"], map(shape_of, equation.inputs), strict=True)
        outs = zip(params["out_specs"], equation.output_shapes, strict=True)
        return Island(
            _program(params["jaxpr"]),
            tuple(_parts(spec, len(shape), sizes) for spec, shape in ins),
            tuple(_parts(spec, len(shape), sizes) for spec, shape in outs),
        )
    if equation.name in _CALLS:
        called = next((_program(params[name]) for name in _CALL_PARAMS if name in params), None)
        if called is not None and len(called.inputs) == len(equation.inputs):
            return Call(called)
    return None


def is_recomputed(equation: Equation) -> bool:
    """Whether the backward pass computes all of its body again; a policy that keeps some of it may keep any."""
    return equation.name in _REMATERIALIZED and equation.params.get("policy") is None


def constrained(equation: Equation) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """How many parts a user's `with_sharding_constraint` cuts every dim into, and over which axes; else nothing."""
    sharding = equation.params.get("sharding") if equation.name == "sharding_constraint" else None
    if not isinstance(sharding, NamedSharding):
        return ()
    # Besides axes and None there is UNCONSTRAINED, which leaves a dim to XLA.
    entries = [entry if isinstance(entry, str | tuple) else None for entry in sharding.spec]
    return _parts(entries, len(equation.output_shapes[0]), dict(sharding.mesh.shape))


def line_of(error: BaseException) -> str:
    """`file.py:line` of the innermost line of the user's that an error passed through; empty where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, str(_SHARDING)))]
    return f"{pathlib.PurePath(users[-1].filename).name}:{users[-1].lineno}" if users else ""


def changeable(equation: JaxprEqn) -> tuple[Any, ...]:
    """The jaxprs that an equation of jax's holds and that may be changed: one, or a `cond`'s branches, or none."""
    held = equation.params.get(_CHANGEABLE.get(equation.primitive.name, ""), ())
    return held if isinstance(held, tuple) else (held,)


def mark_of(equation: JaxprEqn) -> Any:
    """The mark of an equation of jax's that `replaceable` made; None for any other."""
    return equation.params["mark"] if equation.primitive.name == REPLACEABLE else None


def with_changed(equation: JaxprEqn, jaxprs: Sequence[Any]) -> JaxprEqn:
    """The equation, holding `jaxprs` in the place of those that `changeable` returns."""
    name = _CHANGEABLE[equation.primitive.name]
    held = tuple(jaxprs) if isinstance(equation.params[name], tuple) else jaxprs[0]
    return equation.replace(params={**equation.params, name: held})


def with_equations(jaxpr: Any, equations: Sequence[JaxprEqn], outputs: Sequence[Any]) -> Any:
    """The jaxpr with other equations and outputs; constants, inputs, effects and names stay.

    Args:
      jaxpr: closed or open; what comes back is of the same kind.
      equations: without effects that the jaxpr does not have.
      outputs: variables or literals, as many as before.
    """
    opened = _program(jaxpr).jaxpr
    changed = opened.replace(eqns=list(equations), outvars=list(outputs), debug_info=opened.debug_info)
    return changed if opened is jaxpr else jaxpr.replace(jaxpr=changed)


def is_literal(variable: Any) -> bool:
    """Whether an operand is a constant written into the equation."""
    return isinstance(variable, Literal)


def shape_of(variable: Any) -> tuple[int, ...]:
    """The shape of a variable or literal; () of what has none, such as a token."""
    return tuple(getattr(variable.aval, "shape", ()))


def dtype_of(variable: Any) -> str:
    """The name of the dtype of a variable or literal that is an array."""
    return str(variable.aval.dtype)


def _program(jaxpr: Any) -> Program:
    # 0.10: a ClosedJaxpr holds the open one as `.jaxpr`. 0.12: there is one class, whose `.jaxpr` is itself.
    return Program(getattr(jaxpr, "jaxpr", jaxpr))


def _scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def _parts(spec: Any, rank: int, sizes: Mapping[str, int]) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """For every dim the number of parts that a PartitionSpec cuts it into, and the axes."""
    entries = [*spec, *[None] * (rank - len(spec))]
    named = [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in entries]
    return tuple((math.prod(sizes[axis] for axis in axes), axes) for axes in named)
