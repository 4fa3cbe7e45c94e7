"""Text to token ids: loads tokenizers and encodes with padding and truncation decided here, never by a file."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32

from jaxscale import typed_json
from jaxscale.data import tokenizer_training
from jaxscale.data.text_pairs import PairFrame
from jaxscale.errors import DataError, UsageError

# Texts handed to the library at a time: enough to keep its threads busy, few enough that its objects stay small.
_TEXTS_PER_CALL = 2048

# How the families name the token that fills: BERT, T5 and Llama, RoBERTa, GPT-2 (which has none and reuses its end).
_PAD_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")
_UNKNOWN_TOKENS = ("[UNK]", "<unk>")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids of several texts.

    Attributes:
      ids: one int32 array per text, special tokens included, at least one token long.
      num_truncated: how many texts had more tokens than `max_length`.
    """

    ids: list[Int32[np.ndarray, "_"]]
    num_truncated: int


class Tokenizer:
    """A tokenizer of the `tokenizers` library under rules of ours.

    * What its file says of truncation and padding is dropped.
    * A text over the limit keeps its first tokens, and its closing special tokens.
    * A text without any token (an empty one, where no special tokens surround it) becomes one unknown token, so that
      no row is empty.
    * `fingerprint` names its behaviour: the SHA-256 of its canonical JSON.
    * `opening_ids` and `closing_ids` are the special tokens that it puts before and after a text.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        """Builds the tokenizer that a parsed tokenizer.json describes.

        Args:
          spec: the JSON values of a tokenizer.json.

        Raises:
          DataError: the library refuses it.
        """
        try:
            self._canonical = typed_json.canonical({**spec, "truncation": None, "padding": None})
            self._library = tokenizers.Tokenizer.from_str(self._canonical.decode())
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"this is no tokenizer the tokenizers library can read: {error}") from None
        self.vocab_size: int = self._library.get_vocab_size(with_added_tokens=True)
        self.fingerprint: str = hashlib.sha256(self._canonical).hexdigest()
        self.pad_id: int = self._first_id(_PAD_TOKENS)
        self._unknown_id = self._first_id(_UNKNOWN_TOKENS)
        self.opening_ids, self.closing_ids = self._special_tokens_around()

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Loads a tokenizer.json, a BERT vocab.txt, or the one that a folder holds.

        A vocab.txt makes a BERT WordPiece tokenizer, lowercase unless a tokenizer_config.json beside it says
        `"do_lower_case": false`.

        Args:
          path: the file, or a folder with tokenizer.json or else vocab.txt.

        Raises:
          DataError: there is none, or it can't be read.
        """
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
            if not found:
                raise DataError(f"{path}: holds neither tokenizer.json nor vocab.txt")
            path = found[0]
        if not path.is_file():
            raise DataError(f"{path}: there is no such tokenizer file")
        if path.suffix == ".txt":
            return cls(_bert_spec(path))
        return cls(_parsed(path))

    @classmethod
    def train_wordpiece(cls, texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> "Tokenizer":
        """Trains a lowercase BERT WordPiece tokenizer; the same texts give the same tokenizer, bit for bit.

        Args:
          texts: what to learn from; held in memory while it trains.
          vocab_size: at most so many tokens, special tokens included.
          min_frequency: a pair of pieces seen less often is not merged.

        Raises:
          UsageError: `vocab_size` is too small for the special tokens and a few characters.
        """
        return cls(tokenizer_training.wordpiece_spec(texts, vocab_size, min_frequency))

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2) -> "Tokenizer":
        """Trains a byte-level BPE tokenizer in the manner of GPT-2; deterministic, and no text is unknown to it.

        Args:
          texts: what to learn from.
          vocab_size: at most so many tokens; the 256 bytes and the special tokens are among them.
          min_frequency: a pair of pieces seen less often is not merged.

        Raises:
          UsageError: `vocab_size` is too small for the bytes and the special tokens.
        """
        return cls(tokenizer_training.bpe_spec(texts, vocab_size, min_frequency))

    def encode_batch(self, texts: Sequence[str], max_length: int) -> Encoded:
        """Token ids of texts, with their special tokens, no longer than `max_length`, not padded.

        Args:
          texts: N texts.
          max_length: the most tokens a text may have, its special tokens included.

        Raises:
          UsageError: `max_length` leaves no room beside the special tokens.
          DataError: a text holds a lone surrogate, which no UTF-8 can carry.
        """
        room = max_length - len(self.opening_ids) - len(self.closing_ids)
        if room < 1:
            raise UsageError(
                f"max_length={max_length} leaves no room beside "
                f"{len(self.opening_ids) + len(self.closing_ids)} special tokens; use more"
            )
        rows: list[Int32[np.ndarray, "_"]] = []
        num_truncated = 0
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            for ids in self._encode(texts[start : start + _TEXTS_PER_CALL], start):
                num_truncated += len(ids) > room
                rows.append(np.array(self.opening_ids + ids[:room] + self.closing_ids or [self._unknown_id], np.int32))
        return Encoded(ids=rows, num_truncated=num_truncated)

    def encode_bare(self, texts: Sequence[str]) -> list[Int32[np.ndarray, "_"]]:
        """Token ids of texts, whole and without special tokens; an empty text has none.

        Raises:
          DataError: a text holds a lone surrogate, which no UTF-8 can carry.
        """
        rows: list[Int32[np.ndarray, "_"]] = []
        for start in range(0, len(texts), _TEXTS_PER_CALL):
            rows += (np.array(ids, np.int32) for ids in self._encode(texts[start : start + _TEXTS_PER_CALL], start))
        return rows

    def pair_frame(self) -> PairFrame:
        """The special tokens that the tokenizer puts around two texts.

        Raises:
          DataError: it puts them elsewhere, or none between the texts, so that these would run into each other.
        """
        text = self._library.encode("a", add_special_tokens=False).ids
        pair = self._library.encode("a", "a", add_special_tokens=True)
        typed, size = list(zip(pair.ids, pair.type_ids, strict=True)), len(text)
        starts = [at for at in range(len(typed) - size + 1) if pair.ids[at : at + size] == text]
        if len(starts) != 2 or starts[1] <= starts[0] + size:
            raise DataError(
                f"the tokenizer joins two texts 'a' to {pair.tokens}; expected each of them once, and a special token "
                "between them: use the tokenizer of an encoder, such as BERT's"
            )
        first, second = starts
        return PairFrame(
            opening=tuple(typed[:first]),
            between=tuple(typed[first + size : second]),
            closing=tuple(typed[second + size :]),
            types=(typed[first][1], typed[second][1]),
        )

    def closed_by(self, token: int) -> "Tokenizer":
        """The same tokenizer, which puts one more special token behind every text, also behind one that is cut.

        Args:
          token: its id. Where texts end with it already, nothing changes.

        Raises:
          DataError: the vocabulary lacks it.
        """
        if self.closing_ids[-1:] == [token]:
            return self
        names = {id: self.token(id) for id in (*self.opening_ids, *self.closing_ids, token)}
        if None in names.values():
            raise DataError(f"the tokenizer has no token {token}; its vocabulary has {self.vocab_size}")

        def special(ids: list[int]) -> list[dict[str, Any]]:
            return [{"SpecialToken": {"id": names[id], "type_id": 0}} for id in ids]

        def framed(*texts: str) -> list[dict[str, Any]]:
            inner = [{"Sequence": {"id": text, "type_id": 0}} for text in texts]
            return [*special(self.opening_ids), *inner, *special([*self.closing_ids, token])]

        template = {
            "type": "TemplateProcessing",
            "single": framed("A"),
            "pair": framed("A", "B"),
            "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]} for id, name in names.items()},
        }
        return Tokenizer({**json.loads(self._canonical), "post_processor": template})

    def decode(self, ids: Sequence[int] | Int32[np.ndarray, "_"]) -> str:
        """The text of token ids, without special tokens; what normalisation dropped does not come back."""
        return self._library.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of a token, or None where the vocabulary lacks it."""
        return self._library.token_to_id(token)

    def token(self, id: int) -> str | None:
        """The token of an id, or None where the vocabulary lacks it."""
        return self._library.id_to_token(id)

    def save(self, path: Path | str) -> None:
        """Writes a tokenizer.json, always the same bytes for the same tokenizer.

        Args:
          path: the file to write.
        """
        Path(path).write_bytes(self.to_json().encode())

    def to_json(self) -> str:
        """What `save` writes."""
        return self._canonical.decode() + "\n"

    def _encode(self, texts: Sequence[str], start: int) -> list[list[int]]:
        try:
            return [e.ids for e in self._library.encode_batch_fast(list(texts), add_special_tokens=False)]
        except (TypeError, UnicodeEncodeError):
            for index, text in enumerate(texts, start):
                _check_encodable(text, index)
            raise

    def _first_id(self, names: Sequence[str]) -> int:
        ids = (self._library.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), 0)

    def _special_tokens_around(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before and after a single text."""
        bare = self._library.encode("a", add_special_tokens=False).ids
        full = self._library.encode("a", add_special_tokens=True).ids
        num_added = len(full) - len(bare)
        for num_before in range(num_added + 1):
            if full[num_before : num_before + len(bare)] == bare:
                return full[:num_before], full[num_before + len(bare) :]
        raise DataError(f"the tokenizer's special tokens do not stand around a text: 'a' is {bare}, with them {full}")


