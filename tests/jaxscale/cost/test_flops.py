"""FLOPs against closed formulas derived by hand: exactly for plain computations, within 1 % for a decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxscale.cost.flops import count_flops, count_model_flops
from jaxscale.cost.programs import forward_program, gradient_program, microbatch_of
from jaxscale.cost.utilization import palm_flops_per_token, utilization
from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.config import TransformerConfig
from jaxscale.nn.families import decoder_config
from jaxscale.sharding import jaxprs


def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_a_chain_of_matmuls():
    # [32, 8] -> [32, 16] -> [32, 4], then 32 * 4 tanhs and as many additions in the sum.
    program = jaxprs.trace(lambda x, v, w: jnp.tanh(x @ v @ w).sum(), shape(32, 8), shape(8, 16), shape(16, 4))
    count = count_flops(program)
    assert count.contractions == {"float32": 2 * 32 * 8 * 16 + 2 * 32 * 16 * 4}
    assert count.elementwise == 2 * 32 * 4


def test_the_gradient_of_a_chain_is_three_times_less_the_inputs():
    def loss(params, x):
        return jnp.tanh(jnp.tanh(x @ params[0]) @ params[1]).sum()

    params, x = [shape(8, 16), shape(16, 4)], shape(32, 8)
    first, second = 2 * 32 * 8 * 16, 2 * 32 * 16 * 4
    # The first matmul needs no gradient of x.
    assert count_flops(gradient_program(loss, params, x)).total == 2 * first + 3 * second
    model = count_model_flops(forward_program(loss, params, x), 2)
    assert (model.forward, model.backward) == (first + second, first + 2 * second)
    assert model.between_data == 0


@pytest.mark.parametrize("remat", [False, True])
def test_a_scan_over_layers_counts_every_trip(remat):
    num_layers, batch, width = 24, 8, 16

    def loss(params, x):
        def body(x, w):
            return jnp.tanh(jnp.tanh(x @ w["v"]) @ w["w"]), None

        body = jax.checkpoint(body) if remat else body
        return jax.lax.scan(body, x @ params["in"], params["layers"])[0].sum()

    layers = {name: shape(num_layers, width, width) for name in "vw"}
    params = {"in": shape(4, width), "layers": layers}
    one = 2 * batch * width * width
    first = 2 * batch * 4 * width
    hardware = count_flops(gradient_program(loss, params, shape(batch, 4))).total
    # Of what remat computes again the second matmul is needed too, for the derivative of its tanh.
    again = num_layers * 2 * one if remat else 0
    assert hardware == 2 * first + 3 * num_layers * 2 * one + again
    model = count_model_flops(forward_program(loss, params, shape(batch, 4)), 3)
    assert model.total == 2 * first + 3 * num_layers * 2 * one


def test_attention():
    b, h, s, c = 2, 4, 16, 8

    def attend(q, k, v):
        return jnp.einsum("bhst,bhtc->bhsc", jax.nn.softmax(jnp.einsum("bhsc,bhtc->bhst", q, k)), v)

    qkv = [shape(b, h, s, c)] * 3
    assert count_flops(jaxprs.trace(attend, *qkv)).total == 2 * (2 * b * h * s * s * c)


def test_convolution():
    # 3 x 3 kernel, 4 -> 6 channels, same padding on 10 x 12 images, batch 2.
    program = jaxprs.trace(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        shape(2, 10, 12, 4),
        shape(3, 3, 4, 6),
    )
    assert count_flops(program).total == 2 * (2 * 10 * 12 * 6) * (3 * 3 * 4)


def test_ragged_contraction_does_not_count_the_groups():
    def loss(w, batch):
        return jax.lax.ragged_dot(batch["x"], w, batch["sizes"]).sum()

    batch = {"x": shape(40, 8), "sizes": shape(5, dtype="int32")}
    assert count_flops(forward_program(loss, shape(5, 8, 16), batch)).total == 2 * 40 * 8 * 16
    # The gradient of w sums over rows: again 40 * 8 * 16 products; that of x is not asked for.
    assert count_flops(gradient_program(loss, shape(5, 8, 16), batch)).total == 2 * 2 * 40 * 8 * 16


def test_dtypes_are_told_apart():
    program = jaxprs.trace(
        lambda x, w: (x @ w).astype("float32") @ w.astype("float32"),
        shape(4, 4, dtype="bfloat16"),
        shape(4, 4, dtype="bfloat16"),
    )
    assert count_flops(program).contractions == {"bfloat16": 128, "float32": 128}


def test_of_a_cond_the_larger_branch_and_of_a_while_one_run():
    def branch(flag, x, w):
        return jax.lax.cond(flag, lambda: x @ w @ w, lambda: x @ w)

    assert count_flops(jaxprs.trace(branch, shape(dtype="bool"), shape(4, 4), shape(4, 4))).total == 2 * 2 * 4**3

    def loop(x, w):
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)

    count = count_flops(jaxprs.trace(loop, shape(4, 4), shape(4, 4)))
    assert count.total == 2 * 4**3
    assert count.unbounded_loops[0].startswith("test_flops.py:")


def test_a_carry_that_meets_the_parameters_in_the_loop():
    def loss(w, xs):
        return jax.lax.scan(lambda c, x: (c @ w + x, None), jnp.zeros((2, 4), jnp.float32), xs)[0].sum()

    model = count_model_flops(forward_program(loss, shape(4, 4), shape(5, 2, 4)), 1)
    assert model.forward == 5 * 2 * 2 * 4**2
    # From the second trip on both operands have a gradient; the carry is taken to have one from the first.
    assert model.backward == 2 * model.forward


DECODER = decoder_config(
    num_layers=12, d_model=64, num_heads=8, num_kv_heads=2, d_ff=128, vocab_size=96, max_positions=32
)
BATCH, LENGTH = 4, 32


def decoder_loss(config: TransformerConfig, remat: bool):
    def loss(params, tokens):
        hidden = functional.apply(config, params, tokens, jnp.ones(tokens.shape, bool), remat=remat)
        return jax.nn.log_softmax(functional.logits(config, params, hidden)).sum()

    return loss


def decoder_flops_by_hand(config: TransformerConfig) -> tuple[int, int]:
    """6 N D, and attention's 12 L H C S a token: N counts every matrix a token is multiplied with, once."""
    d, f = config.d_model, config.d_ff
    attention = d * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    layers = config.num_layers * (attention + 3 * d * f)
    num_tokens = BATCH * LENGTH
    scores = 12 * config.num_layers * config.num_heads * config.head_dim * LENGTH
    return 6 * (layers + d * config.vocab_size) * num_tokens, scores * num_tokens


