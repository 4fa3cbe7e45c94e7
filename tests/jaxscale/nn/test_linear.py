"""`contract` against numpy on rounded operands, forward and backward, and the dtypes that its dots run in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.nn.linear import Linear, contract

# numpy's einsum of the same contraction.
CASES = {
    "matrix": ((5, 8), (8, 6), ((1,), (0,)), ((), ()), "ab,bc->ac"),
    "two contracted": ((2, 3, 4, 5), (4, 5, 6), ((2, 3), (0, 1)), ((), ()), "abcd,cde->abe"),
    "batched": ((2, 3, 4, 5), (2, 6, 4, 5), ((3,), (3,)), ((0, 2), (0, 2)), "qshc,qthc->qhst"),
}


def rounded(x):
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32), np.float64)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_numpy_on_rounded_operands(case, dtype):
    left_shape, right_shape, contracted, batch, equation = CASES[case]
    random = np.random.default_rng(0)
    left, right = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in (left_shape, right_shape))
    product = lambda left, right: contract(left, right, contracted=contracted, batch=batch, compute_dtype=dtype)  # noqa: E731
    got, transpose = jax.vjp(product, left, right)
    cotangent = jnp.asarray(random.normal(size=got.shape), jnp.float32)
    gradients = transpose(cotangent)
    assert {got.dtype, *(g.dtype for g in gradients)} == {jnp.dtype(jnp.float32)}

    operands, out = equation.split("->")
    a, b = operands.split(",")
    l, r, ct = (rounded(x) if dtype == jnp.bfloat16 else np.asarray(x, np.float64) for x in (left, right, cotangent))  # noqa: E741
    np.testing.assert_allclose(got, np.einsum(equation, l, r), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[0], np.einsum(f"{out},{b}->{a}", ct, r), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradients[1], np.einsum(f"{out},{a}->{b}", ct, l), rtol=1e-5, atol=1e-5)


def test_bfloat16_dots_take_bfloat16_and_sum_in_float32_backward_too():
    x, w = jnp.ones((16, 32), jnp.bfloat16), jnp.ones((32, 8))
    loss = lambda x, w: contract(x, w, contracted=((1,), (0,)), compute_dtype=jnp.bfloat16).sum()  # noqa: E731
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, w).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert len(dots) == 2
    for line in dots:
        operands, _, result = line.partition("->")
        assert operands.count("bf16>") == 2
        assert "xf32>" in result


def test_gradients_have_their_operands_dtypes():
    x, w = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 4))
    loss = lambda x, w: contract(x, w, contracted=((1,), (0,)), compute_dtype=jnp.bfloat16).sum()  # noqa: E731
    dx, dw = jax.grad(loss, argnums=(0, 1))(x, w)
    assert (dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.float32)


def test_linear_adds_its_bias_to_every_row():
    layer = Linear((3, 2), (4,), use_bias=True, stddev=1.0, key=jax.random.key(0))
    layer.bias[...] = jnp.arange(4.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 2)), jnp.float32)
    expected = np.asarray(x).reshape(5, 6) @ np.asarray(layer.kernel[...]).reshape(6, 4) + np.arange(4.0)
    np.testing.assert_allclose(layer(x, jnp.float32), expected, rtol=1e-5, atol=1e-5)
