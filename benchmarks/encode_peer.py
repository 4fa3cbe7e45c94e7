"""sentence-transformers' side of benchmarks/encode.py: runs in the peers' environment, one request a line.

A request is {"texts": FILE, "dtype": "float32" | "bfloat16", "rows": batch size, "vectors": FILE or null}; the answer
is {"seconds": ...}. Between requests it waits without using the processor.
"""

import json
import sys
import time

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    model_folder, num_cores = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(num_cores)
    models = {
        "float32": SentenceTransformer(model_folder, device="cpu"),
        "bfloat16": SentenceTransformer(model_folder, device="cpu").to(torch.bfloat16),
    }
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with open(request["texts"], encoding="utf-8") as file:
            texts = json.load(file)
        start = time.perf_counter()
        vectors = models[request["dtype"]].encode(
            texts, batch_size=request["rows"], convert_to_numpy=True, show_progress_bar=False
        )
        seconds = time.perf_counter() - start
        if request["vectors"]:
            np.save(request["vectors"], vectors.astype(np.float32))
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
