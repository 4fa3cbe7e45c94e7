"""Text to tokens to batches: tokenizers, seekable permutations, batch schedules, length buckets."""
