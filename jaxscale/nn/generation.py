"""Text from a decoder, token by token: a batch of prompts or sources of any lengths, each token read once."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float32, Int32, Key

from jaxscale.errors import UsageError
from jaxscale.nn import functional
from jaxscale.nn.cache import KeyValues, empty_caches
from jaxscale.nn.config import EncoderDecoderConfig, TransformerConfig
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


class _Sources(NamedTuple):
    """What an encoder-decoder's encoder reads."""

    tokens: Int32[Array, "B M"]
    mask: Bool[Array, "B M"]


# Tokens, caches and the first one's positions -> the scores of next tokens at one place of each row, and the caches.
_Extend = Callable[
    [Int32[Array, "B S"], list[KeyValues], Int32[Array, " B"], Int32[Array, " B"]],
    tuple[Float32[Array, "B V"], list[KeyValues]],
]


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
    options = (max_new_tokens, sampling, tuple(stop_ids), jnp.dtype(compute_dtype))
    return _run(without_limits(config), params, None, prompts, *options) if prompts else []


def generate_targets(
    config: EncoderDecoderConfig,
    params: Params,
    sources: Sequence[Sequence[int]],
    *,
    start_id: int,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    compute_dtype: DTypeLike = jnp.float32,
) -> list[Continuation]:
    """What an encoder-decoder writes, having read each source; otherwise as `generate`.

    Args:
      config: the model, without experts.
      params: its parameters, stacked or not.
      sources: token ids in [0, V), at least one for each.
      start_id: the token that every target begins with; it is no part of what is returned.
      max_new_tokens: of each target, at most.
      sampling: how tokens are chosen; None: always the one with the highest score.
      stop_ids: tokens that end a target.
      compute_dtype: of matrix products, and of the keys and values that are kept.

    Raises:
      UsageError: a source is empty, too long or holds an id beyond the vocabulary, or the target is to be too long.
    """
    _check_tokens(config.encoder, sources, 0, "source")
    starts = [[start_id]] * len(sources)
    _check(config.decoder, starts, max_new_tokens, "target")
    if not sources:
        return []
    tokens, lengths = _filled_up(sources)
    tokens = tokens[:, : config.encoder.max_positions]
    read = _Sources(jnp.asarray(tokens), jnp.asarray(np.arange(tokens.shape[1]) < lengths[:, None]))
    return _run(config, params, read, starts, max_new_tokens, sampling, tuple(stop_ids), jnp.dtype(compute_dtype))


def _run(
    config: TransformerConfig | EncoderDecoderConfig,
    params: Params,
    sources: _Sources | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None,
    stop_ids: tuple[int, ...],
    compute_dtype: jnp.dtype,
) -> list[Continuation]:
    sampling = Sampling() if sampling is None else sampling
    made, log_probabilities = _generate(
        config,
        functional.unstack_layers(params) if functional.is_stacked(params) else params,
        sources,
        *_filled_up(prompts),
        jax.random.key(sampling.seed, impl="threefry2x32"),
        max_new_tokens,
        # The seed is no part of the program.
        dataclasses.replace(sampling, seed=0),
        stop_ids,
        compute_dtype,
    )
    return [
        _continuation(row, chances, frozenset(stop_ids))
        for row, chances in zip(np.asarray(made), np.asarray(log_probabilities), strict=True)
    ]


