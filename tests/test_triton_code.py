"""What Triton makes of the kernel for three generations of GPUs, without one: width of accesses, precision, spills."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cyclic_optim.device import triton_sgd

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
POINTERS = {"tensors": "*i64", "numbers": "*fp32", "blocks": "*i32", "grads": "*i64"}
POINTERS |= {"grad_scale": "*fp32", "found_inf": "*fp32"}
#: Triton 3.2 has no assembler for the last.
CAPABILITIES = (80, 90) if triton.__version__.startswith("3.2.") else (80, 90, 120)
#: Kernels by the dtypes that occur, and the bits of a parameter in each.
KERNELS = {"float32": [32], "bfloat16": [16], "float16": [16], "all": [32, 16, 16]}
every_kernel = pytest.mark.parametrize("dtypes", KERNELS)
every_gpu = pytest.mark.parametrize("capability", CAPABILITIES)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """PTX, SASS and use of registers of a kernel, compiled as the update has it compiled."""
    made = {}

    def compile_for(capability, dtypes="float32", kernel=triton_sgd.sgd_kernel, pointers=None, **constants):
        key = capability, dtypes, kernel.fn.__name__
        if key not in made:
            cubin = tmp_path_factory.mktemp("code") / "kernel.cubin"
            flags = [dtypes in (str(dtype).removeprefix("torch."), "all") for dtype in triton_sgd.DTYPES]
            constants = constants or {
                **dict(zip(("FLOAT32", "BFLOAT16", "FLOAT16"), flags, strict=True)), "BLOCK": triton_sgd.BLOCK
            }  # fmt: skip
            signature = {**(pointers or POINTERS), **dict.fromkeys(constants, "constexpr")}
            source = ASTSource(kernel, signature, constants)  # the third has another name in Triton 3.2
            code = triton.compile(
                source,
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": triton_sgd.WARPS, "enable_fp_fusion": triton_sgd.FP_FUSION},
            )
            cubin.write_bytes(code.asm["cubin"])
            dumped = [
                subprocess.run([CUOBJDUMP, option, cubin], capture_output=True, encoding="utf-8", check=True)
                for option in ("-sass", "-res-usage")
            ]
            made[key] = code.asm["ptx"], dumped[0].stdout, dumped[1].stdout + dumped[1].stderr
        return made[key]

    return compile_for


@pytest.fixture(autouse=True)
def _cache_of_ones_own(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@every_gpu
@every_kernel
def test_aligned_blocks_are_read_and_written_128_bits_at_a_time(compiled, capability, dtypes):
    """Three loads and two stores of each dtype, in as few instructions as there can be: 16 bytes per thread each."""
    _, sass, _ = compiled(capability, dtypes)
    per_thread = triton_sgd.BLOCK // (32 * triton_sgd.WARPS)
    wide = sum(per_thread * bits // 128 for bits in KERNELS[dtypes])
    assert len(re.findall(r"\bLDG\.E\S*\.128\b", sass)) == 3 * wide
    assert len(re.findall(r"\bSTG\.E\S*\.128\b", sass)) == 2 * wide


@every_gpu
@every_kernel
def test_unaligned_tensors_are_accessed_an_element_at_a_time(compiled, capability, dtypes):
    """Outside the aligned branch no access is wider than what it is of: 64-bit ones are of the tables alone."""
    ptx, _, _ = compiled(capability, dtypes)
    per_thread = triton_sgd.BLOCK // (32 * triton_sgd.WARPS)
    for bits in {*KERNELS[dtypes]}:
        of_dtype = KERNELS[dtypes].count(bits) * per_thread
        assert len(re.findall(rf"\bst\.global\.b{bits} ", ptx)) == 2 * of_dtype
        assert len(re.findall(rf"\bld\.global\.b{bits} ", ptx)) >= 3 * of_dtype
    vectors = re.findall(r"\b(?:ld|st)\.global\S*\.v\d\S*", ptx)
    assert {*vectors} == {"ld.global.v4.b32", "st.global.v4.b32"}


@every_gpu
@every_kernel
def test_no_double_precision(compiled, capability, dtypes):
    """Neither arithmetic nor conversions: consumer GPUs do it 64 times as slowly."""
    ptx, sass, _ = compiled(capability, dtypes)
    assert not re.search(r"(?<!%)f64", ptx)  # %f64 is a register
    assert not re.search(r"\bD(ADD|MUL|FMA|SETP|MNMX)\b|\bMUFU\S*64|\bF2F\S*F64|\bI2F\S*F64", sass)


@every_gpu
@every_kernel
def test_nothing_is_spilled(compiled, capability, dtypes):
    """No stack, no local memory, and registers for at least 8 programs on a multiprocessor of 65,536."""
    _, sass, usage = compiled(capability, dtypes)
    assert not re.search(r"\b(LDL|STL)\b", sass)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    assert stack == 0
    assert 8 * registers * 32 * triton_sgd.WARPS <= 65536


@every_gpu
def test_half_precision_is_rounded_to_nearest(compiled, capability):
    """Parameters and buffers alike: what is cut off instead would drift."""
    for dtype, name in (("bfloat16", "bf16"), ("float16", "f16")):
        ptx, _, _ = compiled(capability, dtype)
        conversions = re.findall(rf"\bcvt\.\S*\.{name}\S*\.f32\b", ptx)
        assert conversions
        assert all(conversion.startswith("cvt.rn.") for conversion in conversions)


@every_gpu
def test_flags_of_started_buffers_compile(compiled, capability):
    """The second kernel, of those with dampening."""
    pointers = {"started": "*i64", "momenta": "*i64", "count": "i32", "found_inf": "*fp32"}
    ptx, _, usage = compiled(capability, kernel=triton_sgd.started_kernel, pointers=pointers, BLOCK=256)
    assert "st.global" in ptx
    assert not re.search(r"(?<!%)f64", ptx)  # %f64 is a register
    assert "STACK:0" in usage


def test_every_dtype_has_its_kernel():
    """What is compiled here is what the update can meet."""
    assert [str(dtype) for dtype in triton_sgd.DTYPES] == [f"torch.{name}" for name in list(KERNELS)[:3]]
    assert [torch.finfo(dtype).bits for dtype in triton_sgd.DTYPES] == KERNELS["all"]
