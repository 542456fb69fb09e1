"""What is read from machine code: loops, and that the kernels keep what they promise of them."""

from __future__ import annotations

import shutil

import pytest
import torch

from benchmarks import cuda_static
from overlap_tool.kernels import cuda, nvrtc

CODE = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDS.128 R4, [R2] ;
        /*0020*/               @P1 BRA `(.L_x_2) ;
.L_x_1:
        /*0030*/                   FFMA R8, R4, R5, R8 ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/              @!PT LDS RZ, [RZ] ;
        /*0060*/                   LDG.E R6, desc[UR4][R2.64] ;
.L_x_2:
        /*0070*/                   FFMA R9, R4, R5.reuse, R9 ;
        /*0080*/                   FFMA R10, R4, R5, R10 ;
        /*0090*/                   BRA.U UP0, `(.L_x_0) ;
        /*00a0*/                   EXIT ;
"""


def test_a_loop_is_counted_without_those_inside_of_it() -> None:
    assert cuda_static.inner_loop(CODE) == cuda_static.Loop(
        instructions=7, multiply_adds=2, loads=2, inside=2
    )
    assert cuda_static.inner_loop(CODE, shortest=True) == cuda_static.Loop(5, 2, 1, 0)


def test_warps_are_those_of_whole_blocks() -> None:
    h100 = cuda_static.GPUS[1]
    assert cuda_static.warps(h100, threads=128, registers=128, shared=30 << 10) == 16
    assert cuda_static.warps(h100, threads=192, registers=167, shared=34 << 10) == 12
    assert cuda_static.warps(h100, threads=32, registers=128, shared=15 << 10) == 14


MAIN = {
    **{
        cuda.tiled_name(tile, torch.float32, True, count): (tile.threads, 16 * tile.high * tile.wide)
        for tile in cuda_static.MAIN
        for count in (1, 4)
    },
    **{
        cuda.tiled_name(tile, torch.float32, True, squares=squares, point=True): (
            tile.threads,
            16 * tile.high * tile.wide,
        )
        for tile in cuda_static.MAIN
        for squares in (False, True)
    },
    **{
        cuda_static.of_few_inputs(inputs, outputs, side, stride): (128, side * inputs * 64)
        for inputs, outputs, side, stride in ((3, 192, 5, 2), (1, 64, 3, 1))
    },
}
"""By name: threads, and multiply-adds of a thread in the inner loop."""


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        pytest.param(name, gpu, marks=[] if gpu.target == "sm_90" else pytest.mark.slow)
        for name in MAIN
        for gpu in cuda_static.GPUS
    ],
)
def test_the_main_tiles_spend_their_instructions_on_multiply_adds(name: str, gpu: cuda_static.Gpu) -> None:
    try:
        tool = cuda_static.nvdisasm()
    except SystemExit as error:
        pytest.skip(str(error))
    assert shutil.which(tool)
    threads, multiply_adds = MAIN[name]
    compiled = nvrtc.compile_kernel(cuda.source(), name, gpu.target, ("--ptxas-options=-v",))
    registers, shared, spilled = cuda_static._resources(compiled.log)
    loop = cuda_static.inner_loop(cuda_static._machine_code(tool, compiled.code))
    assert loop.multiply_adds == multiply_adds
    assert loop.instructions <= 1.25 * loop.multiply_adds
    assert gpu.cycles * loop.multiply_adds / loop.instructions >= 0.8  # of what can be issued
    assert spilled == 0
    assert cuda_static.warps(gpu, threads, registers, shared) >= 16
