"""What the processor that Numba compiles for is good at: looked up in the machine code that LLVM makes for it.

Its name does not tell: NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may ask for another processor than this one, and LLVM uses
narrower vectors than there are on some.
"""

import re

from llvmlite import binding as llvm
from numba.core.registry import cpu_target

PROBE = """
define <16 x float> @probe(<16 x float> %a, ptr %p, <16 x i1> %mask) {
  %b = call <16 x float> @llvm.masked.load.v16f32.p0(ptr %p, i32 4, <16 x i1> %mask, <16 x float> %a)
  %c = fadd <16 x float> %a, %b
  ret <16 x float> %c
}
declare <16 x float> @llvm.masked.load.v16f32.p0(ptr, i32, <16 x i1>, <16 x float>)
"""


def _probe():
    codegen = cpu_target.target_context.codegen()
    module = llvm.parse_assembly(PROBE)
    module.triple = llvm.get_process_triple()
    return codegen._tm.emit_assembly(module)


_CODE = _probe()
_X86 = "mm0" in _CODE
VECTOR_BYTES = 64 if "zmm" in _CODE else 32 if "ymm" in _CODE else 16
MASKS = re.search(r"%k[1-7]", _CODE) is not None  # registers of masks: AVX-512
REGISTERS = 32 if MASKS or not _X86 else 16  # vectors
MASKED_LOADS = _X86 and VECTOR_BYTES > 16  # a load takes a mask
AVX2 = VECTOR_BYTES == 32 and _X86 and not MASKS
