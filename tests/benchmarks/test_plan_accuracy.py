"""The benchmark of `plan`: what its summary says of rows, and one row made with the TPU compiler."""

import importlib.util

import pytest

from benchmarks.plan_accuracy import Case, measure, page, summary


def row(error: float, *, blind: bool = False, share: float = 0.8, right: int = 2) -> dict:
    return {
        "recipe": "blind_one" if blind else "one",
        "topology": "v5e:2x4",
        "mesh": "data=8",
        "num_slices": 1,
        "grad_accum": 0,
        "blind": blind,
        "predicted_peak_gib": 2.0,
        "compiled_peak_gib": 2.0,
        "peak_error": error,
        "arguments_and_kept": share,
        "flops_error": None,
        "verdicts_right": right,
        "predicted_mib": {"data: all_reduce": 1.0},
        "compiled_mib": {},
        "jax": "1",
        "libtpu": "2",
    }


def test_the_summary_tells_blind_pairs_apart():
    rows = [row(0.01), row(-0.03), row(0.2, share=0.4, right=1), row(-0.5, blind=True, right=1)]
    assert summary(rows) == [
        "peak memory where arguments and kept activations are over half of it (2 of 3 pairs): median error 2.0%, "
        "worst 3.0%",
        "peak memory of all: median error 3.0%, worst 20.0%",
        "verdicts, the limit 10 % above and below the need: 5 of 6 right",
        "blind: peak memory where arguments and kept activations are over half of it (1 of 1 pairs): median error "
        "50.0%, worst 50.0%",
        "blind: peak memory of all: median error 50.0%, worst 50.0%",
        "blind: verdicts, the limit 10 % above and below the need: 1 of 2 right",
    ]
    assert "| blind_one (blind) | v5e:2x4 | data=8 | 1 | 2.00 | 2.00 | -50.0% |" in page(rows)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (the extra tpu)")
def test_a_step_compiled_without_machine_code_gives_both_verdicts():
    found = measure(Case(recipe="gpt2", topology="v5e:2x4", mesh="data=8", grad_accum=4))
    assert found["fits"]
    assert found["predicted_fits"]
    assert found["verdicts_right"] == 2
    assert abs(found["peak_error"]) < 0.1
    # It is the whole step's program: every gradient is added up over all devices.
    assert found["compiled_mib"]["data: all_reduce"] > found["predicted_mib"]["data: all_reduce"]
    assert found["loops_known"]
