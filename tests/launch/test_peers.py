"""Processes without a supervisor: on a store that is a dict, and real ones, started by hand as a scheduler does."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxscale.observe.heartbeat import DONE, Beat, Heartbeat, from_text, to_text
from jaxscale.train.coordination import Coordination
from jaxscale.train.events import read_events
from launch.peers import Peers
from launch.processes import Place
from launch.restarts import LOST_PEER, is_restartable
from tests.jaxscale.train.dict_service import Service

ROOT = Path(__file__).resolve().parents[2]
HEARTBEAT_S = 0.2
PATIENCE_S = 240.0


class One:
    """A process of three: its `Peers` on a store, what they said, and the code that they ended it with."""

    def __init__(self, service, rank, folder):
        self.codes, self.path = [], folder / f"{rank}.log"
        self.ended = threading.Event()
        self.log = self.path.open("w")
        self.peers = Peers(
            Coordination(service),
            rank=rank,
            num_processes=3,
            heartbeat_s=HEARTBEAT_S,
            stall_s=60.0,
            log=self.log,
            end=self.end,
        )
        self.rank = rank

    @contextlib.contextmanager
    def at_work(self):
        with self.peers, Heartbeat(self.peers.send, self.rank, HEARTBEAT_S, host=f"node{self.rank}"):
            yield

    def end(self, code):
        self.codes.append(code)
        self.ended.set()


@pytest.fixture
def one_of_three(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(service, rank):
            one = One(service, rank, tmp_path)
            stack.callback(one.log.close)
            return one

        yield make


def silent(rank):
    return to_text(Beat(rank=rank, number=7, step=40, phase="data", data_s=0.0, host=f"node{rank}"))


def test_the_first_process_names_a_silent_one_and_all_end(one_of_three):
    service = Service()
    service.values["jaxscale/beats/2"] = silent(2)
    first, second = (one_of_three(service, rank) for rank in range(2))
    with first.at_work(), second.at_work():
        assert first.ended.wait(30)
        assert second.ended.wait(30)
    assert "jaxscale/verdict_read_by/1" in service.values
    for one in (first, second):
        assert one.codes == [LOST_PEER]
        said = one.path.read_text()
        assert re.search(r"silent: process 2 has given no .* \(host node2, step 40, phase data\)", said)
        assert "most recent call first" in said
    assert is_restartable(LOST_PEER)


def test_a_first_process_that_does_not_answer_is_named_by_the_others(one_of_three):
    service, stopped = Service(), threading.Event()
    service.values["jaxscale/beats/0"] = silent(0)
    got, ended = service.key_value_try_get, threading.Event()

    def get(key):
        if stopped.is_set():
            ended.wait(30)
        return got(key)

    service.key_value_try_get = get
    other = one_of_three(service, 1)
    with other.at_work():
        time.sleep(2 * HEARTBEAT_S)
        stopped.set()
        assert other.ended.wait(30)
        ended.set()
    assert other.codes == [LOST_PEER]
    assert "silent: process 0 has given no sign of life" in other.path.read_text()


def test_a_process_whose_log_nobody_reads_is_ended_all_the_same(one_of_three):
    service = Service()
    service.values["jaxscale/beats/2"] = silent(2)
    first = one_of_three(service, 0)
    first.log.close()
    with first.at_work():
        assert first.ended.wait(30)
    assert first.codes == [LOST_PEER]


def test_processes_that_end_by_themselves_are_left_alone(one_of_three):
    service = Service()
    several = [one_of_three(service, rank) for rank in range(3)]
    with contextlib.ExitStack() as stack:
        for one in several:
            stack.enter_context(one.at_work())
        time.sleep(5 * HEARTBEAT_S)
    assert [one.codes for one in several] == [[], [], []]
    phases = [from_text(service.values[f"jaxscale/beats/{rank}"], "").phase for rank in range(3)]
    assert phases == [DONE] * 3


def test_a_step_that_fails_because_a_peer_is_lost_ends_as_that_of_all_others(one_of_three):
    service = Service()
    service.values["jaxscale/beats/2"] = silent(2)
    first = one_of_three(service, 0)

    def step():
        raise RuntimeError("connection closed by peer")

    with pytest.raises(RuntimeError, match="connection closed"), first.at_work():
        step()
    assert first.codes == [LOST_PEER]


class Pod:
    """`jaxscale train` processes, each told its place in its environment, and nothing that watches them."""

    def __init__(self, out, num):
        self.out, self.num = out, num
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{free.getsockname()[1]}"
        self.logs = [out.parent / f"{time.monotonic_ns()}.{rank}.log" for rank in range(num)]
        self.processes = [self.start(rank, coordinator) for rank in range(num)]

    def start(self, rank, coordinator):
        place = Place(coordinator=coordinator, num_processes=self.num, process_id=rank, heartbeat_s=1.0)
        environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
        words = ["train", "tests/jaxscale/train/tiny.py:tiny_of_four", "--out", str(self.out)]
        words += ["--devices", "1", "--mesh", f"data={self.num}"]
        with self.logs[rank].open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "launch.cli", *words],
                cwd=ROOT,
                env={**environment, **place.environment()},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def said(self, rank):
        return self.logs[rank].read_text()

    def wait_for(self, text):
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.said(0):
            assert time.monotonic() < deadline, self.said(0)
            assert all(process.poll() is None for process in self.processes), self.said(0)
            time.sleep(0.02)

    def codes(self, but=()):
        return [process.wait(PATIENCE_S) for rank, process in enumerate(self.processes) if rank not in but]

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def pod(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(num):
            started = Pod(tmp_path / "run", num)
            stack.callback(started.end)
            return started

        yield start


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("num", "rank", "how"),
    [
        (2, 1, signal.SIGSTOP),
        pytest.param(4, 0, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(4, 2, signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_is_named_by_the_others_which_end_to_be_started_again(pod, num, rank, how):
    started = pod(num)
    started.wait_for("saved step=4")
    lost_at = time.monotonic()
    started.processes[rank].send_signal(how)
    others = [other for other in range(num) if other != rank]
    assert set(started.codes(but=[rank])) == {LOST_PEER}, "\n".join(map(started.said, others))
    ended_after_s = time.monotonic() - lost_at
    print(f"process {rank} after {how.name}: the others ended after {ended_after_s:.1f} s")
    named = rf"\[watchdog\] silent: process {rank} has given no .* \(host \S+, step \d+, phase"
    for other in others:
        assert re.search(named, started.said(other))
        assert "most recent call first" in started.said(other)
    # Three beats of a second until it is named; then the first process lets the others end before it.
    assert ended_after_s < 8.0


@pytest.mark.slow
@pytest.mark.multiprocess
def test_processes_started_again_go_on_from_the_last_checkpoint_and_end_with_0(pod):
    first = pod(4)
    first.wait_for("saved step=4")
    first.processes[3].send_signal(signal.SIGSTOP)
    assert first.codes(but=[3]) == [LOST_PEER] * 3, "\n".join(map(first.said, range(4)))
    first.end()
    again = pod(4)
    assert again.codes() == [0, 0, 0, 0], "\n".join(map(again.said, range(4)))
    assert "resumed step=" in again.said(0)
    assert not any("[watchdog]" in again.said(rank) for rank in range(4))
    assert read_events(again.out)[-1]["event"] == "finished"
