"""Reading HLO: shapes with layouts, tuples, constants, what is called, and the Python lines behind it."""

import pytest

from jaxscale.sharding.hlo import Array, parse_instruction, parse_program
from tests.jaxscale.sharding.hlo_texts import TPU_LOOP


def test_a_tuple_with_layouts_and_comments():
    line = (
        "  %s = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, /*index=2*/bf16[2,128]{1,0:T(8,128)(2,1)}) "
        'custom-call(%a, f32[3]{0} %b), custom_call_target="x", metadata={op_name="jit(f)/g(h)"}'
    )
    made = parse_instruction(line)
    assert made.arrays == (Array("s32", ()), Array("f32", (8, 128)), Array("bf16", (2, 128)))
    assert made.num_bytes == 4 + 4096 + 512
    assert (made.name, made.opcode, made.operands) == ("s", "custom-call", ("a", "b"))
    assert made.attribute(r'op_name="([^"]*)"') == "jit(f)/g(h)"


@pytest.mark.parametrize(
    ("dtype", "num_bytes"),
    [("pred", 10), ("s4", 5), ("u8", 10), ("f8e4m3fn", 10), ("bf16", 20), ("f32", 40), ("c128", 160), ("token", 0)],
)
def test_bytes_of_ten_values(dtype, num_bytes):
    assert Array(dtype, (2, 5)).num_bytes == num_bytes


def test_a_program():
    program = parse_program(TPU_LOOP)
    assert program.entry == "main"
    assert program.num_partitions == 16
    assert program.computations["next"].root.name == "added"
    main = program.computations["main"]
    loop = main.instructions["while.1"]
    assert loop.called == {"condition": "condition", "body": "body"}
    assert [operand.name for operand in main.operands_of(loop)] == ["begin"]
    assert main.instructions["last"].argument == "10"


def test_the_line_of_python_is_the_innermost_frame():
    program = parse_program(TPU_LOOP)
    body = program.computations["body"].instructions
    assert program.source_of(body["all-reduce.1"]) == "norm.py:7"
    assert program.source_of(body["fusion.3"]) == ""
    older = parse_instruction(
        '  %x = f32[] add(%a, %a), metadata={op_name="f" source_file="/home/m.py" source_line=12}'
    )
    assert program.source_of(older) == "m.py:12"


def test_branches_are_called():
    made = parse_instruction("  %c = f32[] conditional(%i, %a, %b), branch_computations={%left.1, %right.2}")
    assert set(made.called.values()) == {"left.1", "right.2"}


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse_program("func.func @main() { return }")
    with pytest.raises(ValueError, match="no HLO instruction"):
        parse_instruction("}")


KERNEL = """HloModule jit_f, num_partitions=2

ENTRY %main (x: bf16[4,8]) -> f32[4,8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %kernel.1 = (f32[4,8]{1,0}, f32[4,128]{1,0}) custom-call(%x), frontend_attributes={kernel_metadata={
"metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(f)/pallas_call" stack_frame_id=3}
  ROOT %made = f32[4,8]{1,0} get-tuple-element(%kernel.1), index=0
}
"""


def test_attributes_of_several_lines_belong_to_their_instruction():
    main = parse_program(KERNEL).computations["main"]
    assert list(main.instructions) == ["x", "kernel.1", "made"]
    kernel = main.instructions["kernel.1"]
    assert (kernel.opcode, kernel.op_name) == ("custom-call", "jit(f)/pallas_call")
    assert kernel.arrays == (Array("f32", (4, 8)), Array("f32", (4, 128)))
    assert main.root.name == "made"


def test_a_computation_of_a_thread_of_its_own_ends_behind_its_brace():
    program = parse_program(
        "\n".join(
            [
                "HloModule m",
                "",
                "%async_computation (p: f32[2]) -> f32[2] {",
                "  ROOT %p = f32[2]{0} parameter(0)",
                '}, execution_thread="main"',
                "",
                "ENTRY %main (x: f32[2]) -> f32[2] {",
                "  ROOT %x = f32[2]{0} parameter(0)",
                "}",
            ]
        )
    )
    assert set(program.computations) == {"async_computation", "main"}
