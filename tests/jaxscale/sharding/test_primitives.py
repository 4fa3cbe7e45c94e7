"""Dims through convolutions, scatters, concatenations, slices and `shard_map`, each against what is known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.experts import expert_factors
from jaxscale.sharding.graph import Concatenation
from jaxscale.sharding.trace import trace_step


def traced(function, params, batch):
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in params.items()}
    graph = trace_step(function, shapes, jax.ShapeDtypeStruct(batch, jnp.float32))
    assert graph.not_understood == ()
    return graph, {leaf.path: leaf.dims for leaf in graph.leaves}


def test_a_convolution_contracts_channels_and_window():
    """[N C H W] with [O C 3 3], then a matmul over O."""

    def loss(p, x):
        made = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME")
        return jnp.einsum("nohw,od->nhwd", made, p["out"]) + jnp.einsum("nchw,cd->nhwd", x, p["skip"])

    graph, dims = traced(loss, {"kernel": (6, 4, 3, 3), "out": (6, 5), "skip": (4, 5)}, (2, 4, 8, 8))
    assert dims["kernel"][0] == dims["out"][0]
    assert dims["kernel"][1] == dims["skip"][0] == dims[""][1]
    assert graph.contractions[0].num_flops == 2 * (2 * 6 * 8 * 8) * (4 * 3 * 3)
    assert graph.contractions[0].right.free == dims["kernel"][0]


def test_groups_of_a_convolution_are_a_batch_dim_of_it():
    def loss(p, x):
        return jax.lax.conv_general_dilated(x, p["kernel"], (2,), "SAME", feature_group_count=4)

    graph, dims = traced(loss, {"kernel": (12, 2, 3)}, (2, 8, 10))
    groups, each = dims["kernel"][0]
    assert (graph.sizes[groups], graph.sizes[each]) == (4, 3)
    assert dims[""][1] == (groups, *dims["kernel"][1])
    assert graph.contractions[0].batch == (groups,)


def test_a_scatter_has_its_targets_dims_and_says_where_the_batch_decides():
    def loss(p, x):
        places = jnp.argmax(x, axis=1)
        return jnp.zeros((7, 4)).at[places].add(x) @ p["w"]

    graph, dims = traced(loss, {"w": (4, 3)}, (5, 4))
    assert dims["w"][0] == dims[""][1]
    (contraction,) = graph.contractions
    assert set(contraction.left.free) <= graph.routed
    assert [graph.sizes[factor] for factor in contraction.left.free] == [7]


@pytest.mark.parametrize(
    "parts_of",
    [
        lambda y: jnp.split(y, [4, 6], axis=-1),
        lambda y: (y[:, :4], y[:, 4:6], y[:, 6:]),
    ],
    ids=["split", "slices"],
)
def test_a_fused_projection_is_the_concatenation_of_its_parts(parts_of):
    def loss(p, x):
        q, k, v = parts_of(x @ p["fused"])
        return (q @ p["q"]).sum() + (k @ p["k"]).sum() + (v @ p["v"]).sum()

    graph, dims = traced(loss, {"fused": (3, 8), "q": (4, 5), "k": (2, 5), "v": (2, 5)}, (6, 3))
    parts = tuple(dims[name][0] for name in "qkv")
    assert graph.concatenations == (Concatenation(dim=dims["fused"][1], parts=parts, starts=(0, 4, 6)),)


def test_slices_that_leave_something_out_are_no_concatenation():
    graph, dims = traced(lambda p, x: (x @ p["w"])[:, 1:] @ p["o"], {"w": (3, 8), "o": (7, 2)}, (6, 3))
    assert graph.concatenations == ()
    assert (dims["w"][1], dims["o"][0]) in graph.slices


def test_joined_arrays_are_the_parts_of_what_they_make():
    graph, dims = traced(lambda p, x: x @ jnp.concatenate([p["a"], p["b"]], axis=1), {"a": (3, 4), "b": (3, 2)}, (6, 3))
    (found,) = graph.concatenations
    assert (found.parts, found.starts) == ((dims["a"][1], dims["b"][1]), (0, 4))
    assert dims["a"][0] == dims["b"][0]


def test_stacked_arrays_have_the_same_dims_and_one_more():
    graph, dims = traced(lambda p, x: jnp.stack([p["a"], p["b"]], axis=1) * x, {"a": (3, 4), "b": (3, 4)}, (3, 2, 4))
    assert dims["a"] == dims["b"] == (dims[""][0], dims[""][2])
    assert graph.not_understood == ()


def test_a_ragged_contraction_is_in_step_with_its_runs():
    """Rows of the batch, 4 runs of them as the batch says, each with a matrix of its own."""

    def loss(p, x):
        sizes = jnp.sum((jnp.argmax(x @ p["router"], axis=1)[:, None] == jnp.arange(4)[None]), axis=0, dtype=jnp.int32)
        return jax.lax.ragged_dot(x, p["up"], sizes).sum()

    graph, dims = traced(loss, {"router": (6, 4), "up": (4, 6, 5)}, (8, 6))
    router, up, x = dims["router"], dims["up"], dims[""]
    (_, ragged) = graph.contractions
    assert (ragged.batch, ragged.contracted) == (up[0], x[1])
    assert (ragged.left.free, ragged.right.free) == (x[0], up[2])
    # As many FLOPs as one matrix for all rows, not one for each run.
    assert ragged.num_flops == 2 * 8 * 6 * 5
    assert (router[0], up[1]) == (x[1], x[1])
    assert expert_factors(graph) == frozenset(up[0])


def test_a_slice_updated_in_place_keeps_its_dims():
    def loss(p, x):
        return jax.lax.dynamic_update_slice(p["cache"], x[None], (2, 0, 0))

    _, dims = traced(loss, {"cache": (9, 5, 4)}, (5, 4))
    assert dims["cache"][1:] == dims[""]


@pytest.mark.parametrize("along", [jnp.cumsum, lambda y, axis: jnp.sort(y, axis=axis), jax.nn.softmax])
def test_what_goes_along_a_dim_keeps_it(along):
    _, dims = traced(lambda p, x: along(x, axis=1) + p["w"], {"w": (5, 4)}, (5, 4))
    assert dims["w"] == dims[""]


def test_shard_map_links_at_its_boundary():
    """A row-parallel matmul by hand: the contracted dims are cut in 2, the examples in 4."""
    mesh = make_mesh(MeshSpec(data=4, tensor=2))

    def loss(p, x):
        rows = jax.shard_map(
            lambda x, w: jax.lax.psum(x @ w, "tensor"),
            mesh=mesh,
            in_specs=(P("data", "tensor"), P("tensor")),
            out_specs=P("data"),
        )
        return rows(x, p["w"]) + p["bias"]

    graph, dims = traced(loss, {"w": (16, 6), "bias": (8, 6)}, (8, 16))
    assert dims["bias"] == (dims[""][0], dims["w"][1])
    assert [graph.sizes[factor] for factor in dims["w"][0]] == [2, 8]
    assert dims["w"][0][1] == dims[""][1][1]
    assert [c.is_manual for c in graph.contractions] == [True]
    assert graph.activations == ()
