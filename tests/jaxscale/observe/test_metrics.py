import io
import json
import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.errors import DataError, MachineError
from jaxscale.observe.metrics import METRICS_FILE, MetricsWriter, format_row, read_metrics


class Terminal(io.StringIO):
    def isatty(self):
        return True


def writer(folder, **options):
    return MetricsWriter(folder, num_steps=10, stream=io.StringIO(), **options)


def lines(folder):
    return (folder / METRICS_FILE).read_text().splitlines()


def test_a_row_is_one_json_object_with_its_step_first(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.write(1, {"loss": np.float32(0.1), "lr": 1e-3, "num_tokens": np.int32(7)})
    assert lines(tmp_path) == ['{"step": 1, "loss": 0.10000000149011612, "lr": 0.001, "num_tokens": 7}']


def test_rows_are_in_the_file_before_the_writer_is_closed(tmp_path):
    metrics = writer(tmp_path)
    metrics.write(1, {"loss": 1.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    metrics.close()
    metrics.close()


def test_jax_scalars_of_any_dtype_are_numbers(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.write(1, {"loss": jnp.float32(0.5), "half": jnp.bfloat16(1.5), "count": jnp.int32(3)})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5, "half": 1.5, "count": 3}]


def test_non_finite_values_are_strings_in_the_file_and_floats_when_read(tmp_path):
    with writer(tmp_path) as metrics:
        metrics.write(1, {"a": math.nan, "b": math.inf, "c": np.float32(-math.inf)})
    assert json.loads(lines(tmp_path)[0]) == {"step": 1, "a": "NaN", "b": "Infinity", "c": "-Infinity"}
    row = read_metrics(tmp_path)[0]
    assert math.isnan(row["a"])
    assert (row["b"], row["c"]) == (math.inf, -math.inf)


@settings(max_examples=50)
@given(st.lists(st.floats(width=32) | st.integers(-(2**40), 2**40), min_size=1, max_size=5))
def test_what_is_written_is_read_back_exactly(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("run")
    with writer(folder) as metrics:
        metrics.write(3, {f"m{i}": value for i, value in enumerate(values)})
    row = read_metrics(folder)[0]
    np.testing.assert_array_equal([row[f"m{i}"] for i in range(len(values))], values)
    assert [type(row[f"m{i}"]) for i in range(len(values))] == [type(value) for value in values]


def test_a_second_writer_appends(tmp_path):
    for step in (1, 2):
        with writer(tmp_path) as metrics:
            metrics.write(step, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_truncate_after_drops_later_rows_only_and_goes_on_appending(tmp_path):
    with writer(tmp_path) as metrics:
        for step in (1, 2, 3, 4):
            metrics.write(step, {"loss": float(step)})
        before = lines(tmp_path)
        assert metrics.truncate_after(2) == 2
        assert lines(tmp_path) == before[:2]
        metrics.write(3, {"loss": 30.0})
    assert read_metrics(tmp_path)[2:] == [{"step": 3, "loss": 30.0}]
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


def test_a_torn_last_line_is_not_read_and_not_appended_to(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    with writer(tmp_path) as metrics:
        metrics.write(2, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1.0}', '{"step": 1.5}', '{"step": 1, "loss": "high"}', ""])
def test_a_malformed_line_is_named(tmp_path, line):
    (tmp_path / METRICS_FILE).write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: got"):
        read_metrics(tmp_path)


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("value", [True, np.ones(2), "high"])
def test_a_metric_is_one_number(tmp_path, value):
    with writer(tmp_path) as metrics, pytest.raises(TypeError, match="'loss'"):
        metrics.write(1, {"loss": value})


@pytest.mark.parametrize("name", ["step", "two words"])
def test_a_metric_has_a_greppable_name_of_its_own(tmp_path, name):
    with writer(tmp_path) as metrics, pytest.raises(ValueError, match=name):
        metrics.write(1, {name: 1.0})


def test_without_a_terminal_each_shown_row_is_one_greppable_line(tmp_path):
    stream = io.StringIO()
    with MetricsWriter(tmp_path, num_steps=10, stream=stream) as metrics:
        metrics.write(1, {"loss": 2.34567891, "pairs_per_s": 231.04})
        metrics.write(2, {"loss": 2.0}, show=False)
        metrics.advance(3)
    assert stream.getvalue() == "step=1 loss=2.3457 pairs_per_s=231.04\n"
    assert len(read_metrics(tmp_path)) == 2


def test_on_a_terminal_there_is_a_bar_and_the_terminal_is_given_back(tmp_path):
    stream = Terminal()
    with pytest.raises(TypeError), MetricsWriter(tmp_path, num_steps=10, stream=stream) as metrics:  # noqa: PT012
        metrics.advance(4)
        metrics.write(5, {"loss": 2.5})
        metrics.write(6, {"loss": None})
    assert "5/10" in stream.getvalue()
    assert "loss=2.5" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_tensorboard_is_imported_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    writer(tmp_path).close()
    with pytest.raises(MachineError, match=r"pip install jaxscale\[tensorboard\]"):
        writer(tmp_path, tensorboard=True)


def test_tensorboard_gets_the_rows_and_forgets_what_a_resumed_run_repeats(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    with writer(tmp_path, tensorboard=True) as metrics:
        metrics.write(7, {"loss": 1.5})
    assert calls == [(str(tmp_path / "tensorboard"), 7), ("loss", 1.5, 7), "closed"]


def test_format_row_keeps_whole_numbers_whole():
    assert format_row({"step": 1234567, "loss": math.nan}) == "step=1234567 loss=nan"
