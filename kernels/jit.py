"""How the CPU kernels are compiled, kept on disk, and run by processes that were forked.

Compiled kernels are kept in the folder that Numba would choose: NUMBA_CACHE_DIR where it is set, else ``__pycache__``
beside the kernels, else the user's cache.  A file belongs to one kernel, signature, processor, Numba, Python and STAMP,
the hash of every file of this folder, and is checked before it is used.  So any old folder is safe to use again,
between runs of a CI, too: what another STAMP compiled is never loaded, and goes when its kernel is compiled anew.
Numba's own cache knows the file of the compiled function alone, and would miss an edit of a file that it inlines; and
it keeps the signatures of a function in one index, which two processes that write at once can spoil.
Where no folder can be written the kernels are compiled by every process; one warning says so.  Of processes that need
one kernel at a time, one compiles it and the others wait (`turns.py`).

Entry points take arrays and numbers one by one: a call with 31 of them costs 2.5 µs, with the same in five NamedTuples
7.2 µs (in five plain tuples 3.2 µs), where a whole training step of the toy preset takes 170 µs.
"""

import contextlib
import gc
import hashlib
import os
import pickle
import sys
import threading
import types
import uuid
import warnings
from pathlib import Path

import numba
from numba.core import serialize
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import CompileResultCacheImpl, NullCache
from numba.core.registry import CPUDispatcher
from sparse_dnm.kernels.compiler import KernelCompiler, PartCompiler
from sparse_dnm.kernels.interrupts import Uninterrupted
from sparse_dnm.kernels.turns import Turn

if numba.config.DISABLE_JIT:
    raise ValueError("NUMBA_DISABLE_JIT is set, but the kernels of sparse_dnm run only compiled; unset it")


def _stamp():
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


STAMP = _stamp()
DIGEST = hashlib.sha256().digest_size
PLAIN = (int, float, str, type(None), numba.types.Type)  # what a kernel may capture beside functions

