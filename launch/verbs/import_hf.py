"""`jaxscale import hf`: a Hugging Face folder becomes a committed model folder."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import tyro

from jaxscale.errors import VerificationError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Imports a folder of transformers: config.json, safetensors (one or several), tokenizer.json or vocab.txt.

    Llama, Mistral, Mixtral, Qwen2, GPT-2, BERT and T5. Tensors are converted one by one, so that a model need not fit
    into memory. Settings of sentence-transformers beside it (pooling, normalisation, length limit, prompts) are kept.

    Example: jaxscale import hf all-MiniLM-L6-v2 --out models/minilm
    Example: jaxscale import hf Llama-3.2-1B --out models/llama --check --python peers/bin/python
    """

    folder: tyro.conf.Positional[Path]
    """The folder to read."""
    out: Path
    """The model folder to write; must not exist yet."""
    check: bool = False
    """Compares the scores of a prompt with those that transformers computes from the folder it came from."""
    prompt: str = "The sea was calm that morning, and"
    """What --check compares the scores of."""
    python: Path = Path(sys.executable)
    """An interpreter that has torch and transformers, for --check."""

    def run(self) -> dict[str, Any]:
        """Writes the model folder and says what it holds."""
        from jaxscale import typed_json
        from jaxscale.interop.huggingface import convert
        from jaxscale.nn.config import EncoderDecoderConfig
        from jaxscale.nn.model_folder import load_card

        identity = convert(self.folder, self.out)
        card = load_card(self.out, "sizes")
        config = card.config
        if isinstance(config, EncoderDecoderConfig):
            kind, num_layers = "encoder-decoder", config.encoder.num_layers + config.decoder.num_layers
            width = config.encoder.d_model
        else:
            kind, num_layers, width = config.kind, config.num_layers, config.d_model
        print(f"{self.out}: {kind}, {num_layers} layers, {width} wide, {config.num_params:,} parameters")
        if card.settings is not None:
            length = "scaled to length 1" if card.settings.normalize else "not normalised"
            print(f"vectors: {card.settings.pooling} pooling, {length}, up to {card.settings.max_length} tokens")
        return {
            "out": str(self.out),
            "identity": identity,
            "num_params": config.num_params,
            "config": typed_json.encode(config),
            "settings": typed_json.encode(card.settings),
            "provenance": card.provenance,
            "check": self._compared() if self.check else None,
        }

    def _compared(self) -> dict[str, Any]:
        from jaxscale.interop.parity import compare
        from jaxscale.nn.model_folder import load_model

        model = load_model(self.out)
        tokens = model.tokenizer.encode_batch([self.prompt], min(64, model.config.max_positions)).ids[0].tolist()
        parity = compare(model, self.folder, [tokens], self.python)
        said = f"{parity.max_difference:.2g} of {parity.max_score:.3g} over {len(tokens)} tokens"
        if not parity.holds:
            raise VerificationError(
                f"{self.out}: its scores differ from those of transformers by {said}; the folder is kept, don't use it"
            )
        print(f"check: scores differ from those of transformers by at most {said}")
        return {"max_difference": parity.max_difference, "max_score": parity.max_score, "num_tokens": len(tokens)}
