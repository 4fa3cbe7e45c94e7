"""Whether a model computes what transformers computes from the folder that it came from, or became."""

import dataclasses
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from jaxscale.errors import DataError, MachineError
from jaxscale.nn import functional
from jaxscale.nn.config import EncoderDecoderConfig
from jaxscale.nn.model_folder import ModelFolder

# Of scores of one model in float32, by two libraries: absolute, and relative to the largest where it is above 1.
TOLERANCE = 1e-4
_PROGRAM = Path(__file__).with_name("logits_by_transformers.py")

Tokens = list[list[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """Two libraries' scores of the same tokens.

    Attributes:
      max_difference: the largest absolute difference.
      max_score: the largest absolute score of transformers.
      shape: of the scores: [B S V], or the hidden states [B S D] of a model without an output.
    """

    max_difference: float
    max_score: float
    shape: tuple[int, ...]

    @property
    def holds(self) -> bool:
        """Whether the difference is within `TOLERANCE`."""
        return self.max_difference <= TOLERANCE * max(1.0, self.max_score)


def compare(model: ModelFolder, folder: str | Path, tokens: Tokens, python: str | Path) -> Parity:
    """Compares our scores of tokens with those of transformers.

    Args:
      model: ours.
      folder: of transformers.
      tokens: [B S] ids. An encoder-decoder reads them as its source, and as its target after the token that pads.
      python: an interpreter that has torch and transformers.

    Raises:
      DataError: transformers can't load the folder; the message has its last line.
      MachineError: there is no such interpreter, or it lacks them.
    """
    batch = {"tokens": tokens}
    if isinstance(model.config, EncoderDecoderConfig):
        batch["target"] = [[model.tokenizer.pad_id, *row[:-1]] for row in tokens]
    ours, theirs = our_scores(model, batch), their_scores(folder, batch, python)
    if ours.shape != theirs.shape:
        raise DataError(f"{folder}: transformers gives scores of shape {theirs.shape}, we {ours.shape}")
    return Parity(
        max_difference=float(np.abs(ours - theirs).max()), max_score=float(np.abs(theirs).max()), shape=ours.shape
    )


def our_scores(model: ModelFolder, batch: dict[str, Tokens]) -> Float32[np.ndarray, "B S N"]:
    """Logits, or the hidden states of a model without an output, in float32."""
    config, params = model.config, jax.tree.map(jnp.asarray, model.params)
    tokens = jnp.asarray(batch["tokens"], jnp.int32)
    if isinstance(config, EncoderDecoderConfig):
        target = jnp.asarray(batch["target"], jnp.int32)
        return np.asarray(functional.apply_encoder_decoder(config, params, tokens, target))
    hidden = functional.apply(config, params, tokens, None)
    scores_tokens = config.kind == "decoder" and not config.headless
    return np.asarray(functional.logits(config, params, hidden) if scores_tokens else hidden)


def their_scores(folder: str | Path, batch: dict[str, Tokens], python: str | Path) -> Float32[np.ndarray, "B S N"]:
    """The same by transformers, in a process of its own; errors as for `compare`."""
    with tempfile.TemporaryDirectory() as scratch:
        tokens, out = Path(scratch, "tokens.json"), Path(scratch, "out.npy")
        tokens.write_text(json.dumps(batch), encoding="utf-8")
        command: list[Any] = [python, _PROGRAM, folder, tokens, out]
        try:
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        except OSError as error:
            raise MachineError(f"{python} can't be run: {error.strerror}; expected a Python interpreter") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            if "ModuleNotFoundError" in last:
                raise MachineError(f"{python}: {last}; give an interpreter that has torch and transformers")
            raise DataError(f"{folder}: transformers can't compute its scores: {last}")
        return np.load(out)
