"""The Transformer as pure functions of plain nested dicts of arrays: what steps, plans and stores see.

The tree of `Params` (legend: L layers, D model, H and K heads, C head width, F feed-forward, E experts, V vocabulary):

    embeddings/{token,position,token_type}/table     [V D] [P D] [T D]
    relative_positions/table                         [buckets H]
    norm/{scale,bias}                                [D]
    layers/attention/{query,key,value}/{kernel,bias} [L D H C] [L H C]
    layers/attention/out/{kernel,bias}               [L H C D] [L D]
    layers/{attention_norm,mlp_norm}/{scale,bias}    [L D]
    layers/mlp/{up,gate}/{kernel,bias}               [L D F] [L F]
    layers/mlp/down/{kernel,bias}                    [L F D] [L D]
    layers/.../{lora_a,lora_b}                       [L D r] [L r H C]  (beside kernels, with LoRA: in and out of r)
    layers/mlp/router/kernel                         [L D E]
    layers/mlp/{up,gate}, layers/mlp/down            [L E D F] [L E F D]  (with experts, in place of kernels)
    output/kernel                                    [D V]  (a decoder's, unless tied or headless)

An encoder-decoder has `token/table`, `output/kernel`, and below `encoder/` and `decoder/` the `relative_positions`,
`norm` and `layers` of each; the decoder's layers have `cross_attention` and `cross_attention_norm` too.

`unstack_layers` gives the form for inference, in which layers/0, layers/1... stand in the place of layers, without L.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from jaxscale.errors import UsageError
from jaxscale.nn.cache import KeyValues
from jaxscale.nn.config import EncoderDecoderConfig, Remat, TransformerConfig
from jaxscale.nn.encoder_decoder import EncoderDecoder
from jaxscale.nn.linear import contract
from jaxscale.nn.router import RouterLosses
from jaxscale.nn.transformer import Transformer, check_has_output

# A nested dict with string keys whose leaves are arrays.
Params = dict[str, Any]


def init_params(config: TransformerConfig | EncoderDecoderConfig, key: Key[Array, ""]) -> Params:
    """Draws a model's parameters, in float32. Pure: `jax.eval_shape` gives the shapes alone.

    Args:
      config: the model.
      key: random key.

    Returns:
      The tree described above; parts that `config` does without are absent.
    """
    params: Params = nnx.to_pure_dict(nnx.state(_model(config, key=key, scanned=True)))
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
    segments: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
    remat: Remat = False,
) -> Float32[Array, "B S D"]:
    """The hidden state of every position after the last layer (and, pre-norm, the last norm).

    Args:
      config: the model.
      params: its parameters, float32 or bfloat16, stacked or unstacked.
      tokens: ids in [0, V).
      mask: True at real tokens; what stands at the others changes nothing at the real ones, but that with experts they
        take room. None: all are real.
      compute_dtype: of matrix products and of what is kept between them; sums, norms and softmax are in float32.
      dropout_key: None for no dropout.
      token_types: ids in [0, T); all zero when None.
      segments: tokens of one document have one number, and read no others; None: a row is one document.
      positions: of the tokens in their documents; 0 to S - 1 when None. A decoder reads to the left in the row,
        whatever they are.
      remat: what of each layer the backward pass computes again rather than keep it; stacked only.

    Returns:
      float32; values at masked positions mean nothing.

    Raises:
      UsageError: the sequence is longer than `config.max_positions`.
    """
    return apply_with_router(
        config,
        params,
        tokens,
        mask,
        compute_dtype=compute_dtype,
        dropout_key=dropout_key,
        token_types=token_types,
        segments=segments,
        positions=positions,
        remat=remat,
    )[0]


def apply_with_router(
    config: TransformerConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"] | None,
    *,
    compute_dtype: DTypeLike = jnp.float32,
    dropout_key: Key[Array, ""] | None = None,
    token_types: Int[Array, "B S"] | None = None,
    segments: Int[Array, "B S"] | None = None,
    positions: Int[Array, "B S"] | None = None,
    remat: Remat = False,
) -> tuple[Float32[Array, "B S D"], RouterLosses | None]:
    """As `apply`, and the mean over layers of the losses of their routers; None without experts."""
    hidden, losses = _merged(config, params)(
        tokens,
        mask,
        compute_dtype=compute_dtype,
        dropout_key=dropout_key,
        token_types=token_types,
        segments=segments,
        positions=positions,
        remat=remat,
    )
    return hidden, losses


def apply_encoder_decoder(
    config: EncoderDecoderConfig,
    params: Params,
    source: Int[Array, "B T"],
    tokens: Int[Array, "B S"],
    *,
    source_mask: Bool[Array, "B T"] | None = None,
    compute_dtype: DTypeLike = jnp.float32,
    dropout_key: Key[Array, ""] | None = None,
    remat: Remat = False,
) -> Float32[Array, "B S V"]:
    """A decoder's scores of every next token, having read the source.

    Args:
      config: the model.
      params: its parameters, stacked or unstacked.
      source: ids that the encoder reads.
      tokens: ids that the decoder has so far, its first one the start.
      source_mask: True at real tokens of the source; None: all are real.
      compute_dtype: of matrix products and of what is kept between them.
      dropout_key: None for no dropout.
      remat: what of each layer the backward pass computes again.

    Returns:
      float32.

    Raises:
      UsageError: a sequence is longer than its `max_positions`.
    """
    scores: Float32[Array, "B S V"]
    scores, _ = _merged(config, params)(
        source,
        tokens,
        source_mask=source_mask,
        compute_dtype=compute_dtype,
        dropout_key=dropout_key,
        remat=remat,
    )
    return scores


def logits(
    config: TransformerConfig,
    params: Params,
    hidden: Float[Array, "B S D"],
    *,
    compute_dtype: DTypeLike = jnp.float32,
) -> Float32[Array, "B S V"]:
    """A decoder's scores of every next token, from `apply`'s hidden states.

    Raises:
      UsageError: the model is an encoder, or headless.
    """
    return _merged(config, params).logits(hidden, compute_dtype=compute_dtype)


def output_weights(
    config: TransformerConfig, params: Params
) -> tuple[Float32[Array, "V D"] | Float32[Array, "D V"], Literal[0, 1]]:
    """What hidden states are multiplied with for the scores of tokens, and which of its dims is the vocabulary.

    See `logits`, whose hidden states are scaled first where the config says so, and `masked_token_logits`.

    Raises:
      UsageError: the model is headless.
    """
    if config.headless:
        check_has_output(config)
    if config.kind == "decoder" and not config.tied_output:
        return params["output"]["kernel"], 1
    return params["embeddings"]["token"]["table"], 0


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


def extend(
    config: TransformerConfig,
    params: Params,
    tokens: Int[Array, "B S"],
    caches: list[KeyValues],
    first: Int[Array, " B"],
    *,
    compute_dtype: DTypeLike = jnp.float32,
) -> tuple[Float32[Array, "B S D"], list[KeyValues]]:
    """A decoder's hidden states of tokens that follow others, which are read from the caches and not computed again.

    Rows stand where they begin, at position 0, whatever their lengths: what lies in a cache to the right of a token is
    not read, and is overwritten when the row comes there. So a row may be filled up with anything.

    Args:
      config: the model.
      params: its parameters, unstacked.
      tokens: ids in [0, V).
      caches: `empty_caches` at first, then what the last call returned; no row may go beyond their T places.
      first: the position of each row's first token here: how many of the row are in the caches.
      compute_dtype: as for `apply`, and the caches'.

    Returns:
      The hidden states, as `apply` gives them for whole rows, and the caches with these tokens.
    """
    hidden, caches = _merged(config, params).extend(tokens, caches, first, compute_dtype=compute_dtype)
    return hidden, caches


def encode(
    config: EncoderDecoderConfig,
    params: Params,
    source: Int[Array, "B T"],
    source_mask: Bool[Array, "B T"] | None,
    *,
    compute_dtype: DTypeLike = jnp.float32,
) -> Float32[Array, "B T D"]:
    """What an encoder-decoder's decoder reads of a source; arguments as for `apply_encoder_decoder`."""
    memory: Float32[Array, "B T D"]
    memory, _ = _merged(config, params).encode(source, source_mask, compute_dtype=compute_dtype)
    return memory