@pytest.mark.parametrize(
    "config", [DECODER, dataclasses.replace(DECODER, num_layers=2, tied_output=False)], ids=["scan", "flat"]
)
def test_a_decoder_is_6nd_and_attention(config):
    params = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
    tokens = shape(BATCH, LENGTH, dtype="int32")
    matrices, attention = decoder_flops_by_hand(config)
    num_leaves = len(jax.tree.leaves(params))
    loss = decoder_loss(config, remat=False)
    model = count_model_flops(forward_program(loss, params, tokens), num_leaves)
    assert model.total == pytest.approx(matrices + attention, rel=0.01)
    assert model.between_data == attention
    hardware = count_flops(gradient_program(loss, params, tokens)).total
    assert hardware == pytest.approx(matrices + attention, rel=0.01)
    palm = palm_flops_per_token(
        matrices // (6 * BATCH * LENGTH),
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        sequence_length=LENGTH,
    )
    assert palm * BATCH * LENGTH == matrices + attention


def test_remat_computes_the_layers_again_but_not_their_last_matmul():
    params = jax.eval_shape(lambda: functional.init_params(DECODER, jax.random.key(0)))
    tokens = shape(BATCH, LENGTH, dtype="int32")
    matrices, attention = decoder_flops_by_hand(DECODER)
    num_tokens = BATCH * LENGTH
    output = 6 * DECODER.d_model * DECODER.vocab_size * num_tokens
    down = 2 * DECODER.d_ff * DECODER.d_model * num_tokens * DECODER.num_layers
    again = (matrices - output + attention) / 3 - down
    hardware = count_flops(gradient_program(decoder_loss(DECODER, remat=True), params, tokens)).total
    assert hardware == pytest.approx(matrices + attention + again, rel=0.01)
    model = count_model_flops(
        forward_program(decoder_loss(DECODER, remat=True), params, tokens), len(jax.tree.leaves(params))
    )
    assert model.total == pytest.approx(matrices + attention, rel=0.01)
    used = utilization(model, hardware, step_s=2.0, num_devices=4, peak_flops_per_s=1e9)
    assert used.mfu == model.total / 8e9
    assert used.hfu / used.mfu == pytest.approx(1 + again / (matrices + attention), rel=0.01)
    assert used.mfu - used.mfu_causal == pytest.approx(attention / 2 / 8e9)


def test_microbatches():
    cut = microbatch_of({"x": shape(8, 3), "key": shape()}, 4)
    assert (cut["x"].shape, cut["key"].shape) == ((2, 3), ())
    with pytest.raises(UsageError, match="num_microbatches=3 must divide the 8 examples"):
        microbatch_of({"x": shape(8, 3)}, 3)
