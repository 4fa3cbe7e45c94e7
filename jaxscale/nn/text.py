"""Text in, text out: a model folder continues prompts through its own tokenizer."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.errors import DataError, UsageError
from jaxscale.nn.generation import Continuation, generate
from jaxscale.nn.model_folder import ModelFolder
from jaxscale.nn.sampling import Sampling

# How the families name the token that ends a text: Llama and T5, GPT-2, Llama 3, BERT.
_END_TOKENS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "[SEP]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextContinuation:
    """What a model wrote.

    Attributes:
      prompt: what it was given.
      text: what follows.
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
    """Continues texts; see `jaxscale.nn.generation.generate`.

    Args:
      model: a decoder with its tokenizer.
      prompts: texts. Tokens that the tokenizer puts before a text are put there, and none behind it. An empty one
        begins with the token that ends texts, where there is one: what follows it in training is a new text.
      max_new_tokens: of each continuation, at most.
      sampling: how tokens are chosen; None: always the one with the highest score.
      stop: tokens, by their names in the vocabulary, that end a continuation; empty: the token that ends texts.
      compute_dtype: of matrix products.

    Raises:
      UsageError: the model is no decoder, a prompt leaves no room, or a stop token is not in the vocabulary.
    """
    tokenizer = model.tokenizer
    stop_ids = _stop_ids(tokenizer, stop)
    tokens = [_prompt_ids(tokenizer, prompt, model.transformer.max_positions) for prompt in prompts]
    made = generate(
        model.transformer,
        jax.tree.map(jnp.asarray, model.params),
        tokens,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_ids=stop_ids,
        compute_dtype=compute_dtype,
    )
    return [
        TextContinuation(prompt=prompt, text=_text_behind(tokenizer, ids, continuation), continuation=continuation)
        for prompt, ids, continuation in zip(prompts, tokens, made, strict=True)
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


def _text_behind(tokenizer: Tokenizer, prompt: list[int], continuation: Continuation) -> str:
    """The new text: what the tokens say behind the prompt, since a tokenizer may join or strip at the seam."""
    before = tokenizer.decode(prompt)
    whole = tokenizer.decode([*prompt, *continuation.tokens])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(continuation.tokens)
