"""Which results are pinned and where, in plain functions whose right answer can be counted by hand."""

import jax
import jax.numpy as jnp

from jaxscale.mesh import MeshSpec
from jaxscale.sharding import jaxprs
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.specs import spec_text
from tests.jaxscale.sharding import transformers as t


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def pins(loss, params, batch, mesh):
    plan = derive(loss, params, batch, MeshSpec.parse(mesh), limits=Limits(small_leaf_bytes=0, max_flops_ratio=99))
    return {made.address: (made.shape, spec_text(made.spec), made.rule) for made in plan.activations}


def mlp(p, x):
    return x + jax.nn.relu(x @ p["up"]) @ p["down"]


MLP = {"up": floats(8, 32), "down": floats(32, 8)}


def test_columns_stay_split_and_the_sum_of_rows_is_whole():
    assert pins(mlp, MLP, floats(16, 8), "data=4,tensor=2") == {
        (0,): ((16, 32), "data, tensor", "columns then rows"),
        (2,): ((16, 8), "data, -", "columns then rows"),
    }


def test_examples_alone_are_pinned_where_nothing_else_is_split():
    assert pins(mlp, MLP, floats(16, 8), "fsdp=8") == {
        (0,): ((16, 32), "fsdp, -", "batch"),
        (2,): ((16, 8), "fsdp, -", "batch"),
    }


def equation_at(program, address):
    """Follows an address by its definition."""
    position, *rest = address
    equation = program.equations[position]
    if not rest:
        return equation
    match jaxprs.inner(equation):
        case jaxprs.Branches(branches):
            return equation_at(branches[rest[0]], rest[1:])
        case jaxprs.Scan(body=body) | jaxprs.While(body=body) | jaxprs.Call(body):
            return equation_at(body, rest)


def test_addresses_lead_through_scan_remat_cond_and_while_to_what_is_pinned():
    def loss(p, x):
        x = jax.lax.scan(jax.checkpoint(lambda c, w: (mlp(w, c), None)), x, p)[0]
        first = jax.tree.map(lambda w: w[0], p)
        x = jax.lax.cond(x.sum() > 0, lambda c: c, lambda c: mlp(first, c), x)
        return jax.lax.fori_loop(0, 3, lambda i, c: mlp(first, c), x)

    params = {"up": floats(2, 8, 32), "down": floats(2, 32, 8)}
    found = pins(loss, params, floats(16, 8), "data=4,tensor=2")
    program = jaxprs.trace(loss, params, floats(16, 8))
    for address, (shape, _, _) in found.items():
        equation = equation_at(program, address)
        assert equation.name == "dot_general"
        assert equation.output_shapes == (shape,)
    assert len(found) == 6
    assert len({address[0] for address in found}) == 3


def test_a_custom_derivative_is_pinned_at_its_boundary():
    @jax.custom_vjp
    def matmul(x, w):
        return x @ w

    matmul.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    found = pins(lambda p, x: matmul(jax.nn.relu(matmul(x, p["up"])), p["down"]), MLP, floats(16, 8), "tensor=8")
    assert [(len(address), spec) for address, (_, spec, _) in found.items()] == [(1, "-, tensor"), (1, "-, -")]


def test_results_whose_examples_are_not_known_are_left_alone():
    """A strided half of the batch is not the batch."""
    found = pins(lambda p, x: mlp(p, x[::2]), MLP, floats(16, 8), "data=4,tensor=2")
    assert found == {}


def test_a_model_is_pinned_at_its_lookups_matmuls_and_scores():
    params, batch = t.abstract(t.init(t.DECODER)), t.abstract(t.random_batch())
    found = pins(t.next_token_loss(t.DECODER), params, batch, "data=2,tensor=4")
    assert sorted((shape, spec) for shape, spec, _ in found.values()) == [
        ((16, 12, 2, 8), "data, -, tensor[1:2], -"),
        ((16, 12, 2, 8), "data, -, tensor[1:2], -"),
        ((16, 12, 8, 8), "data, -, tensor, -"),
        *[((16, 12, 64), "data, -, -")] * 3,
        ((16, 12, 96), "data, -, tensor"),
        *[((16, 12, 128), "data, -, tensor")] * 2,
    ]


def grouped_attention(p, x):
    """Two key-value heads, each read by four query heads; a softmax would change nothing here."""
    (groups, width), length = p["key"].shape[1:], x.shape[1]
    queries = jnp.einsum("bsd,dghc->bsghc", x, p["query"].reshape(8, groups, 4, width))
    scores = jnp.einsum("bsghc,btgc->bghst", queries, jnp.einsum("btd,dgc->btgc", x, p["key"]))
    values = jnp.einsum("bghst,btgc->bsghc", scores, jnp.einsum("btd,dgc->btgc", x, p["value"]))
    return values.reshape(len(x), length, -1) @ p["out"]


def attention(width):
    kernels = {"query": (8, 8 * width), "key": (8, 2, width), "value": (8, 2, width), "out": (8 * width, 8)}
    return {name: floats(*shape) for name, shape in kernels.items()}


def through_of(mesh, width):
    limits = Limits(small_leaf_bytes=0, max_flops_ratio=99)
    plan = derive(grouped_attention, attention(width), floats(4, 6, 8), MeshSpec.parse(mesh), limits=limits)
    return {
        spec_text(made.spec): [spec_text(spec) for spec in made.through]
        for made in plan.activations
        if made.shape == (4, 6, 2, width)
    }


def test_heads_on_a_part_of_the_axis_are_made_in_pieces_of_their_width_and_gathered():
    assert through_of("data=2,tensor=4", width=6) == {"data, -, tensor[1:2], -": ["data, -, tensor[1:2], tensor[2:4]"]}
    assert through_of("tensor=8", width=8) == {"-, -, tensor[1:2], -": ["-, -, tensor[1:2], tensor[2:8]"]}


def test_heads_whose_width_does_not_divide_by_the_rest_are_made_whole():
    assert through_of("tensor=8", width=6) == {"-, -, tensor[1:2], -": []}


def test_heads_that_the_whole_axis_shares_out_take_no_step_before():
    assert through_of("data=2,tensor=2", width=6) == {"data, -, tensor, -": []}
