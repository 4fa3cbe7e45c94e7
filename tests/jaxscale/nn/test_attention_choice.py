"""The table of what each kernel needs: every need by a case that fails it alone, and what a setting makes of it."""

import dataclasses

import pytest

from jaxscale.errors import UsageError
from jaxscale.nn.attention_choice import Case, choose, has_kernel, reason_against, summary

# What every kernel can compute, each on its platform.
CASE = Case(
    platform="tpu",
    dtype="bfloat16",
    query_shape=(8, 512, 4, 128),
    key_shape=(8, 512, 2, 128),
    has_bias=False,
    has_dropout=False,
    has_groups=False,
    causal=True,
    has_rule=True,
    misplaced=None,
)
OF_KERNEL = {
    "blockwise": {"platform": "cpu"},
    "recomputed": {"platform": "cpu", "causal": False},
    "splash": {"platform": "tpu"},
    "cudnn": {"platform": "cuda"},
}
FUSED = [({"platform": "rocm"}, "not on rocm"), ({"dtype": "float32"}, "float32")]
ANY = [
    ({"has_bias": True}, r"a bias \(relative positions\)"),
    ({"has_dropout": True}, "dropout of the weights"),
    ({"has_rule": False}, "an array, not a rule"),
    ({"misplaced": "positions are split over sequence"}, "positions are split over sequence"),
]
OF_ONE = [
    ("blockwise", {"query_shape": (8, 128, 4, 64), "key_shape": (8, 128, 2, 64)}, "128 positions are not several"),
    ("blockwise", {"query_shape": (8, 500, 4, 64), "key_shape": (8, 500, 2, 64)}, "500 positions are not several"),
    ("blockwise", {"key_shape": (8, 256, 2, 128)}, "512 positions that read 256 are not several"),
    ("recomputed", {"causal": True, "query_shape": (8, 128, 4, 64), "key_shape": (8, 128, 2, 64)}, "for blocks of"),
    ("splash", {"query_shape": (8, 512, 4, 96), "key_shape": (8, 512, 2, 96)}, "heads are 96 wide"),
    ("splash", {"query_shape": (8, 500, 4, 128), "key_shape": (8, 500, 2, 128)}, "500 positions are no multiple"),
    ("splash", {"key_shape": (8, 100, 2, 128)}, "512 positions that read 100"),
    ("splash", {"dtype": "float16"}, "compute_dtype is float16"),
    ("cudnn", {"has_groups": True}, "no documents that share rows"),
    ("cudnn", {"query_shape": (8, 512, 4, 100)}, "heads are 100 wide"),
    ("cudnn", {"query_shape": (8, 512, 4, 136)}, "heads are 136 wide"),
]
REFUSED = [
    *((kernel, changes, reason) for kernel in OF_KERNEL for changes, reason in ANY),
    *((kernel, changes, reason) for kernel in ("splash", "cudnn") for changes, reason in FUSED),
    *OF_ONE,
]


def case_for(kernel, **changes):
    return dataclasses.replace(CASE, **(OF_KERNEL[kernel] | changes))


@pytest.mark.parametrize("kernel", OF_KERNEL)
def test_each_kernel_computes_its_case_on_its_platform(kernel):
    case = case_for(kernel)
    assert reason_against(kernel, case) is None
    assert {choose(setting, case).kernel for setting in ("auto", kernel)} == {kernel}
    assert choose("plain", case).kernel == "plain"


@pytest.mark.parametrize(("kernel", "changes", "reason"), REFUSED)
def test_a_need_that_is_not_met_leaves_the_plain_attention_and_says_why(kernel, changes, reason):
    case = case_for(kernel, **changes)
    with pytest.raises(UsageError, match=f"attention={kernel} can't compute this job's attention: .*{reason}.*auto"):
        choose(kernel, case)
    if "platform" in changes:
        assert choose("auto", case).reason == "there is no kernel for rocm"
    else:
        choice = choose("auto", case)
        assert choice.kernel == "plain"
        assert reason_against(kernel, case) in choice.reason


@pytest.mark.parametrize(
    ("kernel", "changes"),
    [
        ("blockwise", {"has_groups": True, "dtype": "float32"}),
        ("recomputed", {"has_groups": True, "query_shape": (8, 77, 4, 64), "dtype": "float32"}),
        ("splash", {"has_groups": True}),
        ("cudnn", {"query_shape": (8, 500, 4, 64), "key_shape": (8, 77, 4, 64), "dtype": "float16"}),
    ],
)
def test_what_one_kernel_can_do_besides(kernel, changes):
    assert reason_against(kernel, case_for(kernel, **changes)) is None


def test_on_cpu_what_has_nothing_to_leave_out_is_computed_again_in_the_backward_pass():
    case = case_for("blockwise", causal=False)
    assert choose("auto", case).kernel == "recomputed"
    with pytest.raises(UsageError, match=r"attention=blockwise can't .*every position reads to its right"):
        choose("blockwise", case)
    neither = choose("auto", dataclasses.replace(case, has_bias=True))
    assert neither.kernel == "plain"
    assert all(f"not {kernel}: " in neither.reason for kernel in ("blockwise", "recomputed"))


def test_a_program_is_looked_at_only_where_it_may_change():
    assert not has_kernel("auto", "rocm")
    assert not has_kernel("plain", "tpu")
    assert all(has_kernel(*asked) for asked in (("auto", "tpu"), ("auto", "cuda"), ("splash", "cpu")))


def test_equal_choices_are_counted():
    float32 = choose("auto", case_for("splash", dtype="float32"))
    assert summary([choose("auto", CASE), float32, choose("auto", CASE)]) == (
        "splash x 2 (a kernel of tpu)",
        "plain x 1 (not splash: it multiplies in bfloat16, compute_dtype is float32)",
    )
