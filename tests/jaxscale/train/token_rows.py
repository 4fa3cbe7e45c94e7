"""Text made of numbers, for objectives of tokens: sample n is a pure function of n."""

import dataclasses

import numpy as np

from jaxscale.train.token_loss import NO_TARGET

VOCAB_SIZE = 40
LENGTH = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountingRows:
    """Rows of two documents, of 5 and 2 tokens, and padding; a document counts on from where its number says."""

    num_sequences: int = 1000

    def rows(self, first_sample, num):
        return self.sequences(np.arange(first_sample, first_sample + num))

    def sequences(self, indices):
        place = np.arange(LENGTH)
        segments = np.where(place < 5, 1, np.where(place < 7, 2, 0)).astype(np.int32)
        positions = np.where(place < 5, place, np.where(place < 7, place - 5, 0)).astype(np.int32)
        starts = (np.asarray(indices)[:, None] * 7 + segments[None, :] * 11) % VOCAB_SIZE
        tokens = np.where(segments > 0, (starts + 3 * positions) % VOCAB_SIZE, 0)
        ends = np.isin(place, (4, 6, 7))
        targets = np.where(ends, NO_TARGET, np.roll(tokens, -1, axis=1))
        shape = tokens.shape
        return {
            "tokens": tokens.astype(np.int32),
            "targets": targets.astype(np.int32),
            "segments": np.broadcast_to(segments, shape),
            "positions": np.broadcast_to(positions, shape),
        }
