"""Scores of every Hugging Face family: by transformers, by jaxscale after import, by transformers after export.

    python -m benchmarks.parity --peers .venv-peers/bin/python

For each family transformers makes a model with random weights, some of it unusual: grouped key-value heads, tied and
own outputs, scaled rotary positions, several files. Prints the largest differences; ends with 1 where one is above the
tolerance of `jaxscale import hf --check`, or where a tensor comes back changed.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.data.tokenizer import Tokenizer
from jaxscale.interop.huggingface import convert, export_model
from jaxscale.interop.parity import TOLERANCE, compare
from jaxscale.interop.tensor_files import open_tensors
from jaxscale.nn.model_folder import load_model

PEER = Path(__file__).with_name("parity_peer.py")
TOKENS = np.random.default_rng(0).integers(1, 300, size=(3, 24)).tolist()
TEXT = "the sea was calm that morning and the boats went out one after the other to the north"


def row_of(name: str, made: Path, scratch: Path, python: Path) -> dict[str, Any]:
    """What becomes of one model that transformers made, on its way in and out again."""
    Tokenizer.train_bpe([TEXT], 300).save(made / "tokenizer.json")
    convert(made, scratch / "model")
    model = load_model(scratch / "model")
    export_model(scratch / "model", scratch / "out", max_file_bytes=40_000)
    imported, exported = (compare(model, folder, TOKENS, python) for folder in (made, scratch / "out"))
    before, after = open_tensors(made), open_tensors(scratch / "out")
    changed = [
        key for key, tensor in after.items() if key in before and not np.array_equal(before[key].read(), tensor.read())
    ]
    return {
        "name": f"parity.{name}",
        "unit": "largest difference of scores",
        "value": imported.max_difference,
        "after_export": exported.max_difference,
        "max_score": imported.max_score,
        "num_params": model.config.num_params,
        "tensors_changed": changed,
        "holds": max(imported.max_difference, exported.max_difference) <= TOLERANCE and not changed,
        "machine": platform.machine(),
    }


def main() -> int:
    """Prints a row for each family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="python of the environment of locks/peers.txt")
    parser.add_argument("--out", type=Path, default=None, help="also append the rows to this file")
    flags = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([flags.peers, PEER, folder], check=True, stderr=subprocess.DEVNULL)
        for made in sorted(Path(folder).iterdir()):
            with tempfile.TemporaryDirectory() as scratch:
                rows.append(row_of(made.name, made, Path(scratch), flags.peers))
            print(json.dumps(rows[-1]), flush=True)
    if flags.out is not None:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        with flags.out.open("a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
