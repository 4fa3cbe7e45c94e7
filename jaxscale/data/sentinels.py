"""The tokens that stand for spans cut out of a text: T5's `<extra_id_0>`, `<extra_id_1>`, whatever their ids."""

import re
from collections.abc import Mapping

from jaxscale.data.tokenizer import Tokenizer

FIRST_SENTINEL = "<extra_id_0>"
_NAME = re.compile(r"(<extra_id_\d+>)")


def sentinel_names(tokenizer: Tokenizer, vocab_size: int) -> dict[int, str]:
    """The ids in the order of their use, each with its name.

    They are the tokenizer's own, where it has the first of them; else the last ids of the model, which no text has.

    Args:
      tokenizer: of the texts.
      vocab_size: of the model, at least the tokenizer's.
    """
    num_beyond = vocab_size - tokenizer.vocab_size
    names = [f"<extra_id_{k}>" for k in range(vocab_size)]
    if tokenizer.token_id(FIRST_SENTINEL) is None:
        return {vocab_size - 1 - k: names[k] for k in range(num_beyond)}
    ids = [tokenizer.token_id(name) for name in names]
    return {id: name for id, name in zip(ids, names, strict=True) if id is not None}


def encode_around(tokenizer: Tokenizer, text: str, sentinels: Mapping[int, str], max_length: int) -> list[int]:
    """Ids of a text in which names of sentinels may stand, without the special tokens around it.

    Args:
      tokenizer: of the text; it may know the names or not.
      text: of which each piece between two names is encoded by itself.
      sentinels: see `sentinel_names`; a name that is not among them is text like any other.
      max_length: of a piece, beyond which it is cut.
    """
    ids = {name: id for id, name in sentinels.items()}
    around = len(tokenizer.opening_ids) + len(tokenizer.closing_ids)
    encoded: list[int] = []
    for piece in filter(None, _NAME.split(text)):
        if piece in ids:
            encoded.append(ids[piece])
        else:
            row = tokenizer.encode_batch([piece], max_length + around).ids[0].tolist()
            encoded += row[len(tokenizer.opening_ids) : len(row) - len(tokenizer.closing_ids)]
    return encoded
