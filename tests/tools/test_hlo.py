"""What is read off the text of a compiled program."""

from jaxatoms.tools import hlo

COLLECTIVES = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: f32[512,512]) -> s32[16] {
  %x = f32[512,512]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[512,512]{1,0:T(8,128)} all-reduce(%x), channel_id=1, to_apply=%add
  %ar = (f32[10]{0}, bf16[4,2]{1,0}) all-reduce-start(%a, %b), channel_id=2
  %y = f32[512,512]{1,0} negate(%x)
  %z = f32[512,512]{1,0} negate(%y)
  %v = f32[512,512]{1,0} bitcast(%z)
  %done = f32[10]{0} all-reduce-done(%ar)
  %waited = f32[7]{0} all-reduce-start(%v), channel_id=3, backend_config={"collective_backend_config":{"is_sync":true}}
  %w = f32[512,512]{1,0} negate(%z)
  %over = f32[7]{0} all-reduce-done(%waited)
  ROOT %gather = s32[16]{0} all-gather(%c), dimensions={0}
}
"""
PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_computation.1 (param_0: f32[64,8]) -> f32[64,8] {
  %param_0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  ROOT %neg = f32[64,8]{1,0:T(8,128)} negate(%param_0)
}

%body.2 (state: (f32[64,8])) -> (f32[64,8]) {
  %state = (f32[64,8]{1,0:T(8,128)}) parameter(0)
  %x = f32[64,8]{1,0:T(8,128)} get-tuple-element(%state), index=0
  %inner = f32[64,8]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused_computation.1
  ROOT %again = (f32[64,8]{1,0:T(8,128)}) tuple(%inner)
}

ENTRY %main (w: f32[64,8], i: s32[4]) -> f32[64,8] {
  %w = f32[64,8]{1,0:T(8,128)} parameter(0)
  %i = s32[4]{0:T(128)} parameter(1)
  %start = ((f32[64,8]{1,0:T(8,128)}), f32[16,8]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%w), slice={[0:16], [0:8]}
  %piece = f32[16,8]{1,0:T(8,128)S(1)} slice-done(%start)
  %near = f32[16,8]{1,0:T(8,128)S(1)} fusion(%piece), kind=kLoop, calls=%fused_computation.1
  %joined = f32[16,8]{1,0:T(8,128)S(1)} custom-call(%near), custom_call_target="ConcatBitcast"
  %far = bf16[64,8]{1,0:T(8,128)(2,1)} fusion(%w, %joined), kind=kOutput, calls=%fused_computation.1
  %t = (f32[64,8]{1,0:T(8,128)}) tuple(%w)
  %loop = (f32[64,8]{1,0:T(8,128)}) while(%t), condition=%cond, body=%body.2
  ROOT %out = f32[64,8]{1,0:T(8,128)} get-tuple-element(%loop), index=0
}
"""


IN_PLACE = """HloModule jit_step

%fused_computation.1 (param_0: f32[64,8], param_1: f32[32,8]) -> f32[64,8] {
  %param_0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  %param_1 = f32[32,8]{1,0:T(8,128)} parameter(1)
  %first = f32[4,8]{1,0:T(8,128)} slice(%param_1), slice={[0:4], [0:8]}
  %second = f32[4,8]{1,0:T(8,128)} slice(%param_1), slice={[4:8], [0:8]}
  %sum = f32[4,8]{1,0:T(8,128)} add(%first, %second)
  %zero = u32[] constant(0)
  ROOT %update = f32[64,8]{1,0:T(8,128)} dynamic-update-slice(%param_0, %sum, %zero, /*index=3*/%zero)
}

ENTRY %main (w: f32[64,8], v: f32[32,8]) -> f32[64,8] {
  %w = f32[64,8]{1,0:T(8,128)} parameter(0)
  %v = f32[32,8]{1,0:T(8,128)} parameter(1)
  ROOT %out = f32[64,8]{1,0:T(8,128)} fusion(%w, %v), kind=kLoop, calls=%fused_computation.1
}
"""


