"""What XLA's GPU compiler writes: CUDA graphs, and registers of kernels."""

import pytest

from jaxatoms.tools import gpu_dump

ORDER = """000: kCommandBuffer [source | next=005 (1)] 
    001: kCustomKernel   [source       | next=002 (1)] convert grid: [2048, 1, 1] threads: [128, 1, 1]
    002: kCublasLtMatmul [prev=001 (1) | sink        ] CublasLtCmd
003: kWhile [prev=000 (1) | next=006 (1)] 
    004: kCustomKernel [source | sink] compare grid: [1, 1, 1]
    005: kCommandBuffer [source | sink] 
        006: kCustomKernel [source | sink] search grid: [1, 1, 1]
007: kCopy [prev=003 (1) | next=008 (1)] copy
008: kCommandBuffer [prev=007 (1) | sink] 
    009: kCustomKernel [source | sink] add grid: [1, 1, 1]
"""  # noqa: W291
ASSEMBLED = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'reduce' for 'sm_90a'
ptxas info    : Function properties for reduce
    24 bytes stack frame, 20 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size
ptxas info    : Compiling entry function 'add' for 'sm_90a'
ptxas info    : Function properties for add
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers
"""


def test_launches_are_inside_graphs_or_outside():
    assert gpu_dump.count_graphs(ORDER) == gpu_dump.Graphs(graphs=3, inside=4, outside=2)


def test_registers_and_spills_are_read_for_each_kernel():
    reduce, add = gpu_dump.kernels_of(ASSEMBLED)
    assert reduce == gpu_dump.Kernel("reduce", registers=255, spilled=32)
    assert add == gpu_dump.Kernel("add", registers=20, spilled=0)


def test_a_folder_without_the_order_of_launches_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="thunk_sequence"):
        gpu_dump.cuda_graphs(tmp_path)
