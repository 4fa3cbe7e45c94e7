"""From a loss (and an optimizer) to its contraction graph: walks the jaxpr once, on shapes alone.

The backward pass is not walked: a gradient has the dims of its parameter by definition, and every contraction of the
backward pass has the factors of one of the forward pass. The optimizer's update is walked in the same graph, its
gradients standing for their parameters, so that its state is linked to the parameters it belongs to by what is
computed, and neither by names nor by shapes.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import optax

from jaxscale import frozen
from jaxscale.errors import JaxscaleError, UsageError
from jaxscale.sharding import jaxprs, on_parts
from jaxscale.sharding.factors import Dim, Dims
from jaxscale.sharding.graph import Constant, Constraint, Graph, Kind, Leaf, Role, path_of
from jaxscale.sharding.jaxprs import Address, Branches, Call, Equation, Island, Program, Scan, While
from jaxscale.sharding.notes import Notes
from jaxscale.sharding.primitives import MOVES, RULES, Value, links_nothing, num_elements

# A loss and whatever else; only what it computes matters, not what it returns.
LossFunction = Callable[[Any, Any], Any]


def trace_step(
    loss: LossFunction, params: Any, batch: Any, *, optimizer: optax.GradientTransformation | None = None
) -> Graph:
    """The contraction graph of a training step, or of a loss alone.

    Args:
      loss: takes `params` and `batch`; returns any tree of arrays.
      params: a tree of arrays or `jax.ShapeDtypeStruct`.
      batch: the same; the leading dim of every leaf holds the examples.
      optimizer: its state becomes leaves of the graph; None for none.

    Raises:
      UsageError: what was given can't be traced; with the line that raised, and the error as its cause.
    """
    walk = _Walk()
    parameters = walk.leaves("parameter", params)
    inputs = walk.leaves("batch", batch)
    parameters = [dataclasses.replace(value, origins=frozenset({i})) for i, value in enumerate(parameters)]
    with _of_the_user("the loss"):
        program = jaxprs.trace(loss, params, batch)
    walk.run(program, [*parameters, *inputs])
    if optimizer is not None:
        _trace_update(walk, optimizer, params, parameters)
    return walk.graph()


@contextlib.contextmanager
def _of_the_user(what: str) -> Iterator[None]:
    """What a user's code raises, and jax in it, is an error of usage."""
    try:
        yield
    except JaxscaleError:
        raise
    except Exception as error:  # whatever a user's code may raise
        at = jaxprs.line_of(error)
        raise UsageError(
            f"{what} can't be traced{f' ({at})' * bool(at)}: {type(error).__name__}: {error}; see that it runs under "
            "jax.eval_shape with these shapes"
        ) from error


def _trace_update(
    walk: "_Walk", optimizer: optax.GradientTransformation, params: Any, parameters: Sequence[Value]
) -> None:
    # What is frozen is not updated.
    values = jax.tree.unflatten(jax.tree.structure(params), parameters)
    trained, parameters = frozen.trained(params), jax.tree.leaves(frozen.trained(values))
    with _of_the_user("the optimizer's init"):
        state = jax.eval_shape(optimizer.init, trained)
    first = len(walk.planned)
    olds = walk.leaves("optimizer", state)

    def update(gradients: Any, state: Any, params: Any) -> Any:
        updates, new_state = optimizer.update(gradients, state, params)
        return new_state, optax.apply_updates(params, updates)

    # A gradient has the shape of its parameter, so the parameters' shapes stand for both.
    # How an optimizer's own code promotes its scalars is its business, even where a user's is strict.
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        _of_the_user("the optimizer's update"),
    ):
        program = jaxprs.trace(update, trained, state, trained)
    results = walk.run(program, [*parameters, *olds, *parameters])
    for i, (old, new) in enumerate(zip(olds, results, strict=False)):
        walk.link(old.dims, new.dims)
        if len(new.origins) == 1:
            (origin,) = new.origins
            walk.planned[first + i] = dataclasses.replace(walk.planned[first + i], follows=origin)


