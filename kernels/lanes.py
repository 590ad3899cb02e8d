"""Sixteen numbers side by side for Numba: what the edge kernels compute with.

Loops over `Lanes` are vector instructions whatever LLVM's loop vectoriser makes of them, without a scalar loop for
the rest of a row: loads and stores take a mask.  A scalar beside Lanes is rounded to their dtype, literals included,
so the same text computes in float32 and in float64.  LLVM splits vectors that the machine is too narrow for.
Places are in elements; nothing is bounds-checked.
"""

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models, register_default
from numba.core.errors import TypingError
from numba.extending import intrinsic, lower_builtin, type_callable

COUNT = 16
SCALARS = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.boolean: ir.IntType(1),
}
SUFFIXES = {types.float32: "f32", types.float64: "f64", types.int32: "i32", types.int64: "i64", types.boolean: "i1"}


class Lanes(types.Type):
    """COUNT numbers of ``dtype``; of bool: a mask."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


Mask = Lanes(types.boolean)


def vector(dtype):
    """LLVM's type of Lanes."""
    return ir.VectorType(SCALARS[dtype], COUNT)


@register_default(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, vector(fe_type.dtype))


def constant(value, dtype):
    """A Python number in every lane."""
    return ir.Constant(vector(dtype), [ir.Constant(SCALARS[dtype], value)] * COUNT)


def _iota(start=0, size=COUNT):
    """int32 start, start + 1, .."""
    kind = ir.IntType(32)
    return ir.Constant(ir.VectorType(kind, size), [ir.Constant(kind, start + k) for k in range(size)])


def _splat(builder, value, size=COUNT):
    kind = ir.VectorType(value.type, size)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), size), None)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def _slice(builder, value, start, size):
    """``size`` lanes from the lane ``start`` on."""
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), _iota(start, size))


def lift(context, builder, value, kind, dtype):
    """``value`` of Numba's type ``kind``, Lanes or a scalar, as Lanes of ``dtype``."""
    return value if isinstance(kind, Lanes) else _splat(builder, context.cast(builder, value, kind, dtype))


def call(builder, name, result, *arguments):
    """Call LLVM's intrinsic ``name``."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def math(builder, name, dtype, *arguments):
    """Call LLVM's lane-wise intrinsic ``name``."""
    return call(builder, f"llvm.{name}.v{COUNT}{SUFFIXES[dtype]}", vector(dtype), *arguments)


def _dtype(*kinds):
    """The dtype that Lanes and scalars have together, None where there are no Lanes or several dtypes."""
    found = {kind.dtype for kind in kinds if isinstance(kind, Lanes)}
    fits = all(isinstance(kind, (Lanes, types.Number)) for kind in kinds)
    return found.pop() if len(found) == 1 and fits else None


def _operator(function, emit, compares=False):
    """Let ``function`` take Lanes: ``emit(builder, dtype, a, b)``."""

    @type_callable(function)
    def infer(context):
        def typer(a, b):
            dtype = _dtype(a, b)
            return None if dtype is None else Mask if compares else Lanes(dtype)

        return typer

    def lower(context, builder, signature, args):
        dtype = _dtype(*signature.args)
        return emit(
            builder, dtype, *(lift(context, builder, *each, dtype) for each in zip(args, signature.args, strict=True))
        )

    for kinds in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(function, *kinds)(lower)


def _arithmetic(name):
    def emit(builder, dtype, a, b):
        return getattr(builder, "f" + name if isinstance(dtype, types.Float) else name)(a, b)

    return emit


def _comparison(sign):
    def emit(builder, dtype, a, b):
        if isinstance(dtype, types.Float):
            return builder.fcmp_ordered(sign, a, b)
        return builder.icmp_signed(sign, a, b)

    return emit


for _name in ("add", "sub", "mul"):
    _operator(getattr(operator, _name), _arithmetic(_name))
    _operator(getattr(operator, "i" + _name), _arithmetic(_name))
_operator(operator.truediv, lambda builder, dtype, a, b: builder.fdiv(a, b))
_operator(operator.and_, lambda builder, dtype, a, b: builder.and_(a, b))
for _name, _sign in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!=")):
    _operator(getattr(operator, _name), _comparison(_sign), compares=True)