PART = {"pipeline_class": PartCompiler, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

PARALLEL, ONE_BY_ONE, SEQUENTIAL = range(3)

when_compiling = []  # functions that are called with the name of a kernel before it is compiled
when_waiting = []  # and before another process, which compiles it, is waited for
before_first_call = []  # functions that are called before a kernel with parallel loops is loaded or compiled
_mode = PARALLEL
_with_loops = []  # compiled functions that have parallel loops, or call a function that has
_loops = set()  # linker's names of the bodies of parallel loops in this process
_warned = False


def kernel(function=None, *, parallel=False, fastmath=False, calls_loops=False):
    """Decorate an entry point: compiled on its first call, kept on disk.

    fastmath: LLVM's flags for the arithmetic written in the function itself; {"reassoc"} lets it add a sum up in
    several lanes.  ``calls_loops``: it calls kernels with parallel loops by their addresses.
    """
    if function is None:
        return lambda f: kernel(f, parallel=parallel, fastmath=fastmath, calls_loops=calls_loops)
    options = {"pipeline_class": KernelCompiler} if parallel else {}
    options |= {"calls_loops": calls_loops, "fastmath": fastmath, "no_cfunc_wrapper": True}
    dispatcher = _compiled(function, parallel=parallel, **options)
    dispatcher._cache = _Cache(dispatcher)
    if dispatcher.__class__ is CPUDispatcher:
        dispatcher.__class__ = _Kernel
    return dispatcher


def task(function):
    """Decorate what one thread of a kernel does at a time: compiled by itself, without the passes for `prange`."""
    return _part(function, forceinline=False)


def inner(function):
    """Decorate a function that only kernels call: it becomes part of them, so that loops around it vectorise."""
    return _part(function, forceinline=True)


def _part(function, forceinline):
    dispatcher = _compiled(function, forceinline=forceinline, **PART)
    if dispatcher.__class__ is CPUDispatcher:
        dispatcher.__class__ = _Part
    return dispatcher


def compile_formulas(module, decorate, **primitives):
    """Every function of ``module``, compiled by ``decorate``, as attributes of one object.

    They call each other so compiled, and the ``primitives`` of the target where their text names ``math``, ``max`` or
    a function of the module that the target computes otherwise.
    """
    namespace = {**vars(module), **primitives}
    names = [name for name, value in vars(module).items() if isinstance(value, types.FunctionType)]
    for name in names:
        if name not in primitives:
            twin = types.FunctionType(namespace[name].__code__, namespace, name)
            twin.__qualname__ = f"{name}_{len(primitives)}"  # the linker tells the twins of a formula apart by name
            namespace[name] = decorate(twin)
    return types.SimpleNamespace(**{name: namespace[name] for name in names})


def _compiled(function, *, parallel=False, calls_loops=False, **options):
    dispatcher = numba.njit(_named(function), parallel=parallel, error_model="numpy", **options)
    called = [cell.cell_contents for cell in function.__closure__ or ()]
    called += [function.__globals__.get(name) for name in function.__code__.co_names]
    if parallel or calls_loops or any(f is one for f in called for one in _with_loops):
        _with_loops.append(dispatcher)
        _apply_mode(dispatcher)
    return dispatcher


def _captured(function):
    """What a function captures, as text that is the same in every process."""
    for cell in function.__closure__ or ():
        value = cell.cell_contents
        if hasattr(value, "py_func"):
            yield from _captured(value.py_func)
        elif isinstance(value, PLAIN):
            yield str(value)
        elif hasattr(value, "__qualname__"):
            yield value.__qualname__
        else:
            raise TypeError(
                f"{function.__qualname__} captures {value!r}; a kernel may capture numbers, text, types and functions"
            )


def _named(function):
    """The function, with what it captures in its name: ``make.<locals>.forward`` of width 32 ends in ``_32``.

    The linker tells functions apart by name, types of arguments, and a number that Numba counts from 0 in every
    process.  Functions of one name for two widths, compiled by two processes, can carry one number, and a third
    process that loads both would call the wrong one.
    """
    captured = dict.fromkeys(_captured(function))
    if captured:
        function.__qualname__ = "_".join([function.__qualname__, *captured])
    return function


class _Cache(NullCache):
    """Compiled kernels on disk: a file for each kernel and signature, that of another STAMP removed when it is written.

    A file is a digest of all that follows, and the pickle of (key, names of its parallel loops, compiled code).
    """

    def __init__(self, dispatcher):
        self._dispatcher, self._found, self._turn, self._compiling = dispatcher, None, None, None

    @property
    def cache_path(self):
        """The folder, None where there is none."""
        numbas = self._numbas
        return numbas and numbas.locator.get_cache_path()

    @property
    def _numbas(self):
        """Numba's way from compiled code to what can be pickled, and the choice of the folder."""
        if self._found is None:
            try:
                self._found = CompileResultCacheImpl(self._dispatcher.py_func)
            except RuntimeError as error:
                _warn(error)
        return self._found

    def _key(self, signature, codegen):
        """All that the code depends on."""
        versions = STAMP, numba.__version__, sys.implementation.cache_tag
        name, sequential = self._dispatcher.py_func.__qualname__, _mode == SEQUENTIAL and self._has_loops
        return repr((name, signature, codegen.magic_tuple(), sequential, versions))

    @property
    def _has_loops(self):
        return any(self._dispatcher is one for one in _with_loops)

    def _file(self, key):
        """Path of the file, and the pattern of those of this kernel."""
        name, key = self._numbas.filename_base, hashlib.sha256(key.encode()).hexdigest()
        return Path(self.cache_path, f"{name}-{STAMP[:12]}-{key[:24]}.kernel"), f"{name}-*.kernel"

    def load_overload(self, sig, target_context):
        """The compiled code of a signature, None where there is none: then it is compiled, in this process's turn."""
        found = self._load(sig, target_context)
        if found is None and self._numbas is not None:
            self._take_turn(self._file(self._key(sig, target_context.codegen()))[0].with_suffix(".turn"))
            found = self._load(sig, target_context)  # another process may have been faster
        for tell in when_compiling if found is None else ():
            tell(self._dispatcher.py_func.__name__)
        if found is None:
            self._begin()
        return found

    def _begin(self):
        """Let Ctrl-C wait for the end of the turn: LLVM calls Python, and an exception raised there would be lost."""
        self._compiling = Uninterrupted()
        self._compiling.__enter__()

    def _take_turn(self, path):
        turn = Turn(path)
        if not turn.take():
            for tell in when_waiting:
                tell(self._dispatcher.py_func.__name__)
            turn.wait()
        self._turn = turn

    def end_turn(self):
        """The kernel is compiled, or cannot be."""
        if self._turn is not None:
            self._turn.give_back()
            self._turn = None
        if self._compiling is not None:
            compiling, self._compiling = self._compiling, None
            compiling.__exit__()

    def _load(self, sig, target_context):
        target_context.refresh()
        for function in before_first_call if self._has_loops else ():
            function()
        if self._numbas is None:
            return None
        key = self._key(sig, target_context.codegen())
        try:
            data = self._file(key)[0].read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data[DIGEST:]).digest() != data[:DIGEST]:
            return None
        found, loops, code = pickle.loads(data[DIGEST:])
        if found != key:
            return None
        if not _loops.isdisjoint(loops):
            _count_on()
            return None
        _loops.update(loops)
        return self._numbas.rebuild(target_context, code)

    def save_overload(self, sig, data):
        """Keep compiled code, where that is possible."""
        loops = {f.name for f in data.library.get_defined_functions() if "parfor_gufunc" in f.name}
        if not _loops.isdisjoint(loops):
            self._dispatcher._reset_overloads()
            _count_on()
            raise RuntimeError("two parallel loops got one name, by chance; call the kernel again")
        _loops.update(loops)
        if self._numbas is None or not self._numbas.check_cachable(data):
            return
        key = self._key(sig, data.codegen)
        path, ours = self._file(key)
        payload = serialize.dumps((key, loops, self._numbas.reduce(data)))
        fresh = path.with_suffix(f".{uuid.uuid4().hex[:16]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(hashlib.sha256(payload).digest() + payload)
            os.replace(fresh, path)
            for other in path.parent.glob(ours):
                if STAMP[:12] not in other.name:
                    other.unlink(missing_ok=True)
        except OSError as error:
            _warn(error)
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)


