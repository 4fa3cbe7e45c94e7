"""Kernels beside the plain attention: values and gradients, on one device and in a sharded program, interpreted."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxscale.errors import UsageError
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn import functional
from jaxscale.nn.attention_call import AttentionCall, Readable, call_attention
from jaxscale.nn.attention_choice import choose
from jaxscale.nn.attention_kernels import Island, Places, described, find_calls, platform_of, replacements, replacing
from jaxscale.nn.attention_plain import attend
from jaxscale.nn.attention_recomputed import attend_recomputing
from jaxscale.nn.families import bert_config, decoder_config
from jaxscale.sharding import per_slice, rewrite
from jaxscale.sharding.apply import apply_plan
from jaxscale.sharding.derive import derive
from tests.jaxscale.random_params import random_params

ONE = MeshSpec()
EIGHT = MeshSpec(data=2, fsdp=2, tensor=2)
LENGTH, WIDTH = 256, 128
# Two rows of documents that end anywhere in a block; the last of each is uneven, and the second row is not full.
LENGTHS = ((100, 129, 27), (3, 190))


def groups(num_rows):
    made = np.zeros((num_rows, LENGTH), np.int32)
    for row in range(num_rows):
        ends = np.cumsum(LENGTHS[row % 2])
        made[row, : ends[-1]] = np.searchsorted(ends, np.arange(ends[-1]), side="right") + 1
    return jnp.asarray(made)


def heads(num_rows, num_heads, num_kv_heads):
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.normal(size=(num_rows, LENGTH, number, WIDTH)), jnp.float32)
        for number in (num_heads, num_kv_heads, num_kv_heads)
    )


def plain(query, key, value, allowed):
    """Written out, head by head, in jax.numpy; accumulates in float32."""
    per_group = query.shape[2] // key.shape[2]
    made = []
    for head in range(query.shape[2]):
        keys, values = key[:, :, head // per_group], value[:, :, head // per_group]
        scores = jnp.einsum("bsc,btc->bst", query[:, :, head], keys, precision="highest") / np.sqrt(WIDTH)
        weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), axis=-1)
        made.append(jnp.einsum("bst,btc->bsc", weights, values, precision="highest"))
    return jnp.stack(made, axis=2)


def with_gradients(function, operands):
    weights = jnp.asarray(np.random.default_rng(1).normal(size=operands[0].shape), jnp.float32)
    found = jax.jit(jax.value_and_grad(lambda *heads: jnp.sum(function(*heads) * weights), argnums=(0, 1, 2)))
    return jax.tree.leaves((jax.jit(function)(*operands), found(*operands)))


def assert_near(got, expected, tolerance):
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance * float(jnp.abs(theirs).max()))


def island(spec, axes, key_axes, *, operands, causal, kernel="splash"):
    mesh = make_mesh(spec, jax.devices()[: spec.num_devices])
    query, key = (NamedSharding(mesh, P(*each)) for each in (axes, key_axes))
    call = AttentionCall(causal=causal, scaled=True, operands=operands)
    return Island(call=call, kernel=kernel, places=Places(query=query, key=key), interpret=True)


SPLIT = (("data", "fsdp"), None, "tensor")


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "causal", "packed", "spec", "axes", "key_axes"),
    [
        pytest.param(2, 2, False, False, ONE, (), (), id="every head its own, all to all"),
        pytest.param(4, 2, True, True, ONE, (), (), id="grouped heads, causal, packed"),
        pytest.param(4, 2, True, True, EIGHT, SPLIT, SPLIT, id="the same on 8 devices"),
        pytest.param(4, 1, True, False, EIGHT, SPLIT, SPLIT[:1], id="one key-value head, copied, on 8 devices"),
    ],
)
def test_splash_attention_equals_the_plain_one(num_heads, num_kv_heads, causal, packed, spec, axes, key_axes):
    num_rows = 2 if spec == ONE else 4
    numbers, order = groups(num_rows), np.arange(LENGTH)
    allowed = jnp.ones((num_rows, LENGTH, LENGTH), bool)
    if causal:
        allowed &= jnp.asarray(order[None, None, :] <= order[None, :, None])
    if packed:
        allowed &= numbers[:, None, :] == numbers[:, :, None]
    given = (numbers, numbers) if packed else ()
    kernel = island(spec, axes, key_axes, operands=("query_groups", "key_groups")[: len(given)], causal=causal)
    operands = heads(num_rows, num_heads, num_kv_heads)
    got = with_gradients(lambda *heads: kernel(*heads, *given), operands)
    assert_near(got, with_gradients(lambda *heads: plain(*heads, allowed), operands), 2e-5)


@pytest.mark.parametrize(("kernel", "causal", "tolerance"), [("blockwise", True, 2e-6), ("recomputed", False, 1e-5)])
@pytest.mark.parametrize(
    ("packed", "spec", "axes"),
    [(False, ONE, ()), (True, ONE, ()), pytest.param(True, EIGHT, SPLIT, id="8 devices")],
)
def test_attention_of_jax_s_own_operations_equals_the_plain_one(kernel, causal, tolerance, packed, spec, axes):
    numbers, order = groups(4), jnp.arange(LENGTH)
    allowed = jnp.broadcast_to(order[None, None, :] <= order[None, :, None] if causal else True, (4, LENGTH, LENGTH))
    if packed:
        allowed &= numbers[:, None, :] == numbers[:, :, None]
    given = (numbers, numbers) if packed else ()
    names = ("query_groups", "key_groups")[: len(given)]
    computed = island(spec, axes, axes, operands=names, causal=causal, kernel=kernel)
    operands = heads(4, 4, 2)
    got = with_gradients(lambda *heads: computed(*heads, *given), operands)
    assert_near(got, with_gradients(lambda *heads: plain(*heads, allowed), operands), tolerance)


def test_recomputed_attention_reads_other_positions_and_takes_queries_that_may_read_none():
    """As the plain one, such a query has the mean of all values; unlike there, nothing learns from it."""
    query, key, value = (each[:1, :length] for each, length in zip(heads(1, 4, 2), (30, 77, 77), strict=True))
    query_groups, key_groups = jnp.arange(30)[None] % 4, jnp.arange(77)[None] % 3
    allowed = query_groups[:, :, None] == key_groups[:, None, :]
    reads = allowed.any(-1)[..., None, None]
    assert 0 < reads.sum() < 30

    def reference(*heads):
        return attend(*heads, allowed, compute_dtype=jnp.float32)

    def ours(*heads):
        return attend_recomputing(*heads, query_groups, key_groups, scaled=True)

    operands = query, key, value
    assert_near([ours(*operands)], [reference(*operands)], 1e-5)
    got, expected = (
        with_gradients(lambda *heads, f=f: jnp.where(reads, f(*heads), 0.0), operands) for f in (ours, reference)
    )
    assert_near(got, expected, 1e-5)
    of_none = jax.grad(lambda *heads: jnp.sum(jnp.where(reads, 0.0, ours(*heads))), argnums=(0, 1, 2))(*operands)
    assert all(not leaf.any() for leaf in of_none)


def test_recomputed_attention_keeps_no_array_of_queries_and_keys():
    def kept(attention, *operands):
        pullback = jax.eval_shape(lambda *heads: jax.vjp(attention, *heads)[1], *operands)
        return [leaf.shape for leaf in jax.tree.leaves(pullback) if leaf.size >= 2 * LENGTH * LENGTH]

    operands = heads(1, 2, 2)
    assert kept(lambda *heads: attend(*heads, None, compute_dtype=jnp.float32), *operands)
    assert not kept(lambda *heads: attend_recomputing(*heads, scaled=True), *operands)


def test_blockwise_attention_makes_no_score_to_the_right_of_a_block():
    kernel = island(ONE, (), (), operands=(), causal=True, kernel="blockwise")
    text = str(jax.make_jaxpr(kernel)(*heads(1, 1, 1)))
    scores, mixed = ["128", "256"], [str(WIDTH)] * 2
    made = re.findall(r"f32\[1,1,128,1,(\d+)\] = dot_general", text)
    assert (made[::2], made[1::2]) == (scores, mixed)


def test_padding_is_not_read_and_queries_in_it_read_what_is_real():
    real = np.arange(LENGTH)[None, :] < np.array([[200], [77]])
    query_groups, key_groups = jnp.zeros((2, LENGTH), jnp.int32), jnp.asarray(np.where(real, 0, -1), jnp.int32)
    kernel = island(ONE, (), (), operands=("allowed", "query_groups", "key_groups"), causal=False)
    allowed, operands = jnp.asarray(real)[:, None, :], heads(2, 1, 1)
    got = with_gradients(lambda *heads: kernel(*heads, allowed, query_groups, key_groups), operands)
    assert_near(got, with_gradients(lambda *heads: plain(*heads, allowed), operands), 2e-5)


def test_slices_compute_their_own_parts():
    spec = MeshSpec(slice=2, fsdp=2, tensor=2)
    axes = ("fsdp", None, "tensor")
    kernel = island(spec, axes, axes, operands=("query_groups", "key_groups"), causal=True)
    operands, numbers, order = heads(4, 2, 2), groups(4), jnp.arange(LENGTH)
    allowed = (order[None, None, :] <= order[None, :, None]) & (numbers[:, None, :] == numbers[:, :, None])

    def of_slices(*heads):
        parts = [each.reshape(2, 2, *each.shape[1:]) for each in (*heads, numbers)]
        run = per_slice.for_each(lambda query, key, value, group: kernel(query, key, value, group, group))
        return run(*parts).reshape(heads[0].shape)

    got = jax.jit(of_slices)(*operands)
    assert_near([got], [plain(*operands, allowed)], 2e-5)


DECODER = decoder_config(
    num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, head_dim=WIDTH, d_ff=32, vocab_size=64, max_positions=LENGTH
)


def loss_of(config, *, remat=False):
    def loss(params, batch):
        made = functional.apply(config, params, batch["tokens"], None, segments=batch.get("segments"), remat=remat)
        return jnp.mean(jnp.square(made))

    return loss


def batch_of(num_rows):
    tokens = np.random.default_rng(2).integers(0, 64, (num_rows, LENGTH))
    return {"tokens": jnp.asarray(tokens, jnp.int32), "segments": groups(num_rows)}


def shapes_of(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def interpreted(jaxpr, plan, mesh):
    """Splash attention in the place of every call, as on TPUs."""
    found = find_calls(jaxpr, plan, mesh)
    assert found
    return {at: Island(call=one.call, kernel="splash", places=one.places, interpret=True) for at, one in found.items()}


@pytest.mark.parametrize(
    "remat", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True, marks=pytest.mark.slow), "matmuls"]
)
def test_a_planned_program_with_the_kernel_in_it_equals_the_plain_one(remat):
    mesh, params, batch = make_mesh(EIGHT), random_params(DECODER), batch_of(8)
    loss = loss_of(DECODER, remat=remat)
    plan = derive(loss, shapes_of(params), shapes_of(batch), EIGHT)

    def gradient(replacing):
        run = apply_plan(plan, loss, mesh, params, batch, replacing=replacing)
        places = plan.shardings(mesh, params), plan.shardings(mesh, batch)
        return jax.jit(jax.value_and_grad(run), in_shardings=places)

    with_kernel = gradient(lambda jaxpr: interpreted(jaxpr, plan, mesh))
    assert re.search(r"\[[\d,]*256,\d*,?256\]", str(gradient(None).trace(params, batch).jaxpr))
    got, expected = (jax.tree.leaves(run(params, batch)) for run in (with_kernel, gradient(None)))
    assert_near(got, expected, 1e-4)


def calls_of(config, spec, *, dtype=jnp.bfloat16, key=None):
    def loss(params, batch):
        made = functional.apply(
            config, params, batch["tokens"], batch.get("mask"), compute_dtype=dtype, dropout_key=key
        )
        return jnp.mean(made)

    params = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
    batch = {"tokens": jax.ShapeDtypeStruct((8, LENGTH), jnp.int32)}
    if config.kind == "encoder":
        batch["mask"] = jax.ShapeDtypeStruct((8, LENGTH), jnp.bool_)
    plan = derive(loss, params, batch, spec)
    mesh = make_mesh(spec, jax.devices()[: spec.num_devices])
    found = find_calls(rewrite.trace(loss, params, batch).jaxpr, plan, mesh)
    assert {one.case.platform for one in found.values()} == {"cpu"}
    return [dataclasses.replace(one, case=dataclasses.replace(one.case, platform="tpu")) for one in found.values()]


def test_the_places_of_heads_are_those_of_the_plan():
    (call,) = calls_of(DECODER, MeshSpec(fsdp=2, tensor=4))
    assert choose("auto", call.case).kernel == "splash"
    # 2 key-value heads on 4 devices: each on the 2 that have its queries.
    assert call.places.query.spec == P("fsdp", None, ("tensor[1:2]", "tensor[2:4]"))
    assert call.places.key.spec == P("fsdp", None, "tensor[1:2]")
    (shared,) = calls_of(dataclasses.replace(DECODER, num_kv_heads=1), EIGHT)
    assert shared.places.query.spec == P(("data", "fsdp"), None, "tensor")
    assert shared.places.key.spec == P(("data", "fsdp"))
    assert choose("auto", shared.case).kernel == "splash"


BERT = bert_config(num_layers=1, d_model=128, num_heads=1, d_ff=32, vocab_size=64, max_positions=LENGTH)


@pytest.mark.parametrize(
    ("config", "spec", "options", "reason"),
    [
        (DECODER, MeshSpec(fsdp=2, sequence=2), {}, "positions are split over sequence"),
        (DECODER, ONE, {"dtype": jnp.float32}, "compute_dtype is float32"),
        (dataclasses.replace(DECODER, positions="relative"), ONE, {}, "a bias"),
        (dataclasses.replace(DECODER, dropout_rate=0.1), ONE, {"key": jax.random.key(0)}, "dropout"),
        (BERT, ONE, {}, None),
    ],
    ids=["sequence", "float32", "relative", "dropout", "padding"],
)
def test_what_a_model_asks_of_a_kernel_is_seen_in_its_program(config, spec, options, reason):
    (call,) = calls_of(config, spec, **options)
    choice = choose("auto", call.case)
    assert (choice.kernel, call.call.causal) == ("splash" if reason is None else "plain", config.kind == "decoder")
    assert reason is None or reason in choice.reason


@pytest.mark.parametrize(
    ("query", "key", "num_kv_heads", "problem"),
    [
        (P("data", None, "tensor"), P("data", None, "tensor"), 2, None),
        (P("data", None, "tensor"), P("data"), 1, None),
        (P("data", None, "tensor"), P("data"), 2, "2 key-value heads are split in fewer parts"),
        (P("data"), P("data", None, "tensor"), 2, "over other devices than query heads"),
        (P("data"), P("fsdp"), 2, "their examples on different devices"),
        (P(None, "data"), P(), 2, "positions are split over data"),
        (P(None, None, None, "data"), P(), 2, "the width of heads is split over data"),
    ],
)
def test_places_where_a_device_can_not_compute_its_part_are_told(query, key, num_kv_heads, problem):
    mesh = make_mesh(EIGHT)
    found = Places(query=NamedSharding(mesh, query), key=NamedSharding(mesh, key)).misplaced(num_kv_heads)
    assert found is None if problem is None else problem in found


def test_on_cpu_attention_goes_by_blocks_and_the_kernel_of_another_platform_is_refused():
    params, batch = shapes_of(random_params(DECODER)), shapes_of(batch_of(8))
    loss, mesh = loss_of(DECODER), make_mesh(ONE, jax.devices()[:1])
    plan = derive(loss, params, batch, ONE)
    assert replacing(plan, mesh, "plain") is None
    (island,) = replacements(rewrite.trace(loss, params, batch).jaxpr, plan, mesh, "auto").values()
    assert island.kernel == "blockwise"
    assert described(loss, plan, mesh, "auto", params, batch) == ("blockwise x 1 (a kernel of cpu)",)
    for setting, platform in (("splash", "TPUs"), ("cudnn", "NVIDIA GPUs")):
        with pytest.raises(UsageError, match=f"attention={setting} can't .* runs on {platform}, not on cpu"):
            apply_plan(plan, loss, mesh, params, batch, replacing=replacing(plan, mesh, setting))


def test_a_model_of_another_attention_can_not_have_a_kernel():
    mesh = make_mesh(ONE, jax.devices()[:1])

    def loss(params, batch):
        return jnp.sum(batch["x"] @ params["w"])

    params, batch = {"w": jnp.ones((4, 2))}, {"x": jnp.ones((2, 4))}
    plan = derive(loss, params, batch, ONE)
    with pytest.raises(UsageError, match=r"no attention of jaxscale\.nn"):
        replacements(rewrite.trace(loss, params, batch).jaxpr, plan, mesh, "splash")


def bf16_heads():
    return tuple(each.astype(jnp.bfloat16) for each in heads(4, 4, 2))


def cudnn(spec, axes):
    mesh = make_mesh(spec, jax.devices()[: spec.num_devices])
    place = NamedSharding(mesh, P(*axes))
    call = AttentionCall(causal=True, scaled=True, operands=("allowed",))
    return Island(call=call, kernel="cudnn", places=Places(query=place, key=place))


def test_cudnn_is_called_forward_and_backward_and_scores_are_not_there(monkeypatch):
    # Which version there is, jax asks of an installed CUDA; nothing is compiled here.
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91200)
    operands, allowed = bf16_heads(), jnp.ones((1, LENGTH, LENGTH), bool)
    kernel = cudnn(EIGHT, SPLIT)
    gradient = jax.jit(jax.grad(lambda *heads: jnp.sum(kernel(*heads, allowed)), argnums=(0, 1, 2)))
    text = gradient.trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    assert set(re.findall(r"__cudnn\$fmha\w*", text)) == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert f"{LENGTH}x{LENGTH}xbf16" not in text


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
def test_cudnn_equals_the_plain_attention():
    assert platform_of(make_mesh(ONE, jax.devices()[:1])) == "cuda"
    operands, order = bf16_heads(), jnp.arange(LENGTH)
    allowed = order[None, None, :] <= order[None, :, None]
    kernel = cudnn(ONE, ())

    def by_name(query, key, value):
        return call_attention(
            query,
            key,
            value,
            Readable(allowed=allowed, causal=True),
            compute_dtype=jnp.bfloat16,
            bias=None,
            scaled=True,
            dropout_rate=0.0,
            dropout_key=None,
        )

    got = with_gradients(lambda *heads: kernel(*heads, allowed), operands)
    # A sum of products that were rounded to 8 bits.
    assert_near(got, with_gradients(by_name, operands), 2e-2)
