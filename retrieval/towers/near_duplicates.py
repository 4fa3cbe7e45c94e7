"""Groups of near-duplicate texts: computed once from a corpus, so that no document's copy is taken for a negative.

Texts are compared by their sets of shingles, runs of three words in lower case. MinHash proposes pairs, in 32 bands of
4 hashes; the exact Jaccard similarity of the two sets decides. A group is what such pairs connect: its members need not
all be alike. Two texts of similarity j are compared with probability 1 - (1 - j^4)^32: .87 at .5, 1 - 5e-8 at .8.

Reference: Broder 1997, On the resemblance and containment of documents; bands: Leskovec, Rajaraman and Ullman, Mining
of Massive Datasets, section 3.4.
"""

import collections
import hashlib
import itertools
import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float64, Int32, UInt64

from jaxscale.data.permutation import draws

# Below it, bands of this size miss too many pairs.
LOWEST_JACCARD = 0.5
_NUM_BANDS, _NUM_ROWS = 32, 4
_WORDS_PER_SHINGLE = 3
# Sets side by side in memory; so many that numpy's own overhead is small.
_COMPARED_AT_ONCE = 1024
_WORD = re.compile(r"\w+")


def duplicate_groups(texts: Iterable[str], jaccard: float) -> Int32[np.ndarray, "N"]:
    """The group of every text, named by the first text that is in it.

    Args:
      texts: in any number; what is found does not depend on anything else.
      jaccard: how similar the sets of shingles of two near-duplicates are at least, in [0.5, 1].

    >>> duplicate_groups(["A cat sat there.", "Dogs bark.", "a cat  sat there"], 1.0).tolist()
    [0, 1, 0]
    """
    groups = _Groups()
    sets: dict[int, UInt64[np.ndarray, "_"]] = {}
    first_with: dict[bytes, int] = {}
    buckets: dict[bytes, list[int]] = collections.defaultdict(list)
    for row, text in enumerate(texts):
        shingles = _shingles(text)
        groups.add()
        first = first_with.setdefault(shingles.tobytes(), row)
        if first != row:
            # A text with the very set of another brings no pairs that the other does not.
            groups.join(first, row)
            continue
        keys = _band_keys(shingles)
        candidates = sorted({other for key in keys for other in buckets[key]})
        for start in range(0, len(candidates), _COMPARED_AT_ONCE):
            others = [c for c in candidates[start : start + _COMPARED_AT_ONCE] if groups.of(c) != groups.of(row)]
            similarities = _similarities([sets[other] for other in others], shingles)
            for other in itertools.compress(others, similarities >= jaccard):
                groups.join(other, row)
        sets[row] = shingles
        for key in keys:
            buckets[key].append(row)
    return np.array([groups.of(row) for row in range(len(groups))], np.int32)


class _Groups:
    """Sets of rows that are joined, each named by its lowest row."""

    def __init__(self) -> None:
        self._parents: list[int] = []

    def __len__(self) -> int:
        return len(self._parents)

    def add(self) -> None:
        self._parents.append(len(self._parents))

    def of(self, row: int) -> int:
        while self._parents[row] != row:
            self._parents[row] = self._parents[self._parents[row]]
            row = self._parents[row]
        return row

    def join(self, left: int, right: int) -> None:
        first, second = sorted((self.of(left), self.of(right)))
        self._parents[second] = first


def _shingles(text: str) -> UInt64[np.ndarray, "_"]:
    """The set of hashed shingles, rising; a text of fewer words is one shingle."""
    words = _WORD.findall(text.casefold())
    runs = [words[start : start + _WORDS_PER_SHINGLE] for start in range(max(1, len(words) - _WORDS_PER_SHINGLE + 1))]
    digests = (hashlib.blake2b("\x1f".join(run).encode(), digest_size=8).digest() for run in runs)
    return np.unique(np.frombuffer(b"".join(digests), "<u8").astype(np.uint64))


def _band_keys(shingles: UInt64[np.ndarray, "_"]) -> list[bytes]:
    """One key for each band: its number, and the least of each of its hashes over the set."""
    signature = draws(0, "minhash", shingles, _NUM_BANDS * _NUM_ROWS).min(axis=0)
    return [bytes([band]) + rows.tobytes() for band, rows in enumerate(signature.reshape(_NUM_BANDS, _NUM_ROWS))]


def _similarities(others: list[UInt64[np.ndarray, "_"]], shingles: UInt64[np.ndarray, "S"]) -> Float64[np.ndarray, "M"]:
    """The Jaccard similarity of each of some sets with one; none of them is empty."""
    if not others:
        return np.empty(0)
    sizes = np.array([other.size for other in others])
    joined = np.concatenate(others)
    places = np.searchsorted(shingles, joined)
    is_common = shingles[np.minimum(places, shingles.size - 1)] == joined
    num_common = np.add.reduceat(is_common, np.cumsum(sizes) - sizes, dtype=np.int64)
    return num_common / (sizes + shingles.size - num_common)
