"""`jaxscale export sentence-transformers`: a retriever becomes a folder that sentence-transformers loads."""

import dataclasses
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Writes a retriever for `SentenceTransformer(DIR)`, whose encode_query and encode_document give its vectors.

    Towers with a transformer in the layout of BERT, Llama, Mistral, Mixtral, Qwen2 or GPT-2; the message says what of
    another differs. Pooling, projection, normalisation, prompts and the length limit go along.

    Example: jaxscale export sentence-transformers --model runs/small --out small-st
    Example: jaxscale export sentence-transformers --model runs/apart --side query --out query-st
    """

    model: Path
    """A retriever, a training run, or a model."""
    out: Path
    """The folder to write; must not exist yet."""
    side: Literal["query", "document"] | None = None
    """The tower to write, where each has weights of its own; both where they share them."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the tensors."""
    max_file_gb: float = 5.0
    """Of one file of tensors, in 10^9 bytes; larger models have several."""
    check: Literal["full", "sizes"] = "full"
    """How much of the retriever is compared with its manifest: every byte, or names and sizes."""

    def run(self) -> dict[str, Any]:
        """Writes the folder and says what it holds."""
        from retrieval.towers.loading import load_towers
        from retrieval.towers.sentence_transformers_folder import export_tower

        written = export_tower(
            load_towers(self.model, check=self.check),
            self.out,
            side=self.side,
            dtype=self.dtype,
            max_file_bytes=int(self.max_file_gb * 10**9),
        )
        print(f"{self.out}: {', '.join(written.modules)}; up to {written.max_length} tokens")
        if written.cut_here_only is not None:
            side, length = written.cut_here_only
            print(
                f"a {side} of more than {length} tokens is cut there by jaxscale, and not by sentence-transformers, "
                f"which has one limit; --side {side} writes a folder with its own"
            )
        return {"out": str(self.out), **dataclasses.asdict(written)}
