"""The recipe `palm_tiny`, 300 steps on 8 devices, killed 20 times: not a bit differs from the run left alone."""

import random

import pytest

from jaxscale.train.events import read_events
from tests.launch.test_train import Training, kill_at_a_random_time, rows
from tests.launch.token_folders import tokens_of

MESH = ("--mesh", "fsdp=4,tensor=2")
NUM_KILLS = 20
# Of which compiling takes the first third.
LONGEST_S = 14.0


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return tokens_of("tech-proposals", tmp_path_factory.mktemp("tokens"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_of_palm_tiny_change_no_bit(tokens, tmp_path):
    flags = (*MESH, "--data.datasets", str(tokens), "--operation.checkpoint-every-steps", "10")

    def training(name):
        return Training("palm_tiny", tmp_path / name, "off", *flags, recipes="", num_devices=8)

    whole = training("whole")
    assert whole.end() == 0, whole.errors
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"kill times from seed {seed}")
    rng = random.Random(seed)
    killed_at = []
    for _ in range(NUM_KILLS):
        run = training("run")
        kill_at_a_random_time(run, rng, longest_s=LONGEST_S)
        killed_at.append(run.last_row())
    print(f"last rows before each kill: {killed_at}")
    assert sum(step > 0 for step in killed_at) > NUM_KILLS // 2
    last = training("run")
    assert last.end() == 0, last.errors
    ends = [read_events(tmp_path / name)[-1] for name in ("whole", "run")]
    assert ends[0]["state_hash"] == ends[1]["state_hash"]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert rows(tmp_path / "run")[-1]["step"] == 300
