"""Signals are seen by the main thread at once, and answered for it where it can't look."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxscale.errors import Interrupted, Preempted
from jaxscale.train.signals import StopSignals

# The main thread is in C code that runs no Python handler, as in a compilation.
BUSY = """
import hashlib, signal, sys
from pathlib import Path
from jaxscale.train.signals import StopSignals
def save():
    Path(sys.argv[1]).write_text("saved")
    return "the state of step 7 is saved"
with StopSignals(patience_s=0.1) as stop, stop.hold(save):
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 1 << 30)
"""


def wait_until(condition, limit_s=10.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted)])
def test_the_main_thread_sees_the_first_signal_and_gets_its_handlers_back(number, error):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with StopSignals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        wait_until(lambda: stop.requested)
        assert isinstance(stop.error("the state of step 3 is saved"), error)
        assert "step 3 is saved; the same command goes on" in str(stop.error("the state of step 3 is saved"))
    assert {n: signal.getsignal(n) for n in before} == before
    assert signal.set_wakeup_fd(-1) == -1


def test_another_thread_than_the_main_one_catches_nothing():
    seen = []

    def run():
        with StopSignals() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_hold_that_is_left_in_time_is_not_saved_for():
    saves = []
    with StopSignals(patience_s=0.3) as stop:
        with stop.hold(lambda: saves.append(1) or ""):
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: stop.requested)
        time.sleep(0.5)
        assert stop.requested
    assert saves == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_a_busy_main_thread_is_saved_for(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(tmp_path / "s")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "busy\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert (tmp_path / "s").read_text() == "saved"
    assert "the state of step 7 is saved" in errors


def test_a_second_ctrl_c_ends_at_once_and_saves_nothing(tmp_path):
    script = BUSY.replace("patience_s=0.1", "patience_s=60")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "s")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert not (tmp_path / "s").exists()
    assert "stopped at once" in errors
