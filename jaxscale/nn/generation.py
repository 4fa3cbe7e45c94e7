"""Text from a decoder, token by token: a batch of prompts of any lengths, each token read once."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float32, Int32, Key

from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.cache import KeyValues, empty_caches
from jaxscale.nn.config import TransformerConfig
from jaxscale.nn.functional import Params
from jaxscale.nn.keys import named_key, numbered_keys
from jaxscale.nn.sampling import Sampling, choose_tokens

# Prompts are filled up to a multiple of this, so that batches of like lengths share one program.
_LENGTH_STEP = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
    """What follows a prompt.

    Attributes:
      tokens: the new tokens, without the one that ended them.
      stopped: whether a stop token ended them, and not the limit.
      log_probability: of the new tokens and, where one ended them, the stop token, under the model itself (temperature
        1, no tokens left out), in nats.
    """

    tokens: tuple[int, ...]
    stopped: bool
    log_probability: float


class _Progress(NamedTuple):
    """What goes around the loop; N is the most tokens that are made."""

    num_made: Int32[Array, ""]
    logits: Float32[Array, "B V"]
    caches: list[KeyValues]
    tokens: Int32[Array, "B N"]
    log_probabilities: Float32[Array, "B N"]
    ended: Bool[Array, " B"]


def generate(
    config: TransformerConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    compute_dtype: DTypeLike = jnp.float32,
) -> list[Continuation]:
    """Continues prompts; the same prompts, options and seed give the same tokens.

    With experts, none turns a token away here, whatever the capacity in training.

    Args:
      config: a decoder.
      params: its parameters, stacked or not.
      prompts: token ids in [0, V), at least one for each; beginning tokens that the model needs are part of them.
      max_new_tokens: of each continuation, at most.
      sampling: how tokens are chosen; None: always the one with the highest score.
      stop_ids: tokens that end a continuation.
      compute_dtype: of matrix products, and of the keys and values that are kept.

    Raises:
      UsageError: the model is an encoder, a prompt is empty, holds an id beyond the vocabulary, or leaves no room for
        the new tokens.
    """
    _check(config, prompts, max_new_tokens)
    if not prompts:
        return []
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), -(-int(lengths.max()) // _LENGTH_STEP) * _LENGTH_STEP), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    sampling = Sampling() if sampling is None else sampling
    made, log_probabilities = _generate(
        without_limits(config),
        functional.unstack_layers(params) if functional.is_stacked(params) else params,
        tokens,
        lengths,
        jax.random.key(sampling.seed, impl="threefry2x32"),
        max_new_tokens,
        # The seed is no part of the program.
        dataclasses.replace(sampling, seed=0),
        tuple(stop_ids),
        jnp.dtype(compute_dtype),
    )
    return [
        _continuation(row, chances, frozenset(stop_ids))
        for row, chances in zip(np.asarray(made), np.asarray(log_probabilities), strict=True)
    ]


def without_limits(config: TransformerConfig) -> TransformerConfig:
    """The same function of a token, but that experts take every token that is sent to them.

    Args:
      config: the model.
    """
    if config.experts is None:
        return config
    share = config.experts.num_experts / config.experts.num_experts_per_token
    return dataclasses.replace(config, experts=dataclasses.replace(config.experts, capacity_factor=share, group_size=1))


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7, 8))
def _generate(
    config: TransformerConfig,
    params: Params,
    tokens: Int32[Array, "B P"],
    lengths: Int32[Array, " B"],
    key: Key[Array, ""],
    max_new_tokens: int,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    compute_dtype: jnp.dtype,
) -> tuple[Int32[Array, "B N"], Float32[Array, "B N"]]:
    """The new tokens and their log probabilities; what stands after a stop token means nothing."""
    num_rows, num_prompt = tokens.shape
    stops = jnp.asarray(stop_ids, jnp.int32)
    row_keys = numbered_keys(named_key(key, "sampling"), num_rows)
    extend = functools.partial(functional.extend, config, params, compute_dtype=compute_dtype)

    def scores(hidden: Float32[Array, "B 1 D"]) -> Float32[Array, "B V"]:
        return functional.logits(config, params, hidden, compute_dtype=compute_dtype)[:, 0]

    def step(now: _Progress) -> _Progress:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, now.num_made)
        chosen = choose_tokens(now.logits, keys, sampling)
        chances = jnp.take_along_axis(jax.nn.log_softmax(now.logits), chosen[:, None], axis=1)[:, 0]
        hidden, caches = extend(chosen[:, None], now.caches, lengths + now.num_made)
        return _Progress(
            num_made=now.num_made + 1,
            logits=scores(hidden),
            caches=caches,
            tokens=now.tokens.at[:, now.num_made].set(chosen),
            log_probabilities=now.log_probabilities.at[:, now.num_made].set(chances),
            ended=now.ended | (chosen[:, None] == stops[None, :]).any(axis=1),
        )

    caches = empty_caches(config, num_rows, num_prompt + max_new_tokens, compute_dtype)
    hidden, caches = extend(tokens, caches, jnp.zeros_like(lengths))
    start = _Progress(
        num_made=jnp.zeros((), jnp.int32),
        logits=scores(jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)),
        caches=caches,
        tokens=jnp.full((num_rows, max_new_tokens), -1, jnp.int32),
        log_probabilities=jnp.zeros((num_rows, max_new_tokens), jnp.float32),
        ended=jnp.zeros((num_rows,), bool),
    )
    end = jax.lax.while_loop(lambda now: (now.num_made < max_new_tokens) & ~now.ended.all(), step, start)
    return end.tokens, end.log_probabilities


def _continuation(
    row: Int32[np.ndarray, " N"], log_probabilities: Float32[np.ndarray, " N"], stop_ids: frozenset[int]
) -> Continuation:
    tokens = [int(token) for token in row]
    end = next((index for index, token in enumerate(tokens) if token in stop_ids), None)
    num_counted = len(tokens) if end is None else end + 1
    return Continuation(
        tokens=tuple(tokens if end is None else tokens[:end]),
        stopped=end is not None,
        log_probability=float(log_probabilities[:num_counted].sum(dtype=np.float64)),
    )


def _check(config: TransformerConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if config.kind != "decoder":
        raise UsageError(f"kind={config.kind!r} does not make text; a decoder does")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens} must be at least 1")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UsageError(f"prompt {number} has no tokens; give it a first one, such as the beginning of a text")
        beyond = [token for token in prompt if not 0 <= token < config.vocab_size]
        if beyond:
            raise UsageError(f"prompt {number} holds the id {beyond[0]}; the model has vocab_size={config.vocab_size}")
        if len(prompt) + max_new_tokens > config.max_positions:
            raise UsageError(
                f"prompt {number} has {len(prompt)} tokens, which with max_new_tokens={max_new_tokens} is more than "
                f"the model's max_positions={config.max_positions}"
            )