_operator(max, lambda builder, dtype, a, b: math(builder, "maximum", dtype, a, b))  # NaN stays NaN
_operator(min, lambda builder, dtype, a, b: math(builder, "minimum", dtype, a, b))


def _unary(function, emit):
    @type_callable(function)
    def infer(context):
        return lambda a: a if isinstance(a, Lanes) else None

    @lower_builtin(function, Lanes)
    def lower(context, builder, signature, args):
        return emit(builder, signature.return_type.dtype, *args)


_unary(operator.neg, lambda builder, dtype, a: builder.fneg(a))
_unary(operator.invert, lambda builder, dtype, a: builder.not_(a))
_unary(abs, lambda builder, dtype, a: math(builder, "fabs", dtype, a))


def lanewise(name, count):
    """The function of ``count`` Lanes or scalars that LLVM calls ``name``."""

    def typed(kinds):
        dtype = _dtype(*kinds)
        if dtype is None:
            raise TypingError(f"{name} of {kinds}")

        def codegen(context, builder, signature, args):
            lifted = (lift(context, builder, *each, dtype) for each in zip(args, signature.args, strict=True))
            return math(builder, name, dtype, *lifted)

        return Lanes(dtype)(*kinds), codegen

    return {
        1: intrinsic(lambda typingctx, a: typed((a,))),
        2: intrinsic(lambda typingctx, a, b: typed((a, b))),
        3: intrinsic(lambda typingctx, a, b, c: typed((a, b, c))),
    }[count]


@intrinsic
def fill(typingctx, array, value):
    """The same number, of the array's dtype, in every lane."""

    def codegen(context, builder, signature, args):
        return lift(context, builder, args[1], value, array.dtype)

    return Lanes(array.dtype)(array, value), codegen


@intrinsic
def first(typingctx, count):
    """The mask of the first ``count`` lanes."""

    def codegen(context, builder, signature, args):
        size = context.cast(builder, args[0], count, types.int32)
        return builder.icmp_signed("<", _iota(), _splat(builder, size))

    return Mask(count), codegen


@intrinsic
def ramp(typingctx, start):
    """int32 start, start + 1, .."""

    def codegen(context, builder, signature, args):
        return builder.add(_splat(builder, context.cast(builder, args[0], start, types.int32)), _iota())

    return Lanes(types.int32)(start), codegen


@intrinsic
def convert(typingctx, x, array):
    """Integers or floats as numbers of the float dtype of ``array``."""
    target = array.dtype

    def codegen(context, builder, signature, args):
        if isinstance(x.dtype, types.Integer):
            return builder.sitofp(args[0], vector(target))
        if x.dtype.bitwidth == target.bitwidth:
            return args[0]
        way = builder.fpext if x.dtype.bitwidth < target.bitwidth else builder.fptrunc
        return way(args[0], vector(target))

    return Lanes(target)(x, array), codegen


@intrinsic
def select(typingctx, mask, a, b):
    """a where the mask is set, else b."""
    dtype = _dtype(a, b)

    def codegen(context, builder, signature, args):
        a_b = (lift(context, builder, *each, dtype) for each in zip(args[1:], signature.args[1:], strict=True))
        return builder.select(args[0], *a_b)

    return Lanes(dtype)(mask, a, b), codegen


