"""The peers' side of benchmarks/sentence_parity.py: vectors of texts by sentence-transformers, from every folder given.

Called as `PYTHON sentence_parity_peer.py TEXTS.json OUT FOLDER...`; writes OUT/NAME.npz with `query` and `document`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer


def main(texts_file: str, out: str, *folders: str) -> None:
    """Encodes the texts in batches of uneven lengths, so that there is padding."""
    texts = json.loads(Path(texts_file).read_text(encoding="utf-8"))
    for folder in folders:
        model = SentenceTransformer(folder, device="cpu")
        encode = {"query": model.encode_query, "document": model.encode_document}
        # A folder of one side has its prompt by default.
        first = model.default_prompt_name or "query"
        vectors = {side: encode[side](texts, batch_size=4) for side in {first, model.default_prompt_name or "document"}}
        alone = np.concatenate([encode[first]([text]) for text in texts])
        np.savez(Path(out, f"{Path(folder).name}.npz"), alone=alone, **vectors)


if __name__ == "__main__":
    main(*sys.argv[1:])
