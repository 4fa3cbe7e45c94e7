"""Small HLO programs written by hand, in the dialects of the CPU and the TPU compiler."""

# What a TPU program says of a loop is in the loop alone: no known_trip_count.
TPU_LOOP = """\
HloModule jit_step, is_scheduled=true, num_partitions=16

FileNames
1 "/home/someone/model.py"
2 "/home/someone/norm.py"

FunctionNames
1 "layer"

FileLocations
1 {file_name_id=1 function_name_id=1 line=34 end_line=34 column=1 end_column=8}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=8}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (input: f32[8,128]) -> f32[2,128] {
  %input = f32[8,128]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.7 = f32[8,128]{1,0:T(8,128)} all-reduce(%input), channel_id=3, \
replica_groups={{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}, use_global_device_ids=true, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[2,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.7, %zero, %zero), dynamic_slice_sizes={2,128}
}

%start (p: bf16[2,128]) -> bf16[8,128] {
  %p = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=5, \
replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%async_collective_fusion (q: bf16[2,128]) -> bf16[8,128] {
  %q = bf16[2,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[8,128]{1,0:T(8,128)(2,1)} all-gather(%q), channel_id=5, \
replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%next (counter: s32[]) -> s32[] {
  %counter = s32[]{:T(128)} parameter(0)
  %two = s32[]{:T(128)} constant(2)
  ROOT %added = s32[]{:T(128)} add(%two, %counter)
}

%body (state: (s32[], f32[8,128], bf16[2,128], s32[])) -> (s32[], f32[8,128], bf16[2,128], s32[]) {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, /*index=2*/bf16[2,128]{1,0:T(8,128)(2,1)}, s32[]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %w = bf16[2,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %bound = s32[]{:T(128)} get-tuple-element(%state), index=3
  %async-collective-start = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%w), kind=kCustom, calls=%start
  %fusion.2 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%w), kind=kCustom, calls=%async_collective_fusion
  %all-reduce.1 = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)S(1)}) all-reduce(%x, %x), channel_id=1, \
replica_groups=[4,4]<=[16], use_global_device_ids=true, to_apply=%add, \
metadata={op_name="jit(step)/while/body/dot_general" stack_frame_id=2}
  %summed = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%all-reduce.1), index=0
  %fusion.3 = f32[2,128]{1,0:T(8,128)} fusion(%summed), kind=kCustom, calls=%all-reduce-scatter.1
  %i.next = s32[]{:T(128)} fusion(%i), kind=kLoop, calls=%next
  %i.copy = s32[]{:T(128)} copy(%i.next)
  ROOT %out = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, bf16[2,128], s32[]) tuple(%i.copy, %summed, %w, %bound)
}

%condition (s: (s32[], f32[8,128], bf16[2,128], s32[])) -> pred[] {
  %s = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}, bf16[2,128]{1,0:T(8,128)(2,1)}, s32[]) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%s), index=0
  %end = s32[]{:T(128)} get-tuple-element(%s), index=3
  ROOT %lt = pred[]{:T(512)} compare(%at, %end), direction=LT
}

ENTRY %main (x.1: f32[8,128]) -> f32[8,128] {
  %x.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %w.1 = bf16[2,128]{1,0:T(8,128)(2,1)} constant({...})
  %first = s32[]{:T(128)} constant(1)
  %last = s32[]{:T(128)} constant(10)
  %collective-permute-start = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, u32[], u32[]) \
collective-permute-start(%x.1), channel_id=9, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %collective-permute-done = f32[8,128]{1,0:T(8,128)} collective-permute-done(%collective-permute-start)
  %begin = (s32[], f32[8,128]{1,0:T(8,128)}, bf16[2,128], s32[]) tuple(%first, %collective-permute-done, %w.1, %last)
  %while.1 = (s32[], f32[8,128], bf16[2,128], s32[]) while(%begin), condition=%condition, body=%body
  ROOT %done = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""

# One of two slices of 4 chips: it numbers its own 4, and reaches the other slice through the hosts.
TPU_SLICES = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0} parameter(0)
  %all-reduce.1 = f32[8,128]{1,0} all-reduce(%x), channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%add
  %after-all = token[] after-all()
  %send = (f32[8,128]{1,0}, u32[], token[]) send(%all-reduce.1, %after-all), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv = (f32[8,128]{1,0}, u32[], token[]) recv(%after-all), channel_id=3, is_host_transfer=true, \
frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %recv-done = (f32[8,128]{1,0}, token[]) recv-done(%recv), channel_id=3, is_host_transfer=true
}
"""
