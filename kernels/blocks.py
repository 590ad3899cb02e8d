"""What a kernel passes on to other kernels: named numbers and arrays in a block of memory; and kernels by address.

A kernel that called others directly would contain their code again, and compile as long as all of them together; with
Numba's own arrays it would also count references to each of them, which takes most of its code.  Nothing is checked
here: who makes a `Block` keeps what it holds alive while a kernel runs.
"""

import hashlib
import struct
from typing import ClassVar

import numpy as np
from llvmlite import ir
from numba import typeof
from numba.core import cgutils, types
from numba.core.datamodel import models, register_default
from numba.core.errors import TypingError
from numba.core.typing.templates import AttributeTemplate
from numba.extending import NativeValue, infer_getattr, intrinsic, lower_getattr_generic, typeof_impl, unbox

WORDS = 3  # of a field: address and shape of an array, or a number


class Entry:
    """The compiled code of ``kernel`` for arguments of the types of ``samples``."""

    def __init__(self, kernel, *samples):
        kinds = tuple(typeof(sample) for sample in samples)
        kernel.compile(kinds)
        self._code = kernel.overloads[kinds]  # which lives as long as its address is known
        self.kind = EntryType(self._code.signature)
        self.address = self._code.library.get_pointer_to_function(self._code.fndesc.llvm_func_name)


class Block:
    """Named values for a kernel: C-contiguous numpy arrays of one or two dimensions, numbers, None, Entries, Blocks."""

    _known: ClassVar = {}  # type and format of what was made before, by what decides them

    def __init__(self, **values):
        self.values = values
        words = []
        made = tuple(values), tuple([_write(value, words) for value in values.values()])
        known = self._known.get(made)
        if known is None:
            kinds = [_kind_of(value) for value in values.values()]
            letters = "".join("dqq" if kind == types.float64 else "qqq" for kind in kinds)
            known = self._known[made] = BlockType(tuple(zip(values, kinds, strict=True))), struct.Struct(letters)
        self.kind = known[0]
        self._memory = np.frombuffer(known[1].pack(*words), np.int64)
        self.address = self._memory.__array_interface__["data"][0]


def _write(value, words):
    """Append the words of a value of a Block, and return what decides its type."""
    if isinstance(value, np.ndarray):
        shape = value.shape
        words += (value.__array_interface__["data"][0], shape[0], shape[-1])
        return value.dtype, len(shape), value.flags.c_contiguous
    if isinstance(value, (Entry, Block)):
        words += (value.address, 0, 0)
        return value.kind
    words += (0 if value is None else value, 0, 0)
    return float if isinstance(value, float) else type(value)


def _kind_of(value):
    """The type of a value of a Block."""
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous or value.ndim not in (1, 2):
            raise TypeError(f"an array of shape {value.shape} must be C-contiguous, of one or two dimensions")
        return View(typeof(value).dtype, value.ndim)
    if isinstance(value, (Entry, Block)):
        return value.kind
    return types.none if value is None else types.float64 if isinstance(value, float) else typeof(value)


class EntryType(types.Type):
    """An Entry of this signature, whatever the kernel."""

    def __init__(self, signature):
        self.signature = signature
        super().__init__(name=f"Entry({hashlib.sha256(str(signature).encode()).hexdigest()})")


class View(types.Type):
    """An array by its address: its data, and its shape."""

    def __init__(self, dtype, ndim):
        self.dtype, self.ndim = dtype, ndim
        super().__init__(name=f"View({dtype}, {ndim})")


class BlockType(types.Type):
    """A Block of these (name, type)."""

    def __init__(self, fields):
        self.fields = fields
        self.places = {name: k for k, (name, _) in enumerate(fields)}
        super().__init__(name=f"Block({hashlib.sha256(str(fields).encode()).hexdigest()})")  # names are compared often


@register_default(EntryType)
@register_default(BlockType)
class _AddressModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, cgutils.intp_t)


@register_default(View)
class _ViewModel(models.StructModel):
    def __init__(self, dmm, fe_type):
        shape = types.UniTuple(types.int64, fe_type.ndim)
        super().__init__(dmm, fe_type, [("data", types.CPointer(fe_type.dtype)), ("shape", shape)])


@typeof_impl.register(Block)
def _typeof_block(block, _):
    return block.kind


