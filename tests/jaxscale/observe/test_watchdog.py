"""The watchdog names the right process and no other, on beats and times made up."""

import dataclasses
import functools
import time

from jaxscale.observe.heartbeat import DONE, Beat, Heartbeat, read_beats, write_beat
from jaxscale.observe.phases import Phases
from jaxscale.observe.watchdog import Patience, Watchdog

PATIENCE = Patience(silence_s=3.0, start_s=20.0, stall_s=10.0, slow_steps=4)


class Job:
    """Four processes that beat once a second, looked at four times a second."""

    def __init__(self):
        self.now_s = 100.0
        self.dog = Watchdog(4, PATIENCE, self.now_s)
        self.beats = {rank: Beat(rank=rank, number=0, step=0, phase="init", data_s=0.0) for rank in range(4)}

    def run(self, seconds, *, silent=(), steps=True, phases=None, data_s=None):
        """Lets time go by; returns what was found, each finding once."""
        found = []
        for quarter in range(int(seconds * 4)):
            self.now_s += 0.25
            if quarter % 4 == 3:
                for rank in set(self.beats) - set(silent):
                    self.beat(rank, steps, phases, data_s)
            found += [f for f in self.dog.look(self.beats, self.now_s) if f.text not in [other.text for other in found]]
        return found

    def beat(self, rank, steps, phases, data_s):
        old = self.beats[rank]
        self.beats[rank] = dataclasses.replace(
            old,
            number=old.number + 1,
            step=old.step + (1 if steps else 0),
            phase=(phases or {}).get(rank, "step"),
            data_s=old.data_s + (data_s or {}).get(rank, 0.0),
        )


def test_processes_that_go_on_are_left_alone():
    assert Job().run(60) == []


def test_a_silent_process_is_named_within_three_beats_and_alone():
    job = Job()
    assert job.run(10) == []
    found = job.run(3.5, silent=[2])
    assert {(finding.kind, finding.rank) for finding in found} == {("silent", 2)}
    assert found[0].fatal
    assert "process 2 has given no sign of life for 3." in found[0].text
    assert "(step 10, phase step)" in found[0].text


def test_a_process_on_a_host_of_its_own_is_named_with_it():
    job = Job()
    job.beats[2] = dataclasses.replace(job.beats[2], host="node7")
    job.run(5)
    found = job.run(3.5, silent=[2])
    assert "(host node7, step 5, phase step)" in found[0].text


def test_a_process_that_never_came_is_named_after_the_time_to_start():
    job = Job()
    del job.beats[3]
    assert job.run(19) == []
    assert [(finding.kind, finding.rank) for finding in job.run(1.25)][:1] == [("silent", 3)]


def test_a_process_that_ended_by_itself_is_not_silent():
    job = Job()
    job.run(5)
    job.beats[1] = dataclasses.replace(job.beats[1], number=99, phase=DONE)
    assert job.run(8, silent=[1]) == []


def test_the_process_that_the_others_wait_for_is_the_one_that_is_stuck():
    job = Job()
    job.run(5)
    phases = {1: "data"}
    job.run(1, steps=False, phases=phases)
    found = job.run(10.5, steps=False, phases=phases)
    assert {(finding.kind, finding.rank, finding.phase) for finding in found} == {("stuck", 1, "data")}


def test_a_slow_process_is_named_once_and_is_no_reason_to_stop():
    job = Job()
    found = job.run(30, data_s={2: 0.6})
    assert [(finding.kind, finding.rank, finding.fatal) for finding in found] == [("slow", 2, False)]
    assert "% of the time it waits for its own data, the others 0%" in found[0].text


def test_time_in_which_the_watchdog_itself_stood_still_is_nobodys_fault():
    job = Job()
    job.run(10)
    job.now_s += 300.0
    assert job.run(2, silent=range(4)) == []
    assert job.run(10) == []


def test_a_heartbeat_tells_step_phase_and_the_wait_for_data(tmp_path):
    times = iter(range(100))
    phases = Phases(clock=lambda: float(next(times)))
    with Heartbeat(functools.partial(write_beat, tmp_path), 3, interval_s=30.0) as heartbeat:
        assert read_beats(tmp_path) == {3: Beat(rank=3, number=0, step=0, phase="init", data_s=0.0)}
        heartbeat.follow(phases)
        with phases.enter("data"):
            pass
        with phases.enter("step"):
            heartbeat._last = float("-inf")
            heartbeat.at_step(7)
            beat = read_beats(tmp_path)[3]
            assert (beat.step, beat.phase, beat.data_s, beat.number) == (7, "step", 1.0, 1)
            heartbeat.at_step(8)  # too soon after the last one
            assert read_beats(tmp_path)[3] == beat
    assert read_beats(tmp_path)[3].phase == DONE


def test_a_heartbeat_goes_on_by_itself(tmp_path):
    with Heartbeat(functools.partial(write_beat, tmp_path), 0, interval_s=0.01):
        deadline = time.monotonic() + 10
        while read_beats(tmp_path)[0].number < 3:
            assert time.monotonic() < deadline
