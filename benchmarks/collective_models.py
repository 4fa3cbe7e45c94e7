"""Models that the benchmark of collectives did not take from our own layers: plain functions, and Flax's layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxscale.train.token_loss import token_loss

Loss = Callable[[Any, Any], jax.Array]


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """The shape of a float32 array."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def fused_gpt2_params(
    *, num_layers: int, d_model: int, vocab_size: int, num_positions: int, qkv: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """GPT-2's parameters under its published names, layers stacked.

    Args:
      num_layers: L.
      d_model: D.
      vocab_size: V.
      num_positions: P.
      qkv: the columns of the fused projection; (3 D,) as published, or (3, H, C) written out.
    """

    def dense(*shape: int) -> dict[str, Any]:
        return {"kernel": floats(num_layers, *shape), "bias": floats(num_layers, *shape[1:])}

    def norm(*shape: int) -> dict[str, Any]:
        return {"scale": floats(*shape, d_model), "bias": floats(*shape, d_model)}

    layer = {
        "ln_1": norm(num_layers),
        "attn": {"c_attn": dense(d_model, *(qkv or (3 * d_model,))), "c_proj": dense(d_model, d_model)},
        "ln_2": norm(num_layers),
        "mlp": {"c_fc": dense(d_model, 4 * d_model), "c_proj": dense(4 * d_model, d_model)},
    }
    return {
        "wte": {"embedding": floats(vocab_size, d_model)},
        "wpe": {"embedding": floats(num_positions, d_model)},
        "h": layer,
        "ln_f": norm(),
    }


def fused_gpt2_loss(num_heads: int) -> Loss:
    """Next-token loss of GPT-2 with one matmul for queries, keys and values, and the token table as its output."""

    def attention(p: Any, x: jax.Array) -> jax.Array:
        kernel, bias = p["c_attn"]["kernel"], p["c_attn"]["bias"]
        if kernel.ndim == 2:
            made = jnp.split(x @ kernel + bias[None, None], 3, axis=-1)
            query, key, value = (part.reshape(*part.shape[:2], num_heads, -1) for part in made)
        else:
            query, key, value = jnp.einsum("bsd,dihc->ibshc", x, kernel) + bias[:, None, None]
        scores = jnp.einsum("bshc,bthc->bhst", query, key) / query.shape[-1] ** 0.5
        earlier = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(earlier[None, None], scores, -1e30), axis=-1)
        mixed = jnp.einsum("bhst,bthc->bshc", weights, value).reshape(x.shape)
        return mixed @ p["c_proj"]["kernel"] + p["c_proj"]["bias"][None, None]

    def mlp(p: Any, x: jax.Array) -> jax.Array:
        inner = jax.nn.gelu(x @ p["c_fc"]["kernel"] + p["c_fc"]["bias"][None, None])
        return inner @ p["c_proj"]["kernel"] + p["c_proj"]["bias"][None, None]

    def layer(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        x = x + attention(p["attn"], _layer_norm(p["ln_1"], x))
        return x + mlp(p["mlp"], _layer_norm(p["ln_2"], x)), None

    def loss(params: Any, batch: Any) -> jax.Array:
        tokens, table = batch["tokens"], params["wte"]["embedding"]
        x = table[tokens] + params["wpe"]["embedding"][None, : tokens.shape[1]]
        x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["h"])
        return token_loss(jnp.einsum("bsd,vd->bsv", _layer_norm(params["ln_f"], x), table), batch["targets"])

    return loss


def _layer_norm(p: Any, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + 1e-5)
    return normed * p["scale"][None, None] + p["bias"][None, None]


class FlaxBlock(nnx.Module):
    """Flax's own attention, whose kernels have three dims, and an MLP of its `Linear`."""

    def __init__(self, d_model: int, num_heads: int, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(d_model, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(num_heads, d_model, decode=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(d_model, rngs=rngs)
        self.up = nnx.Linear(d_model, 4 * d_model, rngs=rngs)
        self.down = nnx.Linear(4 * d_model, d_model, rngs=rngs)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Returns what it made of x."""
        x = x + self.attention(self.norm(x))
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


def flax_stack(*, num_layers: int, d_model: int, num_heads: int) -> tuple[Loss, Any]:
    """The squared error of a few Flax blocks, one after the other, and the shapes of their parameters."""
    blocks = nnx.eval_shape(
        lambda: nnx.List([FlaxBlock(d_model, num_heads, rngs=nnx.Rngs(i)) for i in range(num_layers)])
    )
    graphdef, state = nnx.split(blocks)

    def loss(params: Any, batch: Any) -> jax.Array:
        x = batch["x"]
        for block in nnx.merge(graphdef, params):
            x = block(x)
        return jnp.mean(jnp.square(x - batch["y"]))

    return loss, nnx.to_pure_dict(state)


def bare_experts_loss(capacity: int) -> Loss:
    """The squared error of scanned layers of experts, one for each token, their parameters bare arrays.

    Parameters: `router` [L D E], `up` [L E D F], `down` [L E F D]. Tokens [B N G D] come in groups of G, of which an
    expert reads at most `capacity`.
    """

    def layer(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        probabilities = jax.nn.softmax(x @ p["router"], axis=-1)
        picked = jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), p["router"].shape[-1])
        place = (jnp.cumsum(picked, axis=2) * picked - 1).astype(jnp.int32)
        # [B N G E C]
        dispatch = jax.nn.one_hot(place, capacity)
        combine = dispatch * jnp.max(probabilities, axis=-1)[..., None, None]
        read = jnp.einsum("bngec,bngd->ebncd", dispatch, x)
        made = jnp.einsum("ebncf,efd->ebncd", jax.nn.relu(jnp.einsum("ebncd,edf->ebncf", read, p["up"])), p["down"])
        return x + jnp.einsum("bngec,ebncd->bngd", combine, made), None

    def loss(params: Any, batch: Any) -> jax.Array:
        x, _ = jax.lax.scan(jax.checkpoint(layer), batch["x"], params)
        return jnp.mean(jnp.square(x - batch["y"]))

    return loss