class _Walk:
    """One walk through a program."""

    def __init__(self) -> None:
        self.planned: list[Leaf] = []
        self._notes = Notes()
        self._num_values = 0
        # By the identity of the variable, which is kept with it so that no other can take its place.
        self._constants: dict[int, tuple[Any, Constant]] = {}
        # In the order they were met; a loop's body may be walked more than once.
        self._constraints: dict[Constraint, None] = {}
        # The calls that the walk is inside of, outermost first.
        self._calls: list[Equation] = []

    def graph(self) -> Graph:
        """All that was found."""
        graph = self._notes.graph(self.planned, tuple(constant for _, constant in self._constants.values()))
        return dataclasses.replace(graph, constraints=tuple(self._constraints))

    def leaves(self, role: Role, tree: Any) -> list[Value]:
        """Adds the leaves of a tree to the graph and returns their values."""
        values = []
        for key_path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            value = self._value(tuple(leaf.shape), is_data=role == "batch")
            self.planned.append(
                Leaf(
                    role=role,
                    path=path_of(key_path),
                    shape=value.shape,
                    dtype=str(leaf.dtype),
                    num_bytes=num_elements(value.shape) * leaf.dtype.itemsize,
                    dims=value.dims,
                )
            )
            values.append(value)
        return values

    def link(self, left: Dims, right: Dims) -> None:
        """Links the dims of two values of one shape."""
        for mine, theirs in zip(left, right, strict=True):
            self._notes.factors.link(mine, theirs)

    def run(self, program: Program, arguments: Sequence[Value]) -> list[Value]:
        """Walks a program on `arguments` and returns the values of its outputs."""
        known: dict[Any, Value] = dict(zip(program.inputs, arguments, strict=True))
        known.update((constant, self._value(jaxprs.shape_of(constant))) for constant in program.constants)

        def read(variable: Any) -> Value:
            return self._value(jaxprs.shape_of(variable)) if jaxprs.is_literal(variable) else known[variable]

        outer = self._notes.address
        for position, equation in enumerate(program.equations):
            self._notes.address = (*outer, position)
            self._note_constants(equation, program.constants)
            self._note_constraint(equation)
            made = self._apply(equation, [read(variable) for variable in equation.inputs])
            known.update(zip(equation.outputs, made, strict=True))
        self._notes.address = outer
        return [read(variable) for variable in program.outputs]

    def _value(
        self,
        shape: tuple[int, ...],
        dims: Dims | None = None,
        *,
        is_data: bool = False,
        origins: frozenset[int] = frozenset(),
        made_by: tuple[Address, int] | None = None,
    ) -> Value:
        self._num_values += 1
        return Value(
            number=self._num_values,
            shape=shape,
            dims=self._notes.factors.new_dims(shape) if dims is None else dims,
            is_data=is_data,
            origins=origins,
            made_by=made_by,
        )

    def _apply(self, equation: Equation, inputs: list[Value]) -> list[Value]:
        match jaxprs.inner(equation):
            case Scan() as scan:
                return self._scan(scan, inputs)
            case While() as loop:
                first = loop.num_cond_consts + loop.num_body_consts
                return self._loop(loop.body, inputs[loop.num_cond_consts : first], inputs[first:], [])[0]
            case Branches(branches):
                return self._branches(branches, inputs[1:])
            case Island() as island:
                return self._island(equation, island, inputs)
            case Call(program):
                return self._call(equation, program, inputs)
        self._notes.source = functools.partial(self._source, equation)
        since = len(self._notes)
        made = RULES.get(equation.name, links_nothing)(self._notes, equation, inputs)
        ranks = [len(dims) for dims in made]
        if ranks != [len(shape) for shape in equation.output_shapes]:
            raise UsageError(
                f"the sharding rule of primitive {equation.name!r} gave outputs of {ranks} dims, expected the dims of "
                f"outputs of shape {', '.join(map(str, equation.output_shapes))}"
            )
        if equation.name not in RULES:
            self._notes.unknown(equation.name, self._source(equation), tuple(dim for dims in made for dim in dims))
        is_data = any(value.is_data for value in inputs)
        known = [] if is_data else [value.origins for value in inputs if value.shape]
        origins = frozenset[int]().union(*known)
        outputs = zip(equation.output_shapes, made, strict=True)
        values = [
            self._value(shape, dims, is_data=is_data, origins=origins, made_by=self._place(i))
            for i, (shape, dims) in enumerate(outputs)
        ]
        kind: Kind = "contraction" if equation.name not in MOVES else "lookup"
        if kind == "lookup" and (inputs[0].is_data or equation.name != "gather"):
            kind = "routing"
        self._notes.made(kind, values, since)
        return values

    def _call(self, equation: Equation, program: Program, inputs: list[Value]) -> list[Value]:
        """The outputs of a called program; those of a custom derivative's are only pinned at its boundary."""
        address, is_custom = self._notes.address, equation.name.startswith("custom_")
        if equation.name == on_parts.NAME:
            return self._on_parts(equation, program, inputs)
        since, was_inside, was_again = len(self._notes), self._notes.is_inside_custom, self._notes.is_recomputed
        self._notes.is_inside_custom = was_inside or is_custom
        self._notes.is_recomputed = was_again or jaxprs.is_recomputed(equation)
        self._calls.append(equation)
        results = self.run(program, inputs)
        self._calls.pop()
        self._notes.is_inside_custom, self._notes.is_recomputed = was_inside, was_again
        if is_custom:
            results = [dataclasses.replace(value, made_by=self._place(i)) for i, value in enumerate(results)]
            self._notes.address = address
            self._notes.made("boundary", results, since)
        return results

    def _on_parts(self, equation: Equation, program: Program, inputs: list[Value]) -> list[Value]:
        """Results of a function that devices may compute on parts: walked on the whole, and replaced as one."""
        self._notes.on_parts(equation.params["letters"], inputs, self._source(equation))
        was_inside, self._notes.is_inside_custom = self._notes.is_inside_custom, True
        self._calls.append(equation)
        results = self.run(program, inputs)
        self._calls.pop()
        self._notes.is_inside_custom = was_inside
        return [dataclasses.replace(value, made_by=None) for value in results]

    def _island(self, equation: Equation, island: Island, inputs: list[Value]) -> list[Value]:
        """Results of a `shard_map`: its body is walked on the parts, whose dims are what the cuts leave."""
        factors, arguments = self._notes.factors, []
        wholes: list[tuple[tuple[str, ...], Dim, Dim]] = []
        for value, parts, variable in zip(inputs, island.in_parts, island.program.inputs, strict=True):
            rests = []
            for dim, (ways, axes) in zip(value.dims, parts, strict=True):
                cut = factors.take(dim, ways)
                rests.append(factors.new_dim(factors.dim_size(dim) // ways) if cut is None else cut[1])
                wholes.append((axes, dim, rests[-1]))
            shape = jaxprs.shape_of(variable)
            arguments.append(dataclasses.replace(value, shape=shape, dims=tuple(rests), made_by=None))
        notes = self._notes
        outer = notes.is_inside_custom, notes.is_inside_manual
        notes.is_inside_custom = notes.is_inside_manual = True
        self._calls.append(equation)
        made = self.run(island.program, arguments)
        self._calls.pop()
        notes.is_inside_custom, notes.is_inside_manual = outer
        results = []
        for value, shape, parts in zip(made, equation.output_shapes, island.out_parts, strict=True):
            dims = []
            for rest, (ways, axes) in zip(value.dims, parts, strict=True):
                alike = (w for a, w, r in wholes if a == axes and rest and factors.resolve(r) == factors.resolve(rest))
                dims.append(next(alike, (*factors.new_dim(ways), *rest)))
            results.append(dataclasses.replace(value, shape=shape, dims=tuple(dims), made_by=None))
        return results

    def _place(self, output: int) -> tuple[Address, int] | None:
        return None if self._notes.is_inside_custom else (self._notes.address, output)

    def _note_constants(self, equation: Equation, constants: Sequence[Any]) -> None:
        for variable in equation.inputs:
            shape, dtype = jaxprs.shape_of(variable), getattr(variable.aval, "dtype", None)
            if shape and dtype is not None and (jaxprs.is_literal(variable) or variable in constants):
                found = Constant(
                    shape=shape,
                    dtype=str(dtype),
                    num_bytes=num_elements(shape) * dtype.itemsize,
                    source=self._source(equation),
                )
                self._constants.setdefault(id(variable), (variable, found))

    def _note_constraint(self, equation: Equation) -> None:
        parts = jaxprs.constrained(equation)
        if any(ways > 1 for ways, _ in parts):
            (output,), (shape,) = equation.outputs, equation.output_shapes
            num_bytes = num_elements(shape) * output.aval.dtype.itemsize
            found = Constraint(shape=shape, num_bytes=num_bytes, parts=parts, source=self._source(equation))
            self._constraints[found] = None

    def _source(self, equation: Equation) -> str:
        """The user's line that made an equation; inside jax's own functions, the line that called them."""
        sources = (candidate.source for candidate in (equation, *reversed(self._calls)))
        return next((source for source in sources if source), "")

    def _scan(self, scan: Scan, inputs: list[Value]) -> list[Value]:
        num_given = scan.num_consts + scan.num_carry
        steps = self._notes.factors.new_dim(scan.length)
        self._notes.scan(steps)
        slices = []
        for value in inputs[num_given:]:
            self._notes.factors.link(steps, value.dims[0])
            slices.append(dataclasses.replace(value, shape=value.shape[1:], dims=value.dims[1:]))
        outer, self._notes.num_runs = self._notes.num_runs, self._notes.num_runs * scan.length
        consts, carry = inputs[: scan.num_consts], inputs[scan.num_consts : num_given]
        carried, made = self._loop(scan.body, consts, carry, slices)
        self._notes.num_runs = outer
        stacked = [
            dataclasses.replace(value, shape=(scan.length, *value.shape), dims=(steps, *value.dims)) for value in made
        ]
        return [*carried, *stacked]

    def _loop(
        self, body: Program, consts: list[Value], carry: list[Value], slices: list[Value]
    ) -> tuple[list[Value], list[Value]]:
        """The carry after any number of runs, and the other results of one.

        A carry may start without the batch and meet it in the body: then the body is walked again, knowing that.
        """
        start = len(self._notes)
        while True:
            made = self.run(body, [*consts, *carry, *slices])
            carried = [self._either(old, new) for old, new in zip(carry, made, strict=False)]
            if all(
                (old.is_data, old.origins) == (new.is_data, new.origins)
                for old, new in zip(carry, carried, strict=True)
            ):
                return carried, made[len(carry) :]
            self._notes.forget_after(start)
            carry = carried

    def _branches(self, branches: Sequence[Program], inputs: list[Value]) -> list[Value]:
        outer, made = self._notes.address, []
        for number, branch in enumerate(branches):
            self._notes.address = (*outer, number)
            made.append(self.run(branch, inputs))
        self._notes.address = outer
        results, *others = made
        for other in others:
            results = [self._either(mine, theirs) for mine, theirs in zip(results, other, strict=True)]
        return results

    def _either(self, left: Value, right: Value) -> Value:
        """What is known of a value that may be one or the other."""
        self.link(left.dims, right.dims)
        is_data = left.is_data or right.is_data
        origins = frozenset[int]() if is_data else left.origins | right.origins
        return self._value(left.shape, left.dims, is_data=is_data, origins=origins)