def _filled_up(rows: Sequence[Sequence[int]]) -> tuple[Int32[np.ndarray, "B P"], Int32[np.ndarray, " B"]]:
    """The rows with zeros behind them, to one length, and their lengths."""
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), -(-int(lengths.max()) // _LENGTH_STEP) * _LENGTH_STEP), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    return tokens, lengths


def without_limits(config: TransformerConfig) -> TransformerConfig:
    """The same function of a token, but that experts take every token that is sent to them.

    Args:
      config: the model.
    """
    if config.experts is None or config.experts.capacity_factor is None:
        return config
    share = config.experts.num_experts / config.experts.num_experts_per_token
    return dataclasses.replace(config, experts=dataclasses.replace(config.experts, capacity_factor=share, group_size=1))


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 8, 9))
def _generate(
    config: TransformerConfig | EncoderDecoderConfig,
    params: Params,
    sources: _Sources | None,
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
    extend = _extend_of(config, params, sources, compute_dtype)

    def step(now: _Progress) -> _Progress:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, now.num_made)
        chosen = choose_tokens(now.logits, keys, sampling)
        chances = jnp.take_along_axis(jax.nn.log_softmax(now.logits), chosen[:, None], axis=1)[:, 0]
        logits, caches = extend(chosen[:, None], now.caches, lengths + now.num_made, jnp.zeros_like(lengths))
        return _Progress(
            num_made=now.num_made + 1,
            logits=logits,
            caches=caches,
            tokens=now.tokens.at[:, now.num_made].set(chosen),
            log_probabilities=now.log_probabilities.at[:, now.num_made].set(chances),
            ended=now.ended | (chosen[:, None] == stops[None, :]).any(axis=1),
        )

    decoder = config.decoder if isinstance(config, EncoderDecoderConfig) else config
    caches = empty_caches(decoder, num_rows, num_prompt + max_new_tokens, compute_dtype)
    logits, caches = extend(tokens, caches, jnp.zeros_like(lengths), lengths - 1)
    start = _Progress(
        num_made=jnp.zeros((), jnp.int32),
        logits=logits,
        caches=caches,
        tokens=jnp.full((num_rows, max_new_tokens), -1, jnp.int32),
        log_probabilities=jnp.zeros((num_rows, max_new_tokens), jnp.float32),
        ended=jnp.zeros((num_rows,), bool),
    )
    end = jax.lax.while_loop(lambda now: (now.num_made < max_new_tokens) & ~now.ended.all(), step, start)
    return end.tokens, end.log_probabilities


def _extend_of(
    config: TransformerConfig | EncoderDecoderConfig,
    params: Params,
    sources: _Sources | None,
    compute_dtype: jnp.dtype,
) -> _Extend:
    if isinstance(config, EncoderDecoderConfig):
        if sources is None:
            raise UsageError("an encoder-decoder needs sources")
        memory = functional.encode(config, params, sources.tokens, sources.mask, compute_dtype=compute_dtype)
        target = functools.partial(functional.extend_target, config, params, memory, sources.mask)

        def extend_target(tokens: Any, caches: Any, first: Any, place: Any) -> Any:
            logits, caches = target(tokens, caches, first, compute_dtype=compute_dtype)
            return _at(logits, place)[:, 0], caches

        return extend_target

    def extend(tokens: Any, caches: Any, first: Any, place: Any) -> Any:
        hidden, caches = functional.extend(config, params, tokens, caches, first, compute_dtype=compute_dtype)
        # Scores of that place alone: those of a whole prompt would be the largest array by far.
        return functional.logits(config, params, _at(hidden, place), compute_dtype=compute_dtype)[:, 0], caches

    return extend


def _at(x: Float32[Array, "B S D"], place: Int32[Array, " B"]) -> Float32[Array, "B 1 D"]:
    return jnp.take_along_axis(x, place[:, None, None], axis=1)


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


def _check(
    config: TransformerConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int, what: str = "prompt"
) -> None:
    if config.kind != "decoder":
        raise UsageError(f"kind={config.kind!r} does not make text; a decoder does")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens={max_new_tokens} must be at least 1")
    _check_tokens(config, prompts, max_new_tokens, what)


def _check_tokens(config: TransformerConfig, rows: Sequence[Sequence[int]], num_new: int, what: str) -> None:
    for number, row in enumerate(rows):
        if not row:
            raise UsageError(f"{what} {number} has no tokens; give it a first one, such as the beginning of a text")
        beyond = [token for token in row if not 0 <= token < config.vocab_size]
        if beyond:
            raise UsageError(f"{what} {number} holds the id {beyond[0]}; the model has vocab_size={config.vocab_size}")
        if len(row) + num_new > config.max_positions:
            together = f", which with max_new_tokens={num_new} is" if num_new else ":"
            limit = config.max_positions
            raise UsageError(
                f"{what} {number} has {len(row)} tokens{together} more than the model's max_positions={limit}"
            )