def _main_memory(program: str) -> int:
    return sum(hlo.bytes_by_part(hlo.operations(program)).values())


def test_of_arrays_read_or_changed_in_part_the_parts_count():
    assert _main_memory(IN_PLACE) == 4 * 8 * (4 + 4 + 4)


BEHIND_A_LAYOUT = """HloModule jit_step

%fused_computation.2 (param_0.1: f32[64,8]) -> f32[64,8] {
  %param_0.1 = f32[64,8]{1,0:T(8,128)} parameter(0)
  ROOT %copy = f32[64,8]{0,1:T(8,128)} copy(%param_0.1)
}

%fused_computation.1 (param_0: f32[64,8], param_1: bf16[64,8]) -> f32[4,8] {
  %param_0 = f32[64,8]{1,0:T(8,128)} parameter(0)
  %param_1 = bf16[64,8]{1,0:T(8,128)} parameter(1)
  %turned = f32[64,8]{0,1:T(8,128)} fusion(%param_0), kind=kLoop, calls=%fused_computation.2
  %some = f32[4,8]{0,1:T(8,128)} slice(%turned), slice={[0:4], [0:8]}
  %wide = f32[64,8]{1,0:T(8,128)} convert(%param_1)
  %others = f32[4,8]{1,0:T(8,128)} slice(%wide), slice={[8:12], [0:8]}
  %all = f32[8]{0:T(8,128)} reduce(%wide), dimensions={0}
  %again = f32[4,8]{1,0:T(8,128)} broadcast(%all), dimensions={1}
  %both = f32[4,8]{1,0:T(8,128)} add(%others, %again)
  ROOT %sum = f32[4,8]{1,0:T(8,128)} add(%some, %both)
}

ENTRY %main (w: f32[64,8], v: bf16[64,8]) -> f32[4,8] {
  %w = f32[64,8]{1,0:T(8,128)} parameter(0)
  %v = bf16[64,8]{1,0:T(8,128)} parameter(1)
  ROOT %out = f32[4,8]{1,0:T(8,128)} fusion(%w, %v), kind=kLoop, calls=%fused_computation.1
}
"""


def test_slices_behind_a_change_of_layout_count_as_slices_unless_all_is_read_as_well():
    assert _main_memory(BEHIND_A_LAYOUT) == 4 * 4 * 8 + 2 * 64 * 8 + 4 * 4 * 8


BEHIND_A_SUM = """HloModule jit_step

%fused_computation (param_0: f32[5,64,8], param_1: bf16[5,64,8], param_2: f32[64,8]) -> (f32[64,8], f32[64,8]) {
  %param_0 = f32[5,64,8]{2,1,0} parameter(0)
  %param_1 = bf16[5,64,8]{2,1,0} parameter(1)
  %param_2 = f32[64,8]{1,0} parameter(2)
  %wide = f32[5,64,8]{2,1,0} convert(%param_1)
  %sums = f32[5,64,8]{2,1,0} add(%param_0, %wide)
  %one = f32[1,64,8]{2,1,0} slice(%sums), slice={[2:3], [0:64], [0:8]}
  %rows = f32[64,8]{1,0} bitcast(%one)
  %more = f32[64,8]{1,0} add(%rows, %param_2)
  ROOT %all = (f32[64,8]{1,0}, f32[64,8]{1,0}) tuple(%rows, %more)
}

ENTRY %main (w: f32[5,64,8], v: bf16[5,64,8], u: f32[64,8]) -> (f32[64,8], f32[64,8]) {
  %w = f32[5,64,8]{2,1,0} parameter(0)
  %v = bf16[5,64,8]{2,1,0} parameter(1)
  %u = f32[64,8]{1,0} parameter(2)
  ROOT %out = (f32[64,8]{1,0}, f32[64,8]{1,0}) fusion(%w, %v, %u), kind=kLoop, calls=%fused_computation
}
"""


def test_of_what_a_slice_is_taken_from_only_that_part_is_read_however_often_it_is_used():
    """A slice of a sum needs that part of both terms; two uses of a slice read it once."""
    assert _main_memory(BEHIND_A_SUM) == 64 * 8 * (4 + 2 + 4) + 2 * 64 * 8 * 4


