"""How the CPU kernels are compiled: cached on disk, under a stamp of every kernel file.

Numba keys its cache on the file of the compiled function alone, and would miss an edit of a file that the function
inlines; here an edit of any file of this folder recompiles.

Entry points take arrays and numbers one by one: a call with 31 of them costs 2.5 us, with the same in five NamedTuples
7.2 us (in five plain tuples 3.2 us), where a whole training step of the toy preset takes 170 us.
"""

import hashlib
import secrets
import types
from pathlib import Path

import numba
from numba.core.bytecode import FunctionIdentity


def _stamp():
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


STAMP = _stamp()

# Numba tells functions of one text and signature apart, when it links their machine code, by numbers counted from 0 in
# every process.  Kernels for two tile widths, cached by two processes, can carry one number, and a third process that
# loads both would call the wrong one.  Numbers drawn at random (62 bits) don't meet.
FunctionIdentity._unique_ids = iter(lambda: secrets.randbits(62), None)


def kernel(function=None, *, parallel=False, fastmath=False):
    """Decorate an entry point: compiled on its first call, cached on disk.

    fastmath: LLVM's flags for the arithmetic written in the function itself; {"reassoc"} lets it add a sum up in
    several lanes.
    """
    if function is None:
        return lambda f: kernel(f, parallel=parallel, fastmath=fastmath)
    dispatcher = numba.njit(function, cache=True, parallel=parallel, fastmath=fastmath, error_model="numpy")
    dispatcher._cache._cache_file._source_stamp = STAMP
    dispatcher._cache._index_key = lambda signature, codegen: (signature, codegen.magic_tuple(), _captured(function))
    return dispatcher


def _captured(function):
    """What a function captures, for the key of the cache.

    Numba pickles it, and a compiled function among it then differs in every process: nothing would ever be found.
    """
    values = [cell.cell_contents for cell in function.__closure__ or ()]
    return function.__qualname__, *(_captured(v.py_func) if hasattr(v, "py_func") else v for v in values)


def task(function):
    """Decorate what one thread of a kernel does at a time: compiled by itself, without the passes for `prange`."""
    return numba.njit(function, error_model="numpy")


def inner(function):
    """Decorate a function that only kernels call: it becomes part of them, so that loops around it vectorise."""
    return numba.njit(function, error_model="numpy", forceinline=True)


def compile_formulas(module, decorate, **primitives):
    """Every function of ``module``, compiled by ``decorate``, as attributes of one object.

    They call each other so compiled, and the ``primitives`` of the target where their text names ``math``, ``max`` or
    a function of the module that the target computes otherwise.
    """
    namespace = {**vars(module), **primitives}
    names = [name for name, value in vars(module).items() if isinstance(value, types.FunctionType)]
    for name in names:
        if name not in primitives:
            namespace[name] = decorate(types.FunctionType(namespace[name].__code__, namespace, name))
    return types.SimpleNamespace(**{name: namespace[name] for name in names})