@unbox(BlockType)
def _unbox_block(typ, obj, c):
    address = c.pyapi.object_getattr_string(obj, "address")
    value = c.pyapi.long_as_longlong(address)
    c.pyapi.decref(address)
    return NativeValue(value, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


@infer_getattr
class _Fields(AttributeTemplate):
    key = BlockType

    def generic_resolve(self, block, name):
        return block.fields[block.places[name]][1] if name in block.places else None


@lower_getattr_generic(BlockType)
def _field(context, builder, block, value, name):
    place = block.places[name]
    kind = block.fields[place][1]
    words = builder.inttoptr(value, cgutils.intp_t.as_pointer())

    def word(k):
        return builder.load(builder.gep(words, [ir.Constant(cgutils.intp_t, WORDS * place + k)]))

    if isinstance(kind, View):
        return _view(context, builder, kind, word(0), [word(1 + k) for k in range(kind.ndim)])
    if kind == types.none:
        return context.get_dummy_value()
    if kind == types.float64:
        return builder.bitcast(word(0), ir.DoubleType())
    if kind == types.boolean:
        return builder.trunc(word(0), ir.IntType(1))
    return word(0)


def _view(context, builder, kind, address, shape):
    """The value of a View; ``address`` an integer or a pointer."""
    made = cgutils.create_struct_proxy(kind)(context, builder)
    pointer = context.get_data_type(kind.dtype).as_pointer()
    made.data = builder.inttoptr(address, pointer) if isinstance(address.type, ir.IntType) else address
    made.shape = cgutils.pack_array(builder, shape)
    return made._getvalue()


def _parts(context, builder, kind, value):
    """Data and shape of a View."""
    found = cgutils.create_struct_proxy(kind)(context, builder, value)
    return found.data, cgutils.unpack_tuple(builder, found.shape)


def _array(context, builder, kind, value, wanted):
    """A View as an array of Numba's without an owner."""
    data, shape = _parts(context, builder, kind, value)
    itemsize = ir.Constant(cgutils.intp_t, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    strides = [itemsize]
    if kind.ndim == 2:
        strides.insert(0, builder.mul(shape[1], strides[0]))
    made = context.make_array(wanted)(context, builder)
    context.populate_array(made, data=data, shape=shape, strides=strides, itemsize=itemsize, meminfo=None)
    return made._getvalue()


@intrinsic
def call(typingctx, entry, arguments):
    """What the kernel of ``entry`` returns for a tuple of ``arguments``, Views where it takes arrays."""
    signature = entry.signature
    if not isinstance(arguments, types.BaseTuple) or len(arguments) != len(signature.args):
        raise TypingError(f"a kernel of {len(signature.args)} arguments was given {arguments}")
    for k, (given, wanted) in enumerate(zip(arguments.types, signature.args, strict=True)):
        if isinstance(given, View) and (given.dtype, given.ndim) != (wanted.dtype, wanted.ndim):
            raise TypingError(f"argument {k} of a kernel must be {wanted}, not {given}")

    def codegen(context, builder, own, args):
        values = [
            _array(context, builder, given, value, wanted)
            if isinstance(given, View)
            else context.cast(builder, value, given, wanted)
            for value, given, wanted in zip(
                cgutils.unpack_tuple(builder, args[1]), own.args[1].types, signature.args, strict=True
            )
        ]
        convention = context.call_conv
        function = convention.get_function_type(signature.return_type, signature.args)
        callee = builder.inttoptr(args[0], function.as_pointer())
        status, value = convention.call_function(builder, callee, signature.return_type, signature.args, values)
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return value

    return signature.return_type(entry, arguments), codegen


@intrinsic
def length(typingctx, view):
    """Number of rows, or of numbers, of a View."""

    def codegen(context, builder, signature, args):
        return _parts(context, builder, view, args[0])[1][0]

    return types.int64(view), codegen


@intrinsic
def block_at(typingctx, address, kind):
    """The Block of this ``kind`` at an address, which a kernel takes in much less time than the object."""
    block = kind.instance_type

    def codegen(context, builder, signature, args):
        return args[0]

    return block(types.int64, kind), codegen


@intrinsic
def pointer(typingctx, view):
    """The address of a View's first number: indexed like an array, and what `simd` loads from and stores to."""

    def codegen(context, builder, signature, args):
        return _parts(context, builder, view, args[0])[0]

    return types.CPointer(view.dtype)(view), codegen


@intrinsic
def head(typingctx, view, count):
    """The first ``count`` numbers of a View of one dimension."""

    def codegen(context, builder, signature, args):
        data, _ = _parts(context, builder, view, args[0])
        return _view(context, builder, view, data, [context.cast(builder, args[1], count, types.int64)])

    return view(view, count), codegen


@intrinsic
def row(typingctx, view, k):
    """A row of a View of two dimensions."""
    kind = View(view.dtype, 1)

    def codegen(context, builder, signature, args):
        data, (_, width) = _parts(context, builder, view, args[0])
        at = builder.mul(context.cast(builder, args[1], k, types.int64), width)
        return _view(context, builder, kind, builder.gep(data, [at]), [width])

    return kind(view, k), codegen


@intrinsic
def rows_of(typingctx, view, first, count):
    """``count`` rows of a View of two dimensions."""

    def codegen(context, builder, signature, args):
        data, (_, width) = _parts(context, builder, view, args[0])
        at = builder.mul(context.cast(builder, args[1], first, types.int64), width)
        shape = [context.cast(builder, args[2], count, types.int64), width]
        return _view(context, builder, view, builder.gep(data, [at]), shape)

    return view(view, first, count), codegen


@intrinsic
def item(typingctx, view, k):
    """A number of a View, by its place in memory."""

    def codegen(context, builder, signature, args):
        data, _ = _parts(context, builder, view, args[0])
        value = builder.load(builder.gep(data, [context.cast(builder, args[1], k, types.int64)]))
        return context.data_model_manager[view.dtype].from_data(builder, value)

    return view.dtype(view, k), codegen


@intrinsic
def put(typingctx, view, k, number):
    """Write a number to its place in memory."""

    def codegen(context, builder, signature, args):
        data, _ = _parts(context, builder, view, args[0])
        value = context.cast(builder, args[2], number, view.dtype)
        builder.store(value, builder.gep(data, [context.cast(builder, args[1], k, types.int64)]))
        return context.get_dummy_value()

    return types.none(view, k, number), codegen


@intrinsic
def at_address(typingctx, like, address, size):
    """The View of ``size`` numbers at an address, of the dtype of ``like``."""
    kind = View(like.dtype, 1)

    def codegen(context, builder, signature, args):
        return _view(context, builder, kind, args[1], [context.cast(builder, args[2], size, types.int64)])

    return kind(like, address, size), codegen
