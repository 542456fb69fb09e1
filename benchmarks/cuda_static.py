"""What can be said of the kernels for CUDA without a GPU: from their machine code, for three of NVIDIA's.

NVRTC compiles, as it does for the engine, and says which registers and memory a kernel takes; nvdisasm, which
comes with Triton, shows the inner loop. The bound is on issuing alone: it counts no wait for memory and no
conflict between banks, so a GPU can only be slower.

A second table is of layers: there, multiply-adds count that were asked for, and not those that fill a tile,
and the loop from tap to tap inside of the inner loop is counted, which few channels go through often.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.table import Table

from overlap_tool.kernels import cuda, nvrtc


@dataclass(frozen=True)
class Gpu:
    """Of one multiprocessor, by NVIDIA's programming guide."""

    name: str
    target: str
    warps: int
    blocks: int
    shared: int
    """Bytes for all blocks, each of which takes 1 KiB more than it asks for."""
    cycles: int
    """That one multiply-add of a warp keeps a quarter of the multiprocessor's float32 units."""


GPUS = (
    Gpu("A100", "sm_80", 64, 32, 164 << 10, 2),
    Gpu("H100, H200", "sm_90", 64, 32, 228 << 10, 1),
    Gpu("B200", "sm_100", 64, 32, 228 << 10, 1),
)

REGISTERS = 64 << 10
"""Of a multiprocessor. A warp gets whole lots of 256."""

MAIN = (*cuda.LARGE, cuda.TILES[64], cuda.TILES[32])
"""The main tiles: those of layers of more than 16 outputs, where samples come by 128 bits."""

TILES = (*cuda.LARGE, *reversed(cuda.TILES.values()))


def of_few_inputs(inputs: int, outputs: int, side: int, stride: int) -> str:
    """The kernel's name; nothing where the layer has too many."""
    tile = cuda.tile_for(outputs, torch.float32, inputs)
    window = cuda.window_for(inputs, (side, side), (stride, stride), tile, torch.float32)
    return "" if window is None else cuda.few_inputs_name(tile, window, torch.float32)


KERNELS = {
    **{
        f"tiles of {tile.rows}x{tile.columns}, {how}": (
            cuda.tiled_name(tile, torch.float32, by_vectors),
            tile.threads,
        )
        for how, by_vectors in (("by 128 bits", True), ("number by number", False))
        for tile in TILES
    },
    **{
        f"tiles of {tile.rows}x{tile.columns}, by 128 bits, of four phases": (
            cuda.tiled_name(tile, torch.float32, True, 4),
            tile.threads,
        )
        for tile in MAIN
    },
    **{
        f"tiles of {tile.rows}x{tile.columns}, by 128 bits, 1x1{of}": (
            cuda.tiled_name(tile, torch.float32, True, squares=squares, point=True),
            tile.threads,
        )
        for of, squares in (("", False), (", of squares", True))
        for tile in MAIN
    },
    **{
        f"few inputs: {inputs} to {outputs}, {side}x{side}, stride {stride}": (
            of_few_inputs(inputs, outputs, side, stride),
            cuda.tile_for(outputs, torch.float32, inputs).threads,
        )
        for inputs, outputs, side, stride in ((3, 192, 5, 2), (3, 64, 7, 2), (1, 64, 3, 1), (3, 12, 3, 1))
    },
    **{
        f"depthwise, {taps} columns of taps, inside of the image": (
            cuda.depthwise_name(*cuda.run_for(taps, 1, 1, torch.float32), torch.float32),
            cuda.DEPTHWISE_THREADS,
        )
        for taps in (3, 5, 11)
    },
}


LAYERS = {
    "192 to 192, 5x5": (192, 192, 5, 1),
    "192 to 192, 1x1": (192, 192, 1, 1),
    "192 to 320, 1x1": (192, 320, 1, 1),
    "64 to 64, 3x3": (64, 64, 3, 1),
    "3 to 192, 5x5, stride 2": (3, 192, 5, 2),
    "3 to 64, 7x7, stride 2": (3, 64, 7, 2),
    "1 to 64, 3x3": (1, 64, 3, 1),
    "192 to 12, 3x3": (192, 12, 3, 1),
    "64 to 3, 3x3": (64, 3, 3, 1),
}
"""Inputs, outputs, side and stride of the kernel."""


@dataclass(frozen=True)
class Loop:
    """The innermost loop around most multiply-adds, without loops inside of it."""

    instructions: int
    multiply_adds: int
    loads: int
    inside: int
    """Instructions of the loops inside of it, gone through once."""


def main() -> list[Table]:
    tool = nvdisasm()
    return [kernels(tool), layers(tool)]


def kernels(tool: str) -> Table:
    table = Table(title=f"Inner loops of the kernels for CUDA: NVRTC {_nvrtc()}, nvdisasm {_version(tool)}")
    for heading in (
        *("kernel", "GPU", "instructions per FFMA", "loads per FFMA", "registers", "spilled bytes"),
        *("shared memory", "warps a multiprocessor", "issue bound"),
    ):
        table.add_column(heading)
    for title, (name, threads) in KERNELS.items():
        for gpu in GPUS:
            compiled = nvrtc.compile_kernel(cuda.source(), name, gpu.target, ("--ptxas-options=-v",))
            registers, shared, spilled = _resources(compiled.log)
            loop = inner_loop(_machine_code(tool, compiled.code), shortest="inside" in title)
            share = loop.instructions / loop.multiply_adds
            table.add_row(
                title,
                gpu.name,
                f"{share:.2f}",
                f"{loop.loads / loop.multiply_adds:.3f}",
                str(registers),
                str(spilled),
                f"{shared / 1024:.1f} KiB",
                str(warps(gpu, threads, registers, shared)),
                f"{min(1, gpu.cycles / share):.0%}",
            )
    return table


