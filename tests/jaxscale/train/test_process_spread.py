"""Which process the others wait for: four of them on one clock, each of whose steps ends when the last has come."""

import pytest

from jaxscale.observe.phases import Phases
from jaxscale.train.coordination import Coordination
from jaxscale.train.process_spread import OwnTime, ProcessSpread, spread_of
from tests.jaxscale.train.dict_service import Service

NUM = 4


class Process:
    """A process with a clock of its own, which waits in a step until all are there."""

    def __init__(self, job, rank, data_s):
        self.now = 0.0
        self.phases = Phases(first="idle", clock=lambda: self.now)
        self.spread = ProcessSpread(self.phases, job, rank=rank, num_processes=NUM)
        self.data_s = data_s

    def come_to(self, step, logged):
        with self.phases.enter("data"):
            self.now += self.data_s
        if logged:
            self.spread.tell(step)

    def wait_until(self, at_s):
        with self.phases.enter("step"):
            self.now = at_s


def run(data_s, num_steps=9, every=3):
    service = Service()
    job = Coordination(service)
    processes = [Process(job, rank, data_s[rank]) for rank in range(NUM)]
    rows = {}
    for step in range(1, num_steps + 1):
        logged = step == 1 or step % every == 0
        for process in processes:
            process.come_to(step, logged)
        last = max(process.now for process in processes)
        for process in processes:
            process.wait_until(last + 1.0)
        if logged:
            told = [process.spread.row(step) for process in reversed(processes)]
            assert told[:-1] == [{}] * (NUM - 1)
            rows[step] = told[-1]
    assert service.values == {}
    return rows


def test_the_last_to_come_to_a_step_is_named_though_all_steps_take_equally_long():
    rows = run({0: 0.1, 1: 0.2, 2: 0.7, 3: 0.1})
    assert rows.keys() == {1, 3, 6, 9}
    for row in rows.values():
        assert row == {"step_time_spread_s": pytest.approx(0.6), "slowest_process": 2}


def test_a_row_of_which_one_has_not_told_says_nothing():
    job = Coordination(Service())
    first, second = (Process(job, rank, 0.1) for rank in range(2))
    first.come_to(1, logged=True)
    second.come_to(1, logged=True)
    assert first.spread.row(1) == {}  # two of four


def test_after_a_rollback_the_same_step_is_told_anew():
    job = Coordination(Service())
    processes = [Process(job, rank, 0.1 * rank) for rank in range(NUM)]
    for process in processes:
        process.come_to(4, logged=True)
        with process.phases.enter("restore"):
            process.now += 50.0
        process.spread.begin(2)
        process.come_to(3, logged=False)
        process.come_to(4, logged=True)
    assert processes[0].spread.row(4) == {"step_time_spread_s": pytest.approx(0.3), "slowest_process": 3}


def test_own_time_is_waiting_for_data_and_work_but_no_waiting_in_a_step():
    now, thread = 0.0, 0.0
    own = OwnTime(thread_s=lambda: thread)
    for phase, wall_s, busy_s in [
        ("data", 0.3, 0.0),
        ("step", 5.0, 0.02),
        ("idle", 0.1, 0.1),
        ("compile", 9.0, 9.0),
        ("evaluate", 9.0, 9.0),
        ("checkpoint", 9.0, 9.0),
        ("idle", 0.0, 0.0),
    ]:
        own(phase, now)
        now, thread = now + wall_s, thread + busy_s
    own("idle", now)
    assert own.total_s == pytest.approx(0.3 + 0.02 + 0.1)


def test_a_process_that_is_alone_tells_nothing():
    alone = ProcessSpread(Phases(), None, rank=0, num_processes=1)
    alone.tell(1)
    assert alone.row(1) == {}


def test_of_equal_processes_the_first_is_named():
    assert spread_of({2: 0.5, 1: 0.5}) == {"step_time_spread_s": 0.0, "slowest_process": 1}
