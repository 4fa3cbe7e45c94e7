"""How BM25 turns text into terms: lower case, a pattern, stop words, a stemmer; frozen, so that an index names it."""

import dataclasses
import functools
import re
from collections.abc import Callable

import Stemmer
from bm25s.stopwords import STOPWORDS_EN

from jaxscale import typed_json
from jaxscale.errors import MachineError, UsageError

# The pattern of scikit-learn's CountVectorizer, which bm25s takes too: words of at least two characters.
_WORDS_OF_TWO = r"(?u)\b\w\w+\b"
# Words whose stems tell one release of the Snowball algorithms from another.
_PROBES = (
    "running",
    "generously",
    "organization",
    "skis",
    "yearly",
    "dying",
    "evening",
    "internal",
    "cats",
    "evenings",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalyserConfig:
    """What an analyser does, as data.

    Attributes:
      token_pattern: a regular expression; what it finds in the lower-cased text are the words.
      stop_words: words left out, before stemming.
      stemmer: a Snowball algorithm's name; None for no stemming.
    """

    token_pattern: str = _WORDS_OF_TWO
    stop_words: tuple[str, ...] = tuple(STOPWORDS_EN)
    stemmer: str | None = "english"

    def __post_init__(self) -> None:
        if self.stemmer is not None and self.stemmer not in Stemmer.algorithms():
            raise UsageError(f"stemmer={self.stemmer!r} is unknown; expected one of {', '.join(Stemmer.algorithms())}")


class Analyser:
    """Text to terms, by an `AnalyserConfig`.

    >>> Analyser(AnalyserConfig()).terms("The cats were running")
    ['cat', 'were', 'run']
    """

    def __init__(self, config: AnalyserConfig) -> None:
        self.config = config
        self._find_words = re.compile(config.token_pattern).findall
        self._stop_words = frozenset(config.stop_words)
        self._stem = _stemmer(config.stemmer)

    def terms(self, text: str) -> list[str]:
        """The terms of a text, in its order, repeated as often as they occur."""
        return [self._stem(word) for word in self._find_words(text.lower()) if word not in self._stop_words]

    @property
    def fingerprint(self) -> str:
        """A hash of the configuration and of what the installed stemmer does with a few words."""
        return typed_json.fingerprint({"config": self.config, "stems": [self._stem(word) for word in _PROBES]})

    def require_fingerprint(self, expected: str, index_name: str) -> None:
        """Refuses to search an index whose terms were made otherwise.

        Raises:
          MachineError: the installed stemmer gives other stems than the one that built the index.
        """
        if self.fingerprint != expected:
            raise MachineError(
                f"{index_name} was built with another release of the {self.config.stemmer!r} stemmer: its analyser is "
                f"{expected[:12]}, the one here {self.fingerprint[:12]}; build the index again"
            )


def _stemmer(name: str | None) -> Callable[[str], str]:
    if name is None:
        return str
    # Texts repeat few words many times; PyStemmer's own cache is smaller than the vocabulary of a corpus.
    return functools.lru_cache(maxsize=1 << 20)(Stemmer.Stemmer(name, 0).stemWord)
