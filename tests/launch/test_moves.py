"""A run of `palm_tiny` moved from 8 devices to 4, to two processes of four, and back: the same samples and losses."""

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxscale.observe.metrics import read_metrics
from jaxscale.train.events import read_events
from tests.launch.token_folders import tokens_of

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "tests/launch/language_recipes.py:recorded_palm"
# Steps done at the end of each part, processes, devices of each, and the mesh.
PARTS = (
    (30, 1, 8, "fsdp=4,tensor=2"),
    (60, 1, 4, "fsdp=2,tensor=2"),
    (90, 2, 4, "data=2,fsdp=4"),
    (120, 1, 8, "fsdp=8"),
)
WHOLE = ((120, 1, 8, "fsdp=4,tensor=2"),)

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return tokens_of("python-doc", tmp_path_factory.mktemp("tokens"))


def train(out, tokens, parts, *flags):
    """Trains in parts and returns, for each batch, the samples that each part's processes made."""
    for num_steps, num_processes, num_devices, mesh in parts:
        words = ["train", RECIPE, "--out", str(out), "--mesh", mesh, "--devices", str(num_devices)]
        words += ["--data.datasets", str(tokens), "--training.num-steps", str(num_steps), *flags]
        if num_processes > 1:
            words = ["launch", "local", "-n", str(num_processes), "--", *words]
        record = out.with_suffix(f".{num_steps}.samples")
        environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
        done = subprocess.run(
            [sys.executable, "-m", "launch.cli", *words],
            cwd=ROOT,
            env={**environment, "RECORDED_SAMPLES": str(record)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        assert len(re.findall(r"restart \d of", done.stderr)) == 0
    samples = collections.defaultdict(set)
    first = 0
    for num_steps, num_processes, _, _ in parts:
        made = collections.Counter()
        for line in out.with_suffix(f".{num_steps}.samples").read_text().splitlines():
            number, ids = json.loads(line)
            if first <= number < num_steps:  # batches made ahead of the part's end are not trained on
                samples[number].update(ids)
                made[number] += len(ids)
        # Every process makes its own rows only: together they make each row once.
        for number, count in made.items():
            assert count == len(samples[number]), (number, num_processes)
        first = num_steps
    return {number: sorted(ids) for number, ids in samples.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-3)])
def test_a_run_that_moves_sees_the_same_samples_and_losses(dtype, tolerance, tokens, tmp_path):
    flags = ("--training.compute-dtype", dtype, "--operation.log-every-steps", "1")
    expected = train(tmp_path / "whole", tokens, WHOLE, *flags)
    moved = train(tmp_path / "moved", tokens, PARTS, *flags)
    assert sorted(moved) == list(range(120))
    assert moved == expected
    losses = [
        np.array([row["loss"] for row in read_metrics(tmp_path / name) if "loss" in row]) for name in ("whole", "moved")
    ]
    assert len(losses[0]) == len(losses[1]) == 120
    differences = np.abs(losses[1] / losses[0] - 1)
    print(f"{dtype}: losses differ by at most {differences.max():.2g} relative, over {len(differences)} steps")
    assert differences.max() < tolerance
    events = read_events(tmp_path / "moved")
    meshes = [change for event in events if event["event"] == "resumed" for change in event["environment_changes"]]
    assert sum(change.startswith("mesh: was") for change in meshes) == 3
