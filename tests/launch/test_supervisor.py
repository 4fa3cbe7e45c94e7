"""The supervisor on small programs: what is started again, what is not, and that no process outlives it."""

import dataclasses
import io
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxscale.observe.watchdog import Finding
from launch.restarts import Ending, decide
from launch.supervisor import Command, Limits, Supervisor

LIMITS = Limits(max_restarts=3, grace_s=5.0, first_backoff_s=0.01)


@dataclasses.dataclass
class Programs:
    """One start: a program for each process, told its rank."""

    program: str
    num: int = 2
    step: int | None = None
    found: tuple[Finding, ...] = ()

    def commands(self):
        return [
            Command(words=(sys.executable, "-c", self.program, str(r)), environment=os.environ) for r in range(self.num)
        ]

    def findings(self):
        return list(self.found)

    def step_reached(self):
        return self.step


def run(*starts, limits=LIMITS):
    """The endings' codes, whether it was done, and the log; each start in its turn, the last for ever."""
    log, left = io.StringIO(), list(starts)
    supervisor = Supervisor(lambda: left.pop(0) if len(left) > 1 else left[0], limits, log)
    endings, decision = supervisor.run()
    return [ending.code for ending in endings], decision.reason, log.getvalue()


DONE = "print('done', flush=True)"
LOST = "import os, signal, sys, time\nif sys.argv[1] == '1': os.kill(os.getpid(), 9)\ntime.sleep(60)"


def test_all_done():
    codes, reason, log = run(Programs(DONE))
    assert (codes, reason) == ([0], "done")
    assert "[0] done" in log
    assert "[1] done" in log


def test_a_lost_process_starts_all_again():
    codes, reason, log = run(Programs(LOST, step=3), Programs(DONE))
    assert (codes, reason) == ([137, 0], "done")
    assert "process 1 ended with code 137" in log
    assert "killing 0: they can't go on without the others" in log
    assert "restart 1 of 3" in log


def test_the_same_end_at_the_same_step_is_not_tried_a_third_time():
    codes, reason, _ = run(Programs(LOST, step=3))
    assert codes == [137, 137]
    assert reason == "code 137 at step 3, twice at the same step"


def test_restarts_come_to_an_end():
    codes, reason, _ = run(*(Programs(LOST, step=step) for step in range(1, 6)))
    assert codes == [137] * 4
    assert "after 3 restarts" in reason


@pytest.mark.parametrize("code", [1, 2, 3, 5, 6])
def test_a_refusal_is_not_met_again(code):
    codes, reason, _ = run(Programs(f"import sys, time; sys.argv[1] == '0' and sys.exit({code}); time.sleep(60)"))
    assert codes == [code]
    assert "which a new start would not mend" in reason


def test_preempted_processes_start_again_even_at_the_same_step():
    codes, _, _ = run(
        Programs("raise SystemExit(42)", step=2), Programs("raise SystemExit(42)", step=2), Programs(DONE)
    )
    assert codes == [42, 42, 0]


def test_one_that_is_stuck_is_named_and_shows_its_stack():
    program = "import faulthandler, signal, time; faulthandler.register(signal.SIGUSR2); time.sleep(60)"
    stuck = Finding(kind="stuck", rank=1, step=7, phase="data", text="process 1 is stuck")

    class Later(Programs):
        began = None

        def findings(self):
            self.began = self.began or time.monotonic()
            return [stuck] if time.monotonic() - self.began > 1.5 else []

    codes, _, log = run(Later(program, step=7), Programs(DONE))
    assert codes == [137, 0]
    assert "[launch] stuck: process 1 is stuck" in log
    assert "most recent call first" in log
    assert "killing 0, 1" in log


def test_a_signal_is_passed_on_and_ends_the_job(tmp_path):
    program = f"""
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path({str(tmp_path)!r}, "saved" + sys.argv[1]).touch()
    sys.exit(42)
signal.signal(signal.SIGTERM, end)
pathlib.Path({str(tmp_path)!r}, "up" + sys.argv[1]).touch()
time.sleep(60)
"""

    def terminate():
        while len(list(tmp_path.glob("up*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    codes, reason, log = run(Programs(program))
    assert codes == [42]
    assert "after a signal that was passed on" in reason
    assert "passing SIGTERM on to 2 processes" in log
    assert len(list(tmp_path.glob("saved*"))) == 2


def test_one_that_does_not_listen_is_killed_after_its_grace(tmp_path):
    program = f"""
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({str(tmp_path / "up")!r}).touch()
time.sleep(60)
"""

    def terminate():
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    limits = dataclasses.replace(LIMITS, grace_s=0.5)
    codes, _, log = run(Programs(program, num=1), limits=limits)
    assert codes == [137]
    assert "killing 0" in log


def test_what_a_process_has_started_goes_with_it(tmp_path):
    pid = tmp_path / "pid"
    program = f"""
import pathlib, subprocess, sys, time
if sys.argv[1] == "0":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path({str(pid)!r}).write_text(str(child.pid))
    time.sleep(60)
while not pathlib.Path({str(pid)!r}).exists() or not pathlib.Path({str(pid)!r}).read_text():
    time.sleep(0.02)
sys.exit(2)
"""
    run(Programs(program))
    deadline = time.monotonic() + 5
    while _is_running(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_persons_wish_goes_before_all():
    decision = decide([Ending(code=130, step=4)], max_restarts=3, asked_to_stop=True)
    assert not decision.restart
