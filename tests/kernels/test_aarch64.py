"""The same IR compiled for AArch64 and run by an emulator of that processor: the same bits.

Needs qemu-user and a cross compiler (Debian: qemu-user, gcc-aarch64-linux-gnu), and is skipped without.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import llvmlite.binding as llvm
import llvmlite.ir as ir
import pytest
import torch

from overlap_tool.kernels import codegen, cpu, threads
from overlap_tool.kernels.arithmetic.generated import FIELDS, ITEM, loop_over
from overlap_tool.kernels.arithmetic.programs import PROGRAMS
from overlap_tool.kernels.arithmetic.tensors import AT_ONCE, compute
from overlap_tool.kernels.arithmetic.vectors import FUNCTIONS, digest, sample
from overlap_tool.kernels.form import Form

TRIPLE = "aarch64-unknown-linux-gnu"
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"

pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason=f"needs {COMPILER} and {EMULATOR}",
)

DRIVER = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

void run(int64_t *task);

/* Reads a task, which of its fields are places in the memory that follows, and the memory; writes that. */
int main(void) {
    int64_t sizes[3];
    if (fread(sizes, 8, 3, stdin) != 3) return 1;
    int64_t *task = malloc(8 * sizes[0]), *pointers = malloc(8 * sizes[1]);
    char *memory = aligned_alloc(64, (sizes[2] + 63) / 64 * 64);
    if (fread(task, 8, sizes[0], stdin) != sizes[0]) return 1;
    if (fread(pointers, 8, sizes[1], stdin) != sizes[1]) return 1;
    if (fread(memory, 1, sizes[2], stdin) != sizes[2]) return 1;
    for (int64_t i = 0; i < sizes[1]; i++) task[pointers[i]] += (int64_t)memory;
    run(task);
    return fwrite(memory, 1, sizes[2], stdout) != sizes[2];
}
"""


def compiled(module: ir.Module, folder: Path) -> Path:
    """A program for AArch64 around the module's `run`."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(TRIPLE).create_target_machine(opt=3, reloc="pic")
    parsed = llvm.parse_assembly(str(module))
    parsed.triple = TRIPLE
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    llvm.create_pass_builder(target, tuning).getModulePassManager().run(
        parsed, llvm.create_pass_builder(target, tuning)
    )
    (folder / "run.o").write_bytes(target.emit_object(parsed))
    (folder / "driver.c").write_text(DRIVER)
    program = folder / "program"
    command = [COMPILER, "-O1", "-static", "-o", program, folder / "driver.c", folder / "run.o", "-lm"]
    subprocess.run(command, check=True)
    return program


def ran(program: Path, task: list[int], pointers: list[int], memory: bytes) -> bytes:
    numbers = [len(task), len(pointers), len(memory), *task, *pointers]
    given = struct.pack(f"<{len(numbers)}q", *numbers) + memory
    return subprocess.run([EMULATOR, program], input=given, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("erf", "log") else pytest.mark.slow) for name in FUNCTIONS],
)
def test_functions(name: str, tmp_path: Path) -> None:
    module = loop_over(PROGRAMS[name], True, 1, 0, 4 * AT_ONCE, TRIPLE)
    x = sample()
    task = [0, -(-len(x) // ITEM), len(x), 0, 0, *[0] * (len(FIELDS) - 5)]
    places = [FIELDS.index("y"), FIELDS.index("x0")]
    found = ran(compiled(module, tmp_path), task, places, x.numpy().tobytes())
    assert digest(torch.frombuffer(bytearray(found), dtype=torch.float32)) == digest(compute(name, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chains(dtype: torch.dtype, tmp_path: Path, monkeypatch) -> None:
    """A convolution with 37 outputs, which fill no whole number of vectors."""
    x = torch.randn(2, 21, 9, 50, dtype=dtype).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(37, 21, 3, 3, dtype=dtype), torch.randn(37, dtype=dtype)
    expected = cpu.convolve(x, weight, bias, Form())
    machine = codegen.Processor(16, 32)
    for module in (codegen, cpu):
        monkeypatch.setattr(module, "processor", lambda: machine)
    monkeypatch.setattr(codegen, "triple", lambda: TRIPLE)
    program = compiled(codegen.DenseGenerator(machine, x.element_size()).module, tmp_path)
    packed, out = cpu.pack(weight, 1), torch.zeros_like(expected)

    def elsewhere(function: int, address: int, count: int) -> None:
        words = (ctypes.c_int64 * len(codegen.FIELDS)).from_address(address)
        values, memory = dict(zip(codegen.FIELDS, words, strict=True)), b""
        written = values["y"]
        sizes = {
            "x": x.nbytes,
            "w": packed.values.nbytes,
            "bias": values["groups"] * values["bias_group"] * x.element_size(),
            "y": out.nbytes,
        }
        for name, size in sizes.items():
            values[name], memory = len(memory), memory + ctypes.string_at(values[name], size)
        found = ran(program, list(values.values()), [codegen.FIELDS.index(name) for name in sizes], memory)
        ctypes.memmove(written, found[values["y"] :], out.nbytes)

    monkeypatch.setattr(threads, "run_on_threads", elsewhere)
    monkeypatch.setattr(cpu, "kernel", lambda *_: 0)
    assert torch.equal(cpu.convolve(x, packed, bias, Form(), out), expected)