def extend_target(
    config: EncoderDecoderConfig,
    params: Params,
    memory: Float32[Array, "B T D"],
    source_mask: Bool[Array, "B T"] | None,
    tokens: Int[Array, "B S"],
    caches: list[KeyValues],
    first: Int[Array, " B"],
    *,
    compute_dtype: DTypeLike = jnp.float32,
) -> tuple[Float32[Array, "B S V"], list[KeyValues]]:
    """As `extend` for the decoder of an encoder-decoder, which reads what `encode` made; the scores of next tokens."""
    model = _merged(config, params)
    hidden, caches = model.extend(memory, source_mask, tokens, caches, first, compute_dtype=compute_dtype)
    return model.logits(hidden, compute_dtype=compute_dtype), caches


def unstack_layers(params: Params) -> Params:
    """The same parameters with each layer by itself, for inference: no slice of a stack is copied, nothing is scanned.

    Args:
      params: a tree with stacked layers, of jax or numpy arrays.

    Returns:
      A tree that `apply` takes as well.
    """
    if "layers" not in params:
        return params | {name: unstack_layers(params[name]) for name in ("encoder", "decoder")}
    num_layers = jax.tree.leaves(params["layers"])[0].shape[0]
    return params | {
        "layers": {
            index: jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"]) for index in range(num_layers)
        }
    }


def is_stacked(params: Params) -> bool:
    """Whether a model's layers are stacked, as training has them, and not by themselves."""
    return 0 not in (params["layers"] if "layers" in params else params["decoder"]["layers"])


def _merged(config: TransformerConfig | EncoderDecoderConfig, params: Params) -> Any:
    return nnx.merge(_graphdef(config, is_stacked(params)), params)


def _model(config: TransformerConfig | EncoderDecoderConfig, *, key: Key[Array, ""], scanned: bool) -> nnx.Module:
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config, key=key, scanned=scanned)
    return Transformer(config, key=key, scanned=scanned)


@functools.lru_cache(maxsize=64)
def _graphdef(config: TransformerConfig | EncoderDecoderConfig, scanned: bool) -> Any:
    return nnx.graphdef(nnx.eval_shape(lambda: _model(config, key=jax.random.key(0), scanned=scanned)))