PRODUCTS = """HloModule jit_step

%fused (param_0: f32[30,8], param_1: f32[8,4]) -> f32[30,4] {
  %param_0 = f32[30,8]{1,0} parameter(0)
  %param_1 = f32[8,4]{1,0} parameter(1)
  ROOT %dot.1 = f32[30,4]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[30,8], w: f32[8,4]) -> f32[2,15,4] {
  %x = f32[30,8]{1,0} parameter(0)
  %w = f32[8,4]{1,0} parameter(1)
  %moved = (f32[30,8]{1,0:S(1)}, f32[30,8]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[30,8]{1,0:S(1)} copy-done(%moved)
  %y = f32[30,4]{1,0} fusion(%near, %w), kind=kCustom, calls=%fused, metadata={op_name="jit(update)/jvp(interaction_block)/quad_interaction/dot_general"}
  %z = (f32[30,4]{1,0}, s8[64]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", metadata={op_name="jit(update)/transpose(jvp(output_block))/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %g = f32[30,4]{1,0} get-tuple-element(%z), index=0
  ROOT %out = f32[30,4]{1,0} add(%y, %g)
}
"""  # noqa: E501


def test_operations_know_their_products_their_part_and_their_direction():
    found = {operation.name: operation for operation in hlo.operations(PRODUCTS)}
    quad, out = found["y"], found["z"]
    assert quad.flops == out.flops == 2 * 30 * 8 * 4
    assert quad.bytes == 4 * (8 * 4 + 30 * 4)
    assert (quad.part, quad.backward) == ("quadruplets", False) and (out.part, out.backward) == ("output blocks", True)
    assert found["out"].part == hlo.OTHER
    assert found["moved"].part == "quadruplets", "copies belong to what reads them"
    assert hlo.flops_by_part(found.values())["quadruplets"] == quad.flops
    assert hlo.bytes_by_part(found.values())["quadruplets"] == quad.bytes + 4 * 30 * 8


def test_collectives_have_the_bytes_of_their_results_and_the_launches_beside_them():
    assert hlo.collectives(COLLECTIVES) == [
        ("all-reduce", 4 * 512 * 512, 0), ("all-reduce", 40 + 16, 2), ("all-reduce", 28, 0), ("all-gather", 64, 0),
    ]  # fmt: skip


def test_main_memory_counts_pieces_of_copies_whole_arrays_of_fusions_and_bodies_of_loops():
    piece = 16 * 8 * 4  # read by the copy; it is written to on-chip memory, where it is used
    far = 64 * 8 * 4 + 64 * 8 * 2  # one array read, one written
    body = 2 * 64 * 8 * 4
    assert _main_memory(PROGRAM) == piece + far + body
    known = PROGRAM.replace("body=%body.2", 'body=%body.2, backend_config={"known_trip_count":{"n":"3"}}')
    assert _main_memory(known) == piece + far + 3 * body, "a loop that says how often it runs"


LIBRARY = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: bf16[64,8], w: bf16[8,32]) -> f32[64,32] {
  %x = bf16[64,8]{1,0} parameter(0)
  %w = bf16[8,32]{1,0} parameter(1)
  %call = (f32[64,32]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  ROOT %out = f32[64,32]{1,0} get-tuple-element(%call), index=0
}
"""


def test_a_product_by_cublaslt_counts_and_its_workspace_does_not():
    (call,) = [operation for operation in hlo.operations(LIBRARY) if operation.kind == "custom-call"]
    assert call.flops == 2 * 64 * 8 * 32
    assert call.bytes == 2 * 64 * 8 + 2 * 8 * 32 + 4 * 64 * 32


def _call(name: str, dtype: str, rows: int, precision: str) -> str:
    asked = f'"precision_config":{{"operand_precision":["{precision}","{precision}"],"algorithm":"ALG_UNSET"}}'
    return (
        f"  %{name} = (f32[{rows},32]{{1,0}}, s8[4194304]{{0}}) custom-call(%{dtype}, %w), "
        'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
        f'{{"lhs_contracting_dimensions":["1"]}},{asked}}}}}\n'
    )


PRECISIONS = (
    """HloModule jit_step

%fused (param_0: f32[8,4], param_1: f32[4,2]) -> f32[8,2] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %param_1 = f32[4,2]{1,0} parameter(1)
  %one = f32[8,2]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, operand_precision={highest,highest}
  %two = f32[8,2]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}
  ROOT %sum = f32[8,2]{1,0} add(%one, %two)
}