def layers(tool: str) -> Table:
    table = Table(title="Layers, by the inner loop of their kernels")
    for heading in (
        "layer",
        "GPU",
        "kernel",
        "columns in use",
        "instructions per FFMA in use",
        "issue bound",
    ):
        table.add_column(heading)
    for title, (inputs, outputs, side, stride) in LAYERS.items():
        tile = cuda.tile_for(outputs, torch.float32, inputs)
        few = of_few_inputs(inputs, outputs, side, stride)
        how = "few inputs" if few else "by 128 bits" if inputs % 4 == 0 else "number by number"
        name = few or cuda.tiled_name(tile, torch.float32, inputs % 4 == 0, point=side == 1)
        used = outputs / (-(-outputs // tile.columns) * tile.columns)
        for gpu in GPUS:
            code = nvrtc.compile_kernel(cuda.source(), name, gpu.target).code
            loop = inner_loop(_machine_code(tool, code))
            # a step goes through so much of the depth, and from tap to tap so often
            taps = loop.multiply_adds / (tile.high * tile.wide) / inputs
            share = (loop.instructions + taps * loop.inside) / (loop.multiply_adds * used)
            table.add_row(
                title,
                gpu.name,
                f"{tile.rows}x{tile.columns}, {how}",
                f"{used:.0%}",
                f"{share:.2f}",
                f"{min(1, gpu.cycles / share):.0%}",
            )
    return table


def nvdisasm() -> str:
    triton = find_spec("triton")
    folders = [
        Path(root) / "backends/nvidia/bin" for root in (triton and triton.submodule_search_locations) or ()
    ]
    found = shutil.which("nvdisasm", path=":".join(map(str, folders))) or shutil.which("nvdisasm")
    if found is None:
        raise SystemExit("nvdisasm is not to be found: it comes with Triton, and with CUDA's toolkit")
    return found


def _machine_code(tool: str, code: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        return subprocess.run([tool, "-c", file.name], check=True, capture_output=True, text=True).stdout


def inner_loop(text: str, shortest: bool = False) -> Loop:
    """A loop ends in a branch to its begin. What is behind another branch is counted as if it always ran, or
    else the shortest way is taken."""
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = len(code)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            code.append(found[1])
    targets = {}
    for at, instruction in enumerate(code):
        if branch := re.search(r"\bBRA\b.*`\((\.L\w+)\)", instruction):
            targets[at] = labels[branch[1]]
    loops = [(target, at + 1) for at, target in targets.items() if target < at]

    def parts(loop: tuple[int, int]) -> list[int]:
        inside = [(a, b) for a, b in loops if loop[0] <= a and b <= loop[1] and (a, b) != loop]
        return [n for n in range(*loop) if not any(a <= n < b for a, b in inside)]

    body = max(map(parts, loops), key=lambda part: sum("FFMA" in code[n] for n in part))
    if shortest:
        body = _shortest(body, code, targets)
    multiply_adds = sum("FFMA" in code[n] for n in body)
    inside = 0 if shortest else body[-1] + 1 - body[0] - len(body)
    loads = sum(re.search(r"^(?!@!PT).*\b(LDS|LDG|LDGSTS)\b", code[n]) is not None for n in body)
    return Loop(len(body), multiply_adds, loads, inside)


def _shortest(body: list[int], code: list[str], targets: dict[int, int]) -> list[int]:
    """From the last instruction backwards: which way on is the shorter one."""
    ways: dict[int, list[int]] = {body[-1]: [body[-1]]}
    for at in reversed(body[:-1]):
        following = [] if code[at].startswith("BRA") else [at + 1]
        if targets.get(at, 0) > at:
            following.append(targets[at])
        ways[at] = [at, *min((ways[n] for n in following if n in ways), key=len, default=[])]
    return ways[body[0]]


def _resources(log: str) -> tuple[int, int, int]:
    """Registers, bytes of shared memory and of what is spilled."""
    registers = re.search(r"Used (\d+) registers", log)
    shared = re.search(r"(\d+) bytes smem", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or spills is None:
        raise ValueError(f"the assembler says nothing of registers: {log}")
    return int(registers[1]), int(shared[1]) if shared else 0, int(spills[1]) + int(spills[2])


def warps(gpu: Gpu, threads: int, registers: int, shared: int) -> int:
    """That fit on a multiprocessor together, in whole blocks."""
    of_block = threads // 32
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256) // of_block
    return of_block * min(gpu.warps // of_block, gpu.blocks, by_registers, gpu.shared // (shared + 1024))


def _nvrtc() -> str:
    ptx = nvrtc.compile_kernel(cuda.source(), next(iter(KERNELS.values()))[0], "compute_80").code.decode()
    found = re.search(r"Cuda compilation tools, release .*, V([\d.]+)", ptx)
    return found[1] if found else "of unknown version"


def _version(tool: str) -> str:
    text = subprocess.run([tool, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"V([\d.]+)", text)
    return found[1] if found else "of unknown version"
