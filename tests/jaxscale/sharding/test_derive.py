"""The plans that the rules make: of the real Transformer and of plain functions, on several meshes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.sharding.derive import derive
from jaxscale.sharding.limits import Limits
from jaxscale.sharding.specs import spec_text
from tests.jaxscale.sharding import transformers as t

SPLIT_ALL = Limits(small_leaf_bytes=0)
ENCODER = t.init(t.ENCODER)


def specs(loss, params, batch, mesh, *, limits=SPLIT_ALL, **options):
    plan = derive(loss, params, batch, MeshSpec.parse(mesh), limits=limits, **options)
    return {leaf.path: spec_text(leaf.spec) for leaf in plan.leaves if leaf.role == "parameter"}, plan


def floats(**shapes):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (
            "data=2,fsdp=2,tensor=2",
            {
                "embeddings/token/table": "tensor, fsdp",
                "embeddings/position/table": "-, fsdp",
                "layers/attention/query/kernel": "-, fsdp, tensor, -",
                "layers/attention/key/kernel": "-, fsdp, tensor, -",
                "layers/attention/value/kernel": "-, fsdp, tensor, -",
                "layers/attention/out/kernel": "-, tensor, -, fsdp",
                "layers/mlp/up/kernel": "-, fsdp, tensor",
                "layers/mlp/down/kernel": "-, tensor, fsdp",
                "layers/mlp/up/bias": "-, tensor*fsdp",
            },
        ),
        (
            "tensor=8",
            {
                "embeddings/token/table": "tensor, -",
                "embeddings/position/table": "-, -",
                "layers/attention/query/kernel": "-, -, tensor, -",
                "layers/attention/query/bias": "-, tensor, -",
                "layers/attention/key/kernel": "-, -, tensor, -",
                "layers/attention/value/kernel": "-, -, tensor, -",
                "layers/attention/out/kernel": "-, tensor, -, -",
                "layers/attention/out/bias": "-, -",
                "layers/mlp/up/kernel": "-, -, tensor",
                "layers/mlp/down/kernel": "-, tensor, -",
                "layers/mlp/down/bias": "-, -",
            },
        ),
        ("fsdp=8", {"embeddings/token/table": "fsdp, -", "layers/mlp/up/kernel": "-, -, fsdp"}),
        ("data=8", {"embeddings/token/table": "-, -", "layers/mlp/up/kernel": "-, -, -"}),
    ],
)
def test_the_encoder(mesh, expected):
    got, plan = specs(t.contrastive_loss(t.ENCODER), ENCODER, t.random_batch(), mesh)
    assert {path: got[path] for path in expected} == expected
    assert plan.not_understood == ()
    assert all(leaf.reasons for leaf in plan.leaves)


def test_grouped_heads_that_do_not_divide_take_a_part_of_the_axis_and_say_so():
    """8 query heads over tensor=8, 2 key-value heads over the 2 of 2 x 4."""
    got, plan = specs(t.next_token_loss(t.DECODER), t.init(t.DECODER), t.random_batch(), "tensor=8")
    assert got["layers/attention/query/kernel"] == "-, -, tensor, -"
    assert got["layers/attention/out/kernel"] == "-, tensor, -, -"
    assert got["layers/attention/key/kernel"] == got["layers/attention/value/kernel"] == "-, -, tensor[1:2], -"
    assert plan.factors == {"tensor": (2, 4)}
    key = next(leaf for leaf in plan.leaves if leaf.path == "layers/attention/key/kernel")
    why = "dim 2 (2) over tensor=8: it has 2 of the pieces that the axis shares out; each is copied to 4 devices"
    assert why in key.rejected
    assert key.bytes_per_device == 2 * 64 * 2 * 8 * 4 // 2
    assert got["layers/mlp/gate/kernel"] == got["layers/mlp/up/kernel"] == "-, -, tensor"
    assert got["embeddings/token/table"] == "tensor, -"


def test_grouped_heads_that_divide():
    got, _ = specs(t.next_token_loss(t.DECODER), t.init(t.DECODER), t.random_batch(), "data=4,tensor=2")
    for name in ("query", "key", "value"):
        assert got[f"layers/attention/{name}/kernel"] == "-, -, tensor, -"


def attention(p, x):
    """Fused 2-dim projections to 4 heads of width 6."""
    q, k, v = ((x @ p[name]).reshape(*x.shape[:2], 4, 6) for name in ("q", "k", "v"))
    weights = jax.nn.softmax(jnp.einsum("bshc,bthc->bhst", q, k))
    return jnp.einsum("bhst,bthc->bshc", weights, v).reshape(*x.shape[:2], 24) @ p["o"]


ATTENTION = floats(q=(16, 24), k=(16, 24), v=(16, 24), o=(24, 16))


def test_heads_are_split_and_never_their_width():
    x = jax.ShapeDtypeStruct((8, 5, 16), jnp.float32)
    got, _ = specs(attention, ATTENTION, x, "data=2,tensor=4")
    assert got == {"q": "-, tensor", "k": "-, tensor", "v": "-, tensor", "o": "tensor, -"}
    # 8 divides the fused dim of 24, but not its 4 heads.
    _, plan = specs(
        lambda p, x: attention(p["a"], x @ p["up"] @ p["down"]),
        {"a": ATTENTION, **floats(up=(16, 32), down=(32, 16))},
        x,
        "tensor=8",
        limits=Limits(small_leaf_bytes=0, max_flops_ratio=8),
    )
    by_path = {leaf.path: leaf for leaf in plan.leaves}
    assert by_path["a/q"].spec == by_path["a/v"].spec == ((), ())
    assert by_path["a/o"].spec == ((), ())
    assert (
        "dim 1 (4 x 6) over tensor=8: 4 pieces can't be shared by 8; sizes that can: 1, 2, 4" in by_path["a/q"].rejected
    )
    assert by_path["up"].spec == ((), ("tensor",))


def test_flax_nnx_attention_is_split_by_heads():
    """Flax's own attention, of rank-3 kernels [D, H, C]."""
    module = nnx.MultiHeadAttention(num_heads=4, in_features=16, qkv_features=32, decode=False, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(module)
    got, plan = specs(
        lambda params, x: nnx.merge(graphdef, params)(x),
        nnx.to_pure_dict(state),
        floats(x=(8, 5, 16))["x"],
        "data=2,tensor=4",
    )
    assert got["query/kernel"] == got["key/kernel"] == got["value/kernel"] == "-, tensor, -"
    assert got["query/bias"] == "tensor, -"
    assert got["out/kernel"] == "tensor, -, -"
    assert got["out/bias"] == "-"
    assert plan.not_understood == ()


def test_flax_linen_has_its_own_tree():
    class Block(linen.Module):
        @linen.compact
        def __call__(self, x):
            hidden = linen.gelu(linen.Dense(64, name="up")(linen.LayerNorm()(x)))
            return x + linen.Dense(16, name="down")(hidden)

    x = floats(x=(8, 16))["x"]
    params = jax.eval_shape(Block().init, jax.random.key(0), x)
    got, plan = specs(Block().apply, params, x, "fsdp=2,tensor=4")
    assert got["params/up/kernel"] == "fsdp, tensor"
    assert got["params/down/kernel"] == "tensor, fsdp"
    mesh = make_mesh(MeshSpec(fsdp=2, tensor=4))
    # A tree whose own top is called `params`, alone and inside a training state.
    alone, inside = plan.shardings(mesh, params), plan.shardings(mesh, {"params": params})
    assert alone == inside["params"]
    assert alone["params"]["up"]["kernel"].spec == jax.sharding.PartitionSpec("fsdp", "tensor")


def test_consecutive_matmuls_alternate():
    def chain(p, x):
        for name in ("w1", "w2", "w3", "w4"):
            x = jax.nn.relu(x @ p[name])
        return x

    params = floats(w1=(8, 8), w2=(8, 8), w3=(8, 8), w4=(8, 8))
    got, plan = specs(chain, params, jax.ShapeDtypeStruct((16, 8), jnp.float32), "tensor=2,data=4")
    assert got == {"w1": "-, tensor", "w2": "tensor, -", "w3": "-, tensor", "w4": "tensor, -"}
    assert any("another dim of" in reason for leaf in plan.leaves for reason in leaf.rejected)


def test_the_cheaper_pair_wins_where_two_exclude_each_other():
    """A residual stream of 8 and hidden dims of 64: reductions over the stream's splits would move more."""

    def blocks(p, x):
        for up, down in (("u1", "d1"), ("u2", "d2")):
            x = x + jax.nn.relu(x @ p[up]) @ p[down]
        return x

    params = floats(u1=(8, 64), d1=(64, 8), u2=(8, 64), d2=(64, 8))
    got, _ = specs(blocks, params, jax.ShapeDtypeStruct((16, 8), jnp.float32), "tensor=2,data=4")
    assert got == {"u1": "-, tensor", "d1": "tensor, -", "u2": "-, tensor", "d2": "tensor, -"}


def test_names_and_order_of_parameters_play_no_part():
    """plan(pi(params)) = pi(plan(params)) for random renamings, which also reorder the tree."""
    loss, batch = t.next_token_loss(t.DECODER), t.random_batch()
    leaves, structure = jax.tree.flatten(t.abstract(t.init(t.DECODER)))
    options = {"limits": SPLIT_ALL, "optimizer": optax.adamw(1e-3)}
    plain = derive(loss, jax.tree.unflatten(structure, leaves), batch, MeshSpec(data=2, fsdp=2, tensor=2), **options)
    want = [leaf.spec for leaf in plain.leaves if leaf.role == "parameter"]
    for seed in range(3):
        names = [f"{i:03d}" for i in np.random.default_rng(seed).permutation(len(leaves))]
        renamed = dict(zip(names, leaves, strict=True))

        def renamed_loss(params, batch, names=names):
            return loss(jax.tree.unflatten(structure, [params[name] for name in names]), batch)

        plan = derive(renamed_loss, renamed, batch, MeshSpec(data=2, fsdp=2, tensor=2), **options)
        got = {leaf.path: leaf.spec for leaf in plan.leaves if leaf.role == "parameter"}
        assert [got[name] for name in names] == want


def test_swapped_operands_give_the_same_plan():
    def left(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    def right(p, x):
        return (p["b"].T @ jax.nn.relu(jnp.einsum("df,bd->fb", p["a"], x))).T

    params, x = floats(a=(8, 32), b=(32, 8)), jax.ShapeDtypeStruct((16, 8), jnp.float32)
    mesh = "data=2,fsdp=2,tensor=2"
    assert (
        specs(left, params, x, mesh)[0]
        == specs(right, params, x, mesh)[0]
        == {"a": "fsdp, tensor", "b": "tensor, fsdp"}
    )


def test_adam_moments_have_their_parameters_specs():
    plan = derive(
        t.contrastive_loss(t.ENCODER),
        ENCODER,
        t.random_batch(),
        MeshSpec(fsdp=2, tensor=4),
        optimizer=optax.adamw(1e-3),
        limits=SPLIT_ALL,
    )
    parameters = {leaf.path: leaf.spec for leaf in plan.leaves if leaf.role == "parameter"}
    moments = {leaf.path: leaf.spec for leaf in plan.leaves if leaf.role == "optimizer" and leaf.shape}
    assert moments == {f"0/{name}/{path}": spec for name in ("mu", "nu") for path, spec in parameters.items()}


def test_a_kernel_whose_two_dims_are_one_stream_is_split_once_and_so_are_its_moments():
    plan = derive(
        lambda p, x: x + jnp.tanh(x @ p["w"]),
        floats(w=(8, 8)),
        floats(x=(8, 8))["x"],
        MeshSpec(fsdp=2, data=4),
        optimizer=optax.adam(1e-3),
        limits=SPLIT_ALL,
    )
    assert {leaf.spec for leaf in plan.leaves if leaf.shape and leaf.role != "batch"} == {(("fsdp",), ())}


def test_factored_moments_follow_dim_by_dim():
    optimizer = optax.adafactor(1e-3, min_dim_size_to_factor=8)
    plan = derive(
        t.contrastive_loss(t.ENCODER),
        ENCODER,
        t.random_batch(),
        MeshSpec(fsdp=2, tensor=4),
        optimizer=optimizer,
        limits=SPLIT_ALL,
    )
    got = {leaf.path: (leaf.shape, spec_text(leaf.spec)) for leaf in plan.leaves if leaf.role == "optimizer"}
    assert got["0/v_row/layers/mlp/up/kernel"] == ((2, 64), "-, fsdp")
    assert got["0/v_col/layers/mlp/up/kernel"] == ((2, 128), "-, tensor")
    assert got["0/v_col/layers/attention/out/kernel"] == ((2, 8, 64), "-, tensor, fsdp")
    assert got["0/v/layers/mlp/up/kernel"] == ((1,), "-")


def test_small_leaves_stay_whole_over_fsdp():
    loss, batch = t.contrastive_loss(t.ENCODER), t.random_batch()
    got, plan = specs(loss, ENCODER, batch, "fsdp=8", limits=Limits(small_leaf_bytes=20_000))
    assert got["embeddings/position/table"] == "-, -"
    assert got["layers/mlp/up/kernel"] == "-, -, fsdp"
    position = next(leaf for leaf in plan.leaves if leaf.path == "embeddings/position/table")
    # Rows that the batch looks up stay whole too where they are few.
    got, _ = specs(loss, ENCODER, batch, "data=4,tensor=2", limits=Limits(small_leaf_bytes=20_000))
    assert got["embeddings/token/table"] == "tensor, -"
    assert got["embeddings/token_type/table"] == "-, -"
    got, _ = specs(loss, ENCODER, batch, "data=4,tensor=2", limits=Limits(small_leaf_bytes=30_000))
    assert got["embeddings/token/table"] == "-, -"
    assert position.reasons == ("4096 bytes are below small_leaf_bytes=20000",)


def test_the_batch_is_split_over_every_axis_but_tensor_and_stage_and_sequence_splits_its_positions():
    _, plan = specs(
        t.contrastive_loss(t.ENCODER), ENCODER, t.random_batch(), "slice=2,data=2,expert=2,sequence=2,tensor=2"
    )
    batch = {leaf.path: spec_text(leaf.spec) for leaf in plan.leaves if leaf.role == "batch"}
    assert batch == dict.fromkeys(("tokens", "mask"), "slice*data*expert, sequence")
    hidden = [made for made in plan.activations if made.shape == (16, 12, 64)]
    assert {spec_text(made.spec) for made in hidden} == {"slice*data*expert, sequence, -"}
    with pytest.raises(UsageError, match=r"use plan.shardings\(mesh, batch\), which is per leaf"):
        plan.batch_sharding(None)


def test_the_table_says_where_and_why():
    _, plan = specs(
        t.contrastive_loss(t.ENCODER), ENCODER, t.random_batch(), "fsdp=2,tensor=4", optimizer=optax.adam(1e-3)
    )
    text = plan.render()
    assert "mesh fsdp=2,tensor=4: 8 devices" in text
    line = next(line for line in text.splitlines() if line.startswith("layers/mlp/up/kernel"))
    assert "2 64 128 float32" in line
    assert "-, fsdp, tensor" in line
    assert re.search(r" 8 KiB +1/8 ", line), "2 * 64 * 128 * 4 bytes over 8 devices"
    assert re.search(r" rejected +dim 0 \(2\): a scan goes through it step by step", text)
    assert "leaves of optimizer state follow their parameters" in text
    assert "0/mu/layers/mlp/up/kernel" not in text
    assert "0/mu/layers/mlp/up/kernel" in plan.render(every_leaf=True)


def test_what_is_not_understood_is_in_the_table():
    def loss(p, x):
        return jnp.fft.fft(x @ p["a"]).real @ p["b"]

    _, plan = specs(loss, floats(a=(8, 8), b=(8, 8)), jax.ShapeDtypeStruct((8, 8), jnp.float32), "data=8")
    assert "  fft x 1, first at test_derive.py:" in plan.render()
