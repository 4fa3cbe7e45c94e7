"""Masked language modelling: some tokens are hidden, and the model says what they were."""

import dataclasses

import numpy as np
from jaxtyping import Int32, Int64

from jaxscale.errors import UsageError
from jaxscale.train.token_loss import NO_TARGET


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Which tokens are predicted, and what stands in their place.

    Attributes:
      rate: the share of the tokens that are predicted.
      masked_share: of these, the share that become the mask.
      random_share: of these, the share that become any token of the vocabulary; the rest stay as they are.

    Reference: Devlin et al. 2018 (BERT), section 3.1 ("Masked LM") and appendix A.1, https://arxiv.org/abs/1810.04805
    """

    rate: float = 0.15
    masked_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UsageError(f"rate={self.rate} must be above 0 and at most 1")
        if self.masked_share < 0 or self.random_share < 0 or self.masked_share + self.random_share > 1:
            raise UsageError(
                f"masked_share={self.masked_share} and random_share={self.random_share} must be at least 0 and "
                "come to at most 1"
            )


def mask_tokens(
    tokens: Int32[np.ndarray, "N S"],
    real: np.ndarray,
    sample_ids: Int64[np.ndarray, " N"],
    *,
    config: MaskingConfig,
    mask_id: int,
    vocab_size: int,
    seed: int,
) -> tuple[Int32[np.ndarray, "N S"], Int32[np.ndarray, "N S"]]:
    """Tokens with some of them hidden, and those as targets; a pure function of (seed, sample id, tokens) for each row.

    Args:
      tokens: ids.
      real: bool [N S], True where a token may be predicted.
      sample_ids: the number of every row in the data's order: its draws are its own, whoever asks for it.
      config: how many, and what for.
      mask_id: the mask token.
      vocab_size: random tokens are below it.
      seed: of the run.
    """
    masked, targets = tokens.copy(), np.full_like(tokens, NO_TARGET)
    for row, sample in enumerate(sample_ids):
        draw = np.random.Generator(np.random.Philox(key=[seed, int(sample)]))
        chosen = (draw.random(tokens.shape[1]) < config.rate) & real[row]
        fate = draw.random(tokens.shape[1])
        anything = draw.integers(0, vocab_size, tokens.shape[1], dtype=np.int32)
        hidden = chosen & (fate < config.masked_share)
        other = chosen & ~hidden & (fate < config.masked_share + config.random_share)
        masked[row] = np.where(hidden, np.int32(mask_id), np.where(other, anything, tokens[row]))
        targets[row] = np.where(chosen, tokens[row], np.int32(NO_TARGET))
    return masked, targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """How an encoder's tokens are hidden.

    Attributes:
      config: which, and what for.
      mask_id: the mask token.
      vocab_size: random tokens are below it.
      seed: of the run.
    """

    config: MaskingConfig
    mask_id: int
    vocab_size: int
    seed: int

    def applied(self, batch: dict[str, np.ndarray], sample_ids: Int64[np.ndarray, " N"]) -> dict[str, np.ndarray]:
        """The rows with some of their tokens hidden, and those as targets; padding is never among them."""
        tokens, targets = mask_tokens(
            batch["tokens"],
            batch["segments"] > 0,
            sample_ids,
            config=self.config,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            seed=self.seed,
        )
        return batch | {"tokens": tokens, "targets": targets}
