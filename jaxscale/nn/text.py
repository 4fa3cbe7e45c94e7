"""Text in, text out: a model folder continues prompts, or answers sources, through its own tokenizer."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxscale.data.sentinels import encode_around, sentinel_names
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from jaxscale.nn.config import EncoderDecoderConfig
from jaxscale.nn.generation import Continuation, generate, generate_targets
from jaxscale.nn.model_folder import ModelFolder
from jaxscale.nn.sampling import Sampling

# How the families name the token that ends a text: Llama and T5, GPT-2, Llama 3, BERT.
_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "[SEP]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextContinuation:
    """What a model wrote.

    Attributes:
      prompt: what it was given.
      text: what follows; of an encoder-decoder, what it wrote having read the prompt.
      continuation: the same as tokens, with how it ended.
    """

    prompt: str
    text: str
    continuation: Continuation


def generate_text(
    model: ModelFolder,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: Sequence[str] = (),
    compute_dtype: DTypeLike = jnp.float32,
) -> list[TextContinuation]:
    """Continues texts, or writes what follows from them; see `generate` and `generate_targets`.

    Args:
      model: a decoder or an encoder-decoder, with its tokenizer.
      prompts: texts. For a decoder, tokens that the tokenizer puts before a text are put there, and none behind it; an
        empty one begins with the token that ends texts, where there is one: what follows it in training is a new text.
        For an encoder-decoder they are the sources: each has the token that ends texts behind it, as in training, and
        `<extra_id_0>`, `<extra_id_1>`... may stand in it for what is to be filled in.
      max_new_tokens: of each continuation, at most.
      sampling: how tokens are chosen; None: always the one with the highest score.
      stop: tokens, by their names in the vocabulary, that end a continuation; empty: the token that ends texts.
      compute_dtype: of matrix products.

    Raises:
      UsageError: the model is an encoder, a prompt leaves no room or is empty where it is a source, or a stop token is
        not in the vocabulary.
    """
    tokenizer, config = model.tokenizer, model.config
    stop_ids = _stop_ids(tokenizer, stop)
    write: Callable[..., list[Continuation]]
    if isinstance(config, EncoderDecoderConfig):
        sentinels = sentinel_names(tokenizer, config.decoder.vocab_size)
        tokens = [_source_ids(tokenizer, prompt, sentinels, config.encoder.max_positions) for prompt in prompts]
        write = functools.partial(generate_targets, config, start_id=tokenizer.pad_id)
    else:
        sentinels = {}
        tokens = [_prompt_ids(tokenizer, prompt, config.max_positions) for prompt in prompts]
        write = functools.partial(generate, config)
    made = write(
        jax.tree.map(jnp.asarray, model.params),
        tokens,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_ids=stop_ids,
        compute_dtype=compute_dtype,
    )
    if isinstance(config, EncoderDecoderConfig):
        texts = [_target_text(tokenizer, sentinels, one.tokens) for one in made]
    else:
        texts = [_text_behind(tokenizer, ids, one) for ids, one in zip(tokens, made, strict=True)]
    return [
        TextContinuation(prompt=prompt, text=text, continuation=continuation)
        for prompt, text, continuation in zip(prompts, texts, made, strict=True)
    ]


def end_of_text_id(tokenizer: Tokenizer) -> int | None:
    """The token that ends a text, by the names that the families give it; None where there is none."""
    ids = (tokenizer.token_id(name) for name in _END_TOKENS)
    return next((token for token in ids if token is not None), None)


def closed_by_end(tokenizer: Tokenizer, whose: str) -> Tokenizer:
    """The tokenizer that puts the token that ends texts behind every text, also behind one that is cut.

    Args:
      tokenizer: of a model.
      whose: for the message.

    Raises:
      DataError: it has no such token.
    """
    end = end_of_text_id(tokenizer)
    if end is None:
        raise DataError(
            f"append_end=True, but the tokenizer of {whose} has no token that ends texts; expected one of "
            f"{', '.join(_END_TOKENS)}"
        )
    return tokenizer.closed_by(end)


def _stop_ids(tokenizer: Tokenizer, stop: Sequence[str]) -> list[int]:
    if not stop:
        end = end_of_text_id(tokenizer)
        return [] if end is None else [end]
    ids = {name: tokenizer.token_id(name) for name in stop}
    unknown = [name for name, token in ids.items() if token is None]
    if unknown:
        raise UsageError(f"stop={unknown[0]!r} is no token of the model's vocabulary; name one as tokenizer.json does")
    return [token for token in ids.values() if token is not None]


def _prompt_ids(tokenizer: Tokenizer, prompt: str, max_positions: int) -> list[int]:
    if not prompt:
        end = end_of_text_id(tokenizer)
        return tokenizer.opening_ids or ([] if end is None else [end])
    # One more than fits, so that a prompt that is too long is refused below and not cut.
    closing = len(tokenizer.closing_ids)
    ids = tokenizer.encode_batch([prompt], max_positions + 1 + closing).ids[0]
    return [int(token) for token in ids[: len(ids) - closing]]


def _source_ids(tokenizer: Tokenizer, prompt: str, sentinels: Mapping[int, str], max_positions: int) -> list[int]:
    if not prompt:
        raise UsageError("a prompt is empty; an encoder-decoder writes what follows from a text: give it one")
    # As above; the token that ends texts is behind every source in training, whatever the tokenizer does.
    ids = encode_around(tokenizer, prompt, sentinels, max_positions + 1)
    end = end_of_text_id(tokenizer)
    closing = tokenizer.closing_ids or ([] if end is None else [end])
    return [*tokenizer.opening_ids, *ids, *closing]


def _target_text(tokenizer: Tokenizer, sentinels: Mapping[int, str], tokens: Sequence[int]) -> str:
    """The text of a target, with the names of sentinels, which `decode` would leave out."""
    runs = [(named, list(run)) for named, run in itertools.groupby(tokens, sentinels.__contains__)]
    return "".join("".join(map(sentinels.__getitem__, run)) if named else tokenizer.decode(run) for named, run in runs)


def _text_behind(tokenizer: Tokenizer, prompt: list[int], continuation: Continuation) -> str:
    """The new text: what the tokens say behind the prompt, since a tokenizer may join or strip at the seam."""
    before = tokenizer.decode(prompt)
    whole = tokenizer.decode([*prompt, *continuation.tokens])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(continuation.tokens)
