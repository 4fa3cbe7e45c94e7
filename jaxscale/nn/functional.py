"""The Transformer as pure functions of plain nested dicts of arrays: what steps, plans and stores see.

The tree of `Params` (legend: L layers, D model, H and K heads, C head width, F feed-forward, V vocabulary):

    embeddings/{token,position,token_type}/table     [V D] [P D] [T D]
    norm/{scale,bias}                                [D]
    layers/attention/{query,key,value}/{kernel,bias} [L D H C] [L H C]
    layers/attention/out/{kernel,bias}               [L H C D] [L D]
    layers/{attention_norm,mlp_norm}/{scale,bias}    [L D]
    layers/mlp/{up,gate}/{kernel,bias}               [L D F] [L F]
    layers/mlp/down/{kernel,bias}                    [L F D] [L D]
    output/kernel                                    [D V]

`unstack_layers` gives the form for inference, in which layers/0, layers/1... stand in the place of layers, without L.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from jaxscale.errors import UsageError
from jaxscale.nn.linear import contract
from jaxscale.nn.transformer import Transformer, TransformerConfig

# A nested dict with string keys whose leaves are arrays.
Params = dict[str, Any]


def init_params(config: TransformerConfig, key: Key[Array, ""]) -> Params:
    """Draws a model's parameters, in float32. Pure: `jax.eval_shape` gives the shapes alone.

    Args:
      config: the model.
      key: random key.

    Returns:
      The tree described above; parts that `config` does without are absent.
    """
    params: Params = nnx.to_pure_dict(nnx.state(Transformer(config, key=key)))
    return params


def apply(
    config: TransformerConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"] | None,
    *,
    compute_dtype: DTypeLike = jnp.float32,
    dropout_key: Key[Array, ""] | None = None,
    token_types: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
    remat: bool = False,
) -> Float32[Array, "B S D"]:
    """The hidden state of every position after the last layer (and, pre-norm, the last norm).

    Args:
      config: the model.
      params: its parameters, float32 or bfloat16, stacked or unstacked.
      tokens: ids in [0, V).
      mask: True at real tokens; what stands at the others changes nothing at the real ones. None: all are real.
      compute_dtype: of matrix products and of what is kept between them; sums, norms and softmax are in float32.
      dropout_key: None for no dropout.
      token_types: ids in [0, T); all zero when None.
      positions: 0 to S - 1 when None.
      remat: whether the backward pass computes each layer again rather than keep what is inside it; stacked only.

    Returns:
      float32; values at masked positions mean nothing.

    Raises:
      UsageError: the sequence is longer than `config.max_positions`.
    """
    return nnx.merge(_graphdef(config, _is_stacked(params)), params)(
        tokens,
        mask,
        compute_dtype=compute_dtype,
        dropout_key=dropout_key,
        token_types=token_types,
        positions=positions,
        remat=remat,
    )


def logits(
    config: TransformerConfig,
    params: Params,
    hidden: Float[Array, "B S D"],
    *,
    compute_dtype: DTypeLike = jnp.float32,
) -> Float32[Array, "B S V"]:
    """A decoder's scores of every next token, from `apply`'s hidden states.

    Raises:
      UsageError: the model is an encoder.
    """
    return nnx.merge(_graphdef(config, _is_stacked(params)), params).logits(hidden, compute_dtype=compute_dtype)


def masked_token_logits(
    config: TransformerConfig,
    params: Params,
    hidden: Float[Array, "B S D"],
    *,
    compute_dtype: DTypeLike = jnp.float32,
) -> Float32[Array, "B S V"]:
    """An encoder's scores of the token that stands at every position: hidden states against the token table.

    BERT's own output puts one more linear map, a norm and a bias in between; what it learns there is thrown away after
    pretraining.

    Raises:
      UsageError: the model is a decoder.
    """
    if config.kind != "encoder":
        raise UsageError(f"kind={config.kind!r} predicts the next token, not the one that stands there; use `logits`")
    table = params["embeddings"]["token"]["table"]
    return contract(hidden.astype(compute_dtype), table, contracted=((2,), (1,)), compute_dtype=compute_dtype)


def unstack_layers(params: Params) -> Params:
    """The same parameters with each layer by itself, for inference: no slice of a stack is copied, nothing is scanned.

    Args:
      params: a tree with stacked layers, of jax or numpy arrays.

    Returns:
      A tree that `apply` takes as well.
    """
    num_layers = jax.tree.leaves(params["layers"])[0].shape[0]
    return params | {
        "layers": {
            index: jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"]) for index in range(num_layers)
        }
    }


def _is_stacked(params: Params) -> bool:
    return 0 not in params["layers"]


@functools.lru_cache(maxsize=64)
def _graphdef(config: TransformerConfig, scanned: bool) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: Transformer(config, key=jax.random.key(0), scanned=scanned)))
