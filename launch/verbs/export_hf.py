"""`jaxscale export hf`: a model folder becomes a folder that transformers loads."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from launch.model_argument import model_folder_at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Writes config.json, safetensors and the tokenizer of a model, for transformers and what reads its folders.

    Models in the layout of Llama, Mistral, Mixtral, Qwen2, GPT-2, BERT or T5; the message says what of another differs.
    Tensors are converted one by one.

    Example: jaxscale export hf --model runs/small --out small-hf
    Example: jaxscale export hf --model models/llama --out llama-hf --dtype bfloat16
    """

    model: Path
    """A model folder or a run folder."""
    out: Path
    """The folder to write; must not exist yet."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the tensors."""
    max_file_gb: float = 5.0
    """Of one file of tensors, in 10^9 bytes; larger models have several."""
    check: Literal["full", "sizes"] = "full"
    """How much of the model is compared with its manifest: every byte, or names and sizes."""

    def run(self) -> dict[str, Any]:
        """Writes the folder and names its files."""
        from jaxscale.interop.huggingface import export_model

        files = export_model(
            model_folder_at(self.model),
            self.out,
            dtype=self.dtype,
            max_file_bytes=int(self.max_file_gb * 10**9),
            check=self.check,
        )
        print(f"{self.out}: {', '.join(files)}")
        return {"out": str(self.out), "files": files}
