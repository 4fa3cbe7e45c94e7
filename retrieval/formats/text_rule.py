"""What becomes of text that no tokenizer or file could carry, and how often it was met (docs/formats/beir.md)."""

import re
from dataclasses import dataclass

from jaxscale.errors import DataError

_REPLACEMENT = "\ufffd"
_UNFIT = re.compile("[\x00\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNFIT_IN_ID = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|^\s|\s$")


@dataclass(kw_only=True)
class TextCounts:
    """How many records the rule met, and how many it had to act on.

    Attributes:
      num_records: documents or queries read.
      num_empty: records without any text but white space; they are kept.
      num_with_nul: records that held U+0000.
      num_with_lone_surrogates: records that held half of a surrogate pair.
      num_cut: records longer than the limit.
    """

    num_records: int = 0
    num_empty: int = 0
    num_with_nul: int = 0
    num_with_lone_surrogates: int = 0
    num_cut: int = 0


@dataclass(frozen=True, kw_only=True)
class TextRule:
    """NULs and lone surrogates become U+FFFD, a giant text is cut, an empty one is kept; all of it is counted.

    Attributes:
      max_chars: the most characters that a text keeps.

    >>> counts = TextCounts()
    >>> TextRule(max_chars=4).clean(("a\\x00b", "abcdef"), counts)
    ('a\ufffdb', 'abcd')
    >>> counts.num_records, counts.num_with_nul, counts.num_cut
    (1, 1, 1)
    """

    max_chars: int = 1_000_000

    def clean(self, texts: tuple[str, ...], counts: TextCounts) -> tuple[str, ...]:
        """The texts of one record under the rule.

        Args:
          texts: title and text of a document, or the text of a query.
          counts: is told what was met.
        """
        counts.num_records += 1
        if not any(text and not text.isspace() for text in texts):
            counts.num_empty += 1
        if any(len(text) > self.max_chars for text in texts):
            counts.num_cut += 1
            texts = tuple(text[: self.max_chars] for text in texts)
        if all(text.isascii() and "\x00" not in text for text in texts):
            return texts
        counts.num_with_nul += any("\x00" in text for text in texts)
        counts.num_with_lone_surrogates += any(_SURROGATE.search(text) for text in texts)
        return tuple(_UNFIT.sub(_REPLACEMENT, text) for text in texts)


DEFAULT_RULE = TextRule()


def check_id(value: object, where: str) -> str:
    """Returns an id that a tab-separated line can carry.

    Args:
      value: what the file has for an id.
      where: file, line and field, for the message.

    Raises:
      DataError: it is no string, is empty, or holds a control character, a lone surrogate, or space at its ends.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: got {value!r}, expected a string")
    if not value or _UNFIT_IN_ID.search(value):
        raise DataError(
            f"{where}: got {value!r}, expected an id without control characters, lone surrogates or space at its ends"
        )
    return value
