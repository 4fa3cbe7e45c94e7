"""The computations that the plan's tests derive from: the real Transformer, and the same by hand on a flat dict."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.nn import functional
from jaxscale.nn.config import TransformerConfig
from jaxscale.nn.families import bert_config, decoder_config

NUM_EXAMPLES, LENGTH = 16, 12

ENCODER = bert_config(num_layers=2, d_model=64, num_heads=8, d_ff=128, vocab_size=96, max_positions=16, dropout_rate=0)
DECODER = decoder_config(
    num_layers=2, d_model=64, num_heads=8, num_kv_heads=2, d_ff=128, vocab_size=96, max_positions=16
)


def random_batch() -> dict[str, jax.Array]:
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 96, (NUM_EXAMPLES, LENGTH), dtype=np.int32)
    lengths = generator.integers(3, LENGTH + 1, (NUM_EXAMPLES, 1))
    return {"tokens": jnp.asarray(tokens), "mask": jnp.asarray(np.arange(LENGTH)[None, :] < lengths)}


def contrastive_loss(config: TransformerConfig) -> Callable[[Any, Any], jax.Array]:
    """Every example against all others of the batch: mean-pooled halves as queries and documents."""

    def loss(params: Any, batch: Any) -> jax.Array:
        hidden = functional.apply(config, params, batch["tokens"], batch["mask"])
        weights = batch["mask"].astype(jnp.float32)[..., None]
        pooled = jnp.sum(hidden * weights, axis=1) / jnp.sum(weights, axis=1)
        queries, documents = pooled[::2], pooled[1::2]
        scores = jnp.matmul(queries, documents.T, precision="highest") / 8.0
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(scores, axis=-1)))

    return loss


def next_token_loss(config: TransformerConfig) -> Callable[[Any, Any], jax.Array]:
    def loss(params: Any, batch: Any) -> jax.Array:
        hidden = functional.apply(config, params, batch["tokens"], batch["mask"], remat=True)
        scores = functional.logits(config, params, hidden)[:, :-1]
        targets = batch["tokens"][:, 1:, None]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores), targets, axis=-1))

    return loss


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def init(config: TransformerConfig) -> Any:
    """Parameters by numpy, which is much faster than compiling the model's own initialisation."""
    shapes = jax.eval_shape(lambda: functional.init_params(config, jax.random.key(0)))
    generator = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(generator.normal(mean, 0.1, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