ENTRY %main (bf16: bf16[64,8], f32: f32[16,8], w: f32[8,32]) -> f32[8,2] {
  %bf16 = bf16[64,8]{1,0} parameter(0)
  %f32 = f32[16,8]{1,0} parameter(1)
  %w = f32[8,32]{1,0} parameter(2)
"""
    + _call("a", "bf16", 64, "DEFAULT")
    + _call("b", "f32", 16, "HIGHEST")
    + _call("c", "f32", 16, "HIGH")
    + _call("d", "f32", 16, "DEFAULT")
    + """  ROOT %f = f32[8,2]{1,0} fusion(%f32, %w), kind=kLoop, calls=%fused
}
"""
)


def test_products_are_counted_by_the_precision_that_a_gpu_gives_them():
    launched = hlo.launches(PRECISIONS)
    assert [launch.name for launch in launched] == ["a", "b", "c", "d", "f"], "what only names arrays is no launch"
    one, small = 2 * 16 * 8 * 32, 2 * 8 * 4 * 2
    assert hlo.products_by_precision(launched) == {
        "bfloat16": (2 * 64 * 8 * 32, 1), "tf32": (2 * one + small, 3), "float32": (one + small, 2),
    }  # fmt: skip
    assert launched[-1].products == {"float32": small, "tf32": small}


KERNELS = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: bf16[5,10,4], w: bf16[5,4,4]) -> bf16[5,10,4] {
  %x = bf16[5,10,4]{2,1,0} parameter(0)
  %w = bf16[5,4,4]{2,1,0} parameter(1)
  %new = bf16[5,10,4]{2,1,0} custom-call(), custom_call_target="AllocateBuffer", metadata={op_name="jit(step)/empty"}
  %call = (bf16[5,10,4]{2,1,0}) custom-call(%x, %new, %w, %w), custom_call_target="mosaic_gpu_v2", output_to_operand_aliasing={{0}: (1, {})}, metadata={op_name="jit(step)/output_block/residual_pair_forward/mpmd_map"}, backend_config={module = "ML()"}
  %other = (bf16[5,10,4]{2,1,0}) custom-call(%x), custom_call_target="mosaic_gpu_v2", metadata={op_name="jit(step)/x"}
  ROOT %out = bf16[5,10,4]{2,1,0} get-tuple-element(%call), index=0
}
"""  # noqa: E501


def test_kernels_of_mosaic_gpu_have_their_traffic_and_the_products_of_their_names():
    kernel, other = hlo.launches(KERNELS)
    array, weight = 2 * 5 * 10 * 4, 2 * 5 * 4 * 4
    assert kernel.bytes == 2 * array + 2 * weight and kernel.part == "output blocks"
    assert kernel.products == {"bfloat16": 2 * 2 * 5 * 10 * 4 * 4}
    assert other.bytes == 2 * array and other.flops == 0


def test_a_fusion_that_only_converts_reads_what_it_converts():
    text = """HloModule jit_step, is_scheduled=true

%wrapped (param_0: f32[64,8]) -> bf16[64,8] {
  %param_0 = f32[64,8]{1,0} parameter(0)
  ROOT %convert = bf16[64,8]{1,0} convert(%param_0)
}

ENTRY %main (w: f32[64,8]) -> bf16[64,8] {
  %w = f32[64,8]{1,0} parameter(0)
  ROOT %out = bf16[64,8]{1,0} fusion(%w), kind=kLoop, calls=%wrapped
}
"""
    (launch,) = hlo.launches(text)
    assert launch.bytes == (4 + 2) * 64 * 8