@intrinsic
def count(typingctx, mask):
    """How many lanes the mask has set."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(COUNT))
        return builder.zext(builder.ctpop(bits), ir.IntType(64))

    return types.int64(mask), codegen


@intrinsic
def total(typingctx, x):
    """Sum of the lanes, by halves."""

    def codegen(context, builder, signature, args):
        value, size = args[0], COUNT
        while size > 1:
            size //= 2
            low, high = (_slice(builder, value, start, size) for start in (0, size))
            value = builder.fadd(low, high)
        out = builder.extract_element(value, ir.Constant(ir.IntType(32), 0))
        return context.cast(builder, out, x.dtype, types.float64)

    return types.float64(x), codegen


def _address(context, builder, kind, array, at):
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _aligned(dtype):
    return ir.Constant(ir.IntType(32), 1 if dtype == types.boolean else dtype.bitwidth // 8)


@intrinsic
def load(typingctx, array, at, mask, other):
    """Numbers from place ``at`` of a contiguous array, ``other`` where the mask is not set."""
    dtype = array.dtype

    def codegen(context, builder, signature, args):
        address = _address(context, builder, array, args[0], context.cast(builder, args[1], at, types.int64))
        rest = lift(context, builder, args[3], other, dtype)
        name = f"llvm.masked.load.v{COUNT}{SUFFIXES[dtype]}.p0"
        return call(builder, name, vector(dtype), address, _aligned(dtype), args[2], rest)

    return Lanes(dtype)(array, at, mask, other), codegen


@intrinsic
def store(typingctx, array, at, mask, x):
    """Write the lanes of the mask to the places from ``at`` on."""
    dtype = array.dtype

    def codegen(context, builder, signature, args):
        address = _address(context, builder, array, args[0], context.cast(builder, args[1], at, types.int64))
        value, suffix = lift(context, builder, args[3], x, dtype), SUFFIXES[dtype]
        if dtype == types.boolean:  # a byte in memory
            value, suffix = builder.zext(value, ir.VectorType(ir.IntType(8), COUNT)), "i8"
        name = f"llvm.masked.store.v{COUNT}{suffix}.p0"
        call(builder, name, ir.VoidType(), value, address, _aligned(dtype), args[2])
        return context.get_dummy_value()

    return types.none(array, at, mask, x), codegen


@intrinsic
def column(typingctx, matrix, row, at, mask):
    """Column ``at`` of the rows from ``row`` on of a C-contiguous matrix, 0 where the mask is not set."""
    dtype = matrix.dtype

    def codegen(context, builder, signature, args):
        array = context.make_array(matrix)(context, builder, args[0])
        line, wide = builder.extract_value(array.strides, 0), vector(types.int64)
        start = builder.ptrtoint(_address(context, builder, matrix, args[0], args[2]), ir.IntType(64))
        rows = builder.add(_splat(builder, args[1]), builder.sext(_iota(), wide))
        places = builder.add(builder.mul(rows, _splat(builder, line)), _splat(builder, start))
        addresses = builder.inttoptr(places, ir.VectorType(ir.PointerType(), COUNT))
        name = f"llvm.masked.gather.v{COUNT}{SUFFIXES[dtype]}.v{COUNT}p0"
        return call(builder, name, vector(dtype), addresses, _aligned(dtype), args[3], constant(0, dtype))

    return Lanes(dtype)(matrix, row, at, mask), codegen


@intrinsic
def pack(typingctx, array, at, mask, x):
    """Write the lanes of the mask one after the other, from place ``at`` on."""
    dtype = array.dtype
    parts = dtype.bitwidth * COUNT // 512 or 1  # LLVM 22 stores halves of a longer vector at a wrong alignment
    size = COUNT // parts

    def codegen(context, builder, signature, args):
        address = _address(context, builder, array, args[0], context.cast(builder, args[1], at, types.int64))
        for part in range(parts):
            chosen, value = (_slice(builder, whole, part * size, size) for whole in args[2:])
            suffix = f"v{size}{SUFFIXES[dtype]}"
            undefined = ir.Constant(value.type, ir.Undefined)
            packed = call(builder, f"llvm.experimental.vector.compress.{suffix}", value.type, value, chosen, undefined)
            found = builder.ctpop(builder.zext(builder.bitcast(chosen, ir.IntType(size)), ir.IntType(32)))
            kept = builder.icmp_signed("<", _iota(0, size), _splat(builder, found, size))
            call(builder, f"llvm.masked.store.{suffix}.p0", ir.VoidType(), packed, address, _aligned(dtype), kept)
            address = builder.gep(address, [found])
        return context.get_dummy_value()

    return types.none(array, at, mask, x), codegen


@intrinsic
def unpack(typingctx, array, at, mask):
    """The numbers from place ``at`` on, one for each lane of the mask; 0 in the others."""
    dtype = array.dtype

    def codegen(context, builder, signature, args):
        address = _address(context, builder, array, args[0], context.cast(builder, args[1], at, types.int64))
        name = f"llvm.masked.expandload.v{COUNT}{SUFFIXES[dtype]}"
        return call(builder, name, vector(dtype), address, args[2], constant(0, dtype))

    return Lanes(dtype)(array, at, mask), codegen
