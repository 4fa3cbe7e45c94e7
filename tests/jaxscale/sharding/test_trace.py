"""The contraction graph of small functions, each kind of operation by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxscale.sharding.trace import trace_step


def traced(function, params, batch, **options):
    shapes = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), params, is_leaf=_is_shape)
    batch = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), batch, is_leaf=_is_shape)
    graph = trace_step(function, shapes, batch, **options)
    return graph, {leaf.path: leaf.dims for leaf in graph.leaves}


def _is_shape(value):
    return isinstance(value, tuple)


@pytest.mark.parametrize(
    "through",
    [
        lambda f, *args: jax.jit(f)(*args),
        lambda f, *args: jax.checkpoint(f)(*args),
        lambda f, *args: jax.lax.cond(args[0].sum() > 0, f, lambda *a: f(*a) * 2, *args),
        lambda f, *args: jax.lax.scan(lambda c, _: (c + f(*args), None), f(*args), None, length=2)[0],
        lambda f, *args: jax.lax.fori_loop(0, 3, lambda _, c: c + f(*args), f(*args)),
        lambda f, *args: _custom_vjp(f)(*args),
        lambda f, *args: _custom_jvp(f)(*args),
    ],
    ids=["jit", "remat", "cond", "scan", "while", "custom_vjp", "custom_jvp"],
)
def test_links_go_through_control_flow(through):
    graph, dims = traced(
        lambda p, b: through(lambda x, w: x @ w, b, p["w"]) + p["bias"], {"w": (4, 6), "bias": (3, 6)}, (3, 4)
    )
    assert dims["w"] == (dims[""][1], dims["bias"][1])
    assert dims["bias"][0] == dims[""][0]
    assert graph.not_understood == ()


def _custom_vjp(function):
    wrapped = jax.custom_vjp(function)
    wrapped.defvjp(lambda *args: (function(*args), args), lambda args, g: args)
    return wrapped


def _custom_jvp(function):
    wrapped = jax.custom_jvp(function)
    wrapped.defjvp(lambda primals, tangents: (function(*primals), function(*tangents)))
    return wrapped


def test_heads_of_a_fused_projection():
    """Kernels [D, H*C] against one of [H*C, D]: the reshape to heads splits both."""

    def attention(p, x):
        q, k, v = ((x @ p[name]).reshape(2, 5, 4, 3) for name in ("q", "k", "v"))
        weights = jax.nn.softmax(jnp.einsum("bshc,bthc->bhst", q, k))
        return jnp.einsum("bhst,bthc->bshc", weights, v).reshape(2, 5, 12) @ p["o"]

    graph, dims = traced(attention, {"q": (8, 12), "k": (8, 12), "v": (8, 12), "o": (12, 8)}, (2, 5, 8))
    heads, width = dims["q"][1]
    assert (graph.sizes[heads], graph.sizes[width]) == (4, 3)
    assert dims["k"][1] == (heads, width)
    assert dims["v"][1] == dims["o"][0]
    assert dims["v"][1][0] == heads
    assert dims["v"][1][1] != width


def test_grouped_heads_by_repeating():
    """Keys of 2 heads repeated to 4: the 4 query heads become 2 groups of 2."""

    def scores(p, x):
        q, k = (x @ p["q"]).reshape(2, 5, 4, 3), (x @ p["k"]).reshape(2, 5, 2, 3)
        return jnp.einsum("bshc,bthc->bhst", q, jnp.repeat(k, 2, axis=2))

    graph, dims = traced(scores, {"q": (8, 12), "k": (8, 6)}, (2, 5, 8))
    assert [graph.sizes[f] for f in dims["q"][1]] == [2, 2, 3]
    assert dims["k"][1] == (dims["q"][1][0], dims["q"][1][2])


def test_scan_marks_the_layers_and_counts_the_runs():
    def layers(p, x):
        return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w["up"]) @ w["down"], None), x, p)[0]

    graph, dims = traced(layers, {"up": (7, 4, 6), "down": (7, 6, 4)}, (3, 4))
    assert graph.scanned == {dims["up"][0][0]} == {dims["down"][0][0]}
    assert dims["up"][1:] == dims["down"][:0:-1]
    assert [c.num_runs for c in graph.contractions] == [7, 7]
    assert [c.num_flops for c in graph.contractions] == [2 * 3 * 4 * 6] * 2


def test_a_carry_that_meets_the_batch_late_is_known_to():
    """The carry starts as zeros; only the second run of the body contracts data with a parameter."""

    def recurrent(p, x):
        return jax.lax.scan(lambda c, step: (jnp.tanh(c @ p + step), None), jnp.zeros((3, 4)), x)[0]

    graph, _ = traced(recurrent, (4, 4), (5, 3, 4))
    (contraction,) = graph.contractions
    assert contraction.left.is_data
    assert not contraction.right.is_data
    assert contraction.num_runs == 5


def test_what_a_remat_computes_again_is_told_from_what_it_may_keep():
    def loss(p, x):
        layer = jax.checkpoint(lambda c, w: (jnp.tanh(c @ w), None))
        may_keep = jax.checkpoint(lambda c: jnp.tanh(c @ p["two"]), policy=jax.checkpoint_policies.dots_saveable)
        return may_keep(jax.lax.scan(layer, x, p["one"])[0]) @ p["two"]

    graph, _ = traced(loss, {"one": (3, 4, 4), "two": (4, 4)}, (2, 4))
    assert [c.is_recomputed for c in graph.contractions] == [True, False, False]


def test_rows_looked_up_by_the_batch_are_told_from_rows_looked_up_by_position():
    def embed(p, batch):
        tokens = batch.astype(jnp.int32)
        positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
        return jnp.take(p["token"], tokens, axis=0) + jnp.take(p["position"], positions, axis=0, mode="clip")

    graph, dims = traced(embed, {"token": (16, 4), "position": (5, 4)}, (2, 5))
    assert graph.looked_up == {dims["token"][0][0]}
    assert dims["token"][1] == dims["position"][1]


def test_operations_without_links_and_unknown_ones():
    def function(p, x):
        noise = jax.random.normal(jax.random.key(0), (3, 4))
        return jnp.fft.fft(x * p + noise).real

    graph, _ = traced(function, (3, 4), (3, 4))
    assert [(n.primitive, n.count) for n in graph.not_understood] == [("fft", 1)]
    assert graph.not_understood[0].source.startswith("test_trace.py:")


def test_slices_and_concatenations_keep_the_dims_they_do_not_cut():
    def function(p, x):
        joined = jnp.concatenate([x, p["a"]], axis=0)
        return joined + jnp.pad(p["b"][1:3], ((0, 3), (0, 0)))

    _, dims = traced(function, {"a": (2, 6), "b": (4, 6)}, (3, 6))
    assert dims["a"][1] == dims["b"][1] == dims[""][1]
    assert len({dims["a"][0], dims["b"][0], dims[""][0]}) == 3


def test_a_reshape_that_cuts_across_factors_links_nothing_wrong():
    def function(p, x):
        return x.reshape(4, 3).reshape(12) * p.reshape(3, 4).reshape(12)

    graph, dims = traced(function, (12,), (12,))
    assert np.prod([graph.sizes[f] for f in dims[""][0]]) == 12


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1, momentum=0.9),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
        optax.lion(1e-3),
        optax.apply_if_finite(optax.adam(1e-3), 3),
        optax.masked(optax.adam(1e-3), lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
        optax.MultiSteps(optax.adamw(1e-3), 4).gradient_transformation(),
        optax.contrib.schedule_free_adamw(1e-3),
    ],
    ids=["momentum", "clipped adamw", "lion", "if finite", "masked", "multi steps", "schedule free"],
)
def test_optimizer_state_follows_the_parameter_it_is_made_from(optimizer):
    """Two parameters of one shape, so that no shape could tell."""
    graph, dims = traced(
        lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], {"a": (4, 4), "b": (4, 4)}, (3, 4), optimizer=optimizer
    )
    state = [leaf for leaf in graph.leaves if leaf.role == "optimizer" and len(leaf.shape) == 2]
    assert state
    for leaf in state:
        name = leaf.path[-1]
        assert graph.leaves[leaf.follows].path == name
        assert leaf.dims == dims[name]


def test_state_that_is_only_written_is_linked_to_what_it_is_made_from():
    """An optimizer that remembers the last gradient and never reads it."""
    remember = optax.GradientTransformation(
        init=lambda params: jax.tree.map(jnp.zeros_like, params), update=lambda grads, state, params: (grads, grads)
    )
    graph, _ = traced(lambda p, x: x @ p["w"], {"w": (4, 6)}, (3, 4), optimizer=remember)
    (state,) = [leaf for leaf in graph.leaves if leaf.role == "optimizer"]
    assert state.dims == graph.leaves[0].dims
    assert state.follows == 0
