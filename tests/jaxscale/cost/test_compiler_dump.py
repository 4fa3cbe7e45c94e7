"""Reading the TPU compiler's dump: what is needed, what fills the memory, and which line of Python made it."""

import pytest

from jaxscale.cost.compiler_dump import (
    Buffer,
    allocated_bytes,
    available_bytes,
    dumped_text,
    is_complete,
    needed_bytes,
    peak_buffers,
)

PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

FileNames
1 "/home/someone/model.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=9 end_line=9 column=1 end_column=8}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

ENTRY %main (param.1: f32[64,64]) -> f32[64,64] {
  %param.1 = f32[64,64]{1,0:T(8,128)} parameter(0), metadata={op_name="state[\\'params\\'][\\'table\\']"}
  %pair = (bf16[64,64]{1,0}, s32[]) custom-call(%param.1), metadata={op_name="jit(step)/sort" stack_frame_id=1}
  ROOT %fusion.2 = f32[64,64]{1,0:T(8,128)} fusion(%pair), metadata={op_name="jit(step)/dot_general" stack_frame_id=1}
}
"""
LIVE_RANGES = """\
HloLiveRange (max 3):
  BufferLiveRange:
    param.1{}:0-3
  Live ranges at 2 (peak):
    fusion.2{}: 32768 bytes (cumulative: 32768 bytes)
    param.1{}: 16384 bytes (cumulative: 49152 bytes)
    pair{0}: 8192 bytes (cumulative: 57344 bytes)
    gone{}: 512 bytes (cumulative: 57856 bytes)
  Stack trace breakdown for peak usage: 57 856 bytes
    main (100.0%, total: 57 856 bytes)
"""

USAGE = """\
Memory Space: vmem (color=1)
Total bytes: 4096 (4.0KiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list

Memory Space: default (color=0)
Total bytes: 57856 (56.5KiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
"""


@pytest.fixture
def folder(tmp_path):
    stem = "module_0000.jit_step.cl_1"
    (tmp_path / f"{stem}.after_optimizations.txt").write_text(PROGRAM)
    (tmp_path / f"{stem}.after_optimizations_before_buffer_assignment.txt").write_text("something else")
    (tmp_path / f"{stem}.after_optimizations-live-range.txt").write_text(LIVE_RANGES)
    report = tmp_path / f"{stem}.after_optimizations-memory-usage-report.txt"
    report.write_text(USAGE)
    return tmp_path


def test_the_largest_buffers(folder):
    assert dumped_text(folder) == PROGRAM
    assert needed_bytes(folder) == 57856
    found = peak_buffers(folder, most=10)
    assert found == (
        Buffer(num_bytes=32768, shape="f32[64,64]", op="jit(step)/dot_general", source="model.py:9"),
        Buffer(num_bytes=16384, shape="f32[64,64]", op="state['params']['table']", source=""),
        Buffer(num_bytes=8192, shape="bf16[64,64]", op="jit(step)/sort", source="model.py:9"),
        Buffer(num_bytes=512, shape="", op="", source=""),
    )
    assert peak_buffers(folder, most=2) == found[:2]


def test_no_dump_or_two_are_refused(folder, tmp_path):
    (tmp_path / "module_0001.other.after_optimizations.txt").write_text(PROGRAM)
    with pytest.raises(FileNotFoundError, match="has 2 files"):
        dumped_text(folder)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("memory required for HLO temporaries (22.50G) exceeds available HBM (15.75G). HLO module: f", 15.75 * 2**30),
        ("Ran out of memory in memory space hbm. Used 29.93G of 15.48G hbm. Exceeded by 14G", round(15.48 * 2**30)),
        ("RESOURCE_EXHAUSTED: something else", None),
    ],
)
def test_what_a_device_has(message, expected):
    assert available_bytes(message) == expected


def test_what_is_allocated_in_the_main_memory(folder):
    lines = """\
allocation 0: size 64, color 8, page 0, thread-local:
allocation 1: size 100, page 0, parameter 0, shape |f32[25]| at ShapeIndex {}:
allocation 2: size 200, page 0, parameter 1, shape |f32[50]| at ShapeIndex {}, maybe-live-out:
allocation 3: size 512, page 0, maybe-live-out:
allocation 4: size 3000, page 0, preallocated-temp:
 value: <17 fusion.2 @0> (size=3000,offset=0): f32[750]
allocation 5: size 4000, color 1, page 0, preallocated-temp:
"""
    (folder / "module_0000.jit_step.cl_1.after_optimizations-buffer-assignment.txt").write_text(lines)
    assert allocated_bytes(folder) == {"arguments": 300, "outputs": 512, "temporaries": 3000}


def test_a_program_is_complete_when_its_memory_is_told(folder, tmp_path):
    assert is_complete(folder)
    assert not is_complete(tmp_path / "empty")
