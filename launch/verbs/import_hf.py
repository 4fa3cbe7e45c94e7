"""`jaxscale import hf`: a Hugging Face folder of the BERT family becomes a committed model folder."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Imports a folder of the BERT family (config.json, model.safetensors, tokenizer.json or vocab.txt).

    Settings of sentence-transformers beside it (pooling, normalisation, length limit, prompts) are kept.

    Example: jaxscale import hf all-MiniLM-L6-v2 --out models/minilm
    """

    folder: tyro.conf.Positional[Path]
    """The folder to read."""
    out: Path
    """The model folder to write; must not exist yet."""

    def run(self) -> dict[str, Any]:
        """Writes the model folder and says what it holds."""
        from jaxscale import typed_json
        from jaxscale.interop.huggingface import import_bert
        from jaxscale.nn.model_folder import save_model

        model = import_bert(self.folder)
        identity = save_model(self.out, model)
        config = model.transformer
        print(
            f"{self.out}: encoder, {config.num_layers} layers, {config.d_model} wide, {config.num_params:,} parameters"
        )
        if model.settings is not None:
            length = "scaled to length 1" if model.settings.normalize else "not normalised"
            print(f"vectors: {model.settings.pooling} pooling, {length}, up to {model.settings.max_length} tokens")
        return {
            "out": str(self.out),
            "identity": identity,
            "num_params": config.num_params,
            "config": typed_json.encode(config),
            "settings": typed_json.encode(model.settings),
            "provenance": model.provenance,
        }