def _parsed(path: Path) -> dict[str, Any]:
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(spec, dict):
        raise DataError(f"{path}: got a {type(spec).__name__}, expected the object of a tokenizer.json")
    return spec


def _bert_spec(vocab_file: Path) -> dict[str, Any]:
    """A tokenizer.json's values for a BERT vocab.txt: one token a line, its id the line's number."""
    try:
        # Not splitlines: a token may be U+2028 or another character that it takes for a line's end.
        tokens = vocab_file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{vocab_file}: not UTF-8: {error}") from None
    vocab = {token: index for index, token in enumerate(tokens)}
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in vocab]
    if missing:
        raise DataError(f"{vocab_file}: lacks {', '.join(missing)}; expected the vocab.txt of a BERT model")
    config_file = vocab_file.parent / "tokenizer_config.json"
    config = _parsed(config_file) if config_file.is_file() else {}
    lowercase = bool(config["do_lower_case"]) if "do_lower_case" in config else True
    return tokenizer_training.bert_wordpiece_spec(vocab, lowercase=lowercase)


def _check_encodable(text: object, index: int) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text {index} is a {type(text).__name__}, expected a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text {index} holds the lone surrogate U+{ord(text[error.start]):04X} at {error.start}; "
            "replace it by U+FFFD, as the BEIR reader does"
        ) from None