def _count_on():
    """Let Numba's count of functions go on, by compiling none.

    Numba names the body of a parallel loop by an address and this count.  Two processes that were forked from one can
    have both in common: a kernel with a name that another has here is not loaded, but compiled under another name.
    """
    for _ in range(1000):
        FunctionIdentity.from_function(_count_on)


def _warn(error):
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"compiled kernels cannot be kept on disk ({error}), so every process compiles them again; set "
            "NUMBA_CACHE_DIR to a folder that this user may write to",
            RuntimeWarning,
            stacklevel=2,
        )


class _Part(CPUDispatcher):
    """What only kernels call: it has no machine code of its own."""

    def __call__(self, *arguments):
        """Raise TypeError."""
        raise TypeError(f"{self.py_func.__qualname__} is a part of kernels; only they can call it")


class _Kernel(CPUDispatcher):
    """An entry point."""

    def compile(self, signature):
        """As Numba's, without Python's search for cycles, which takes a sixth of the time and finds hardly any."""
        collects = gc.isenabled()
        gc.disable()
        try:
            return super().compile(signature)
        finally:
            if collects:
                gc.enable()
            if isinstance(self._cache, _Cache):
                self._cache.end_turn()


class _OneByOne(_Kernel):
    """A kernel that waits until no other thread runs one."""

    lock = threading.RLock()

    def __call__(self, *arguments):
        """Wait, and run."""
        with self.lock:
            return super().__call__(*arguments)


def mode():
    """How kernels with parallel loops run."""
    return _mode


def set_mode(mode):
    """How kernels with parallel loops run from now on in this process; the bits are the same.

    PARALLEL    on Numba's threads
    ONE_BY_ONE  on Numba's threads, one kernel at a time: for threads that two threads of Python may not use at once
    SEQUENTIAL  on the calling thread: for a forked process, which has none of its parent's threads
    """
    global _mode
    _mode = mode
    for dispatcher in _with_loops:
        _apply_mode(dispatcher)


def _apply_mode(dispatcher):
    """Change the kernel itself: who holds it need not know, and a call costs nothing more."""
    if _mode == ONE_BY_ONE:
        dispatcher.__class__ = _OneByOne
    elif _mode == SEQUENTIAL:
        if isinstance(dispatcher, _OneByOne):
            dispatcher.__class__ = _Kernel
        dispatcher.targetoptions["parallel"] = False
        dispatcher._reset_overloads()  # the code for threads
