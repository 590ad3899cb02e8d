"""Numbers side by side for Numba, as many as COUNT: what the edge kernels compute with.

Loops over `Lanes` are vector instructions whatever LLVM's loop vectoriser makes of them, without a scalar loop for
the rest of a row: loads and stores take a mask.  A scalar beside Lanes is rounded to their dtype, literals included,
so the same text computes in float32 and in float64.  LLVM splits vectors that the machine is too narrow for.
Sixteen float32 fill a register of AVX-512, eight one of AVX2 or two of NEON's; where masks have no registers of their
own, a store looks first whether its mask is full, and AVX2 moves chosen lanes together by a table.
Places are in elements; nothing is bounds-checked.
"""

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models, register_default
from numba.core.errors import TypingError
from numba.extending import intrinsic, lower_builtin, type_callable
from sparse_dnm.kernels import machine

COUNT = 16 if machine.VECTOR_BYTES == 64 else 8
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


_STORED = {types.float32: [], types.float64: []}  # numbers that kernels read from memory


def stored(single, double):
    """A function (builder, dtype) that yields constants, one after the other, in every lane.

    Where there are few registers they are read from a table, as operands of arithmetic: otherwise LLVM spends two
    instructions on each, one on its address.  The table is weak, so that LLVM does not look what is in it.
    """
    starts = {}
    for dtype, numbers in ((types.float32, single), (types.float64, double)):
        starts[dtype] = len(_STORED[dtype])
        _STORED[dtype] += numbers

    def load(builder, dtype):
        numbers = single if dtype == types.float32 else double
        for place, number in enumerate(numbers, starts[dtype]):
            yield _entry(builder, dtype, place) if machine.REGISTERS == 16 else constant(number, dtype)

    return load


def _entry(builder, dtype, place):
    numbers, name = _STORED[dtype], f"sparse_dnm.constants.{SUFFIXES[dtype]}.{len(_STORED[dtype])}"
    table = builder.module.globals.get(name)
    if table is None:
        kind = ir.ArrayType(vector(dtype), len(numbers))
        table = ir.GlobalVariable(builder.module, kind, name)
        table.linkage, table.align = "weak", 64
        table.initializer = ir.Constant(kind, [constant(number, dtype) for number in numbers])
    zero = ir.Constant(ir.IntType(32), 0)
    return builder.load(builder.gep(table, [zero, ir.Constant(ir.IntType(32), place)]), align=32)


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
def hold(typingctx, x, low, high):
    """x within low .. high, NaN where it is NaN: one instruction each."""

    def codegen(context, builder, signature, args):
        value, low, high = args
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)

    return x(x, x, x), codegen


@intrinsic
def fill(typingctx, array, value):
    """The same number, of the array's dtype, in every lane."""

    def codegen(context, builder, signature, args):
        return lift(context, builder, args[1], value, array.dtype)

    return Lanes(array.dtype)(array, value), codegen


@intrinsic
def spread(typingctx, array, at, width):
    """Numbers from place ``at`` on, one for each lane; with a `simd.Width` of 1 the first of them in every lane."""
    dtype = array.dtype

    def codegen(context, builder, signature, args):
        address = _address(context, builder, array, args[0], context.cast(builder, args[1], at, types.int64))
        return _splat(builder, builder.load(address)) if width.count == 1 else _load_all(builder, address, dtype)

    return Lanes(dtype)(array, at, width), codegen


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
    if isinstance(kind, types.CPointer):
        return builder.gep(array, [at])
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _bytes(dtype):
    return 1 if dtype == types.boolean else dtype.bitwidth // 8


def _aligned(dtype):
    return ir.Constant(ir.IntType(32), _bytes(dtype))


def _bits(builder, mask):
    """A mask as an integer."""
    return builder.bitcast(mask, ir.IntType(mask.type.count))


def _full(builder, mask):
    """Are all lanes set?"""
    bits = _bits(builder, mask)
    return builder.icmp_unsigned("==", bits, ir.Constant(bits.type, -1))


@intrinsic
def load(typingctx, array, at, mask, other):
    """Numbers from place ``at`` of a contiguous array, ``other`` where the mask is not set."""
    dtype = array.dtype

    def codegen(context, builder, signature, args):
        address = _address(context, builder, array, args[0], context.cast(builder, args[1], at, types.int64))
        rest = lift(context, builder, args[3], other, dtype)
        name = f"llvm.masked.load.v{COUNT}{SUFFIXES[dtype]}.p0"
        arguments = vector(dtype), address, _aligned(dtype), args[2], rest
        if machine.MASKED_LOADS:
            return call(builder, name, *arguments)
        out = cgutils.alloca_once(builder, vector(dtype))
        with builder.if_else(_full(builder, args[2])) as (whole, part):
            with whole:
                builder.store(_load_all(builder, address, dtype), out)
            with part:
                builder.store(call(builder, name, *arguments), out)
        return builder.load(out)

    return Lanes(dtype)(array, at, mask, other), codegen


def _load_all(builder, address, dtype):
    return builder.load(builder.bitcast(address, vector(dtype).as_pointer()), align=_bytes(dtype))


def _store(builder, address, mask, value, suffix, size, full=None):
    """Write the lanes of the mask; without registers of masks first look whether that is all (``full``)."""

    def masked():
        name = f"llvm.masked.store.v{value.type.count}{suffix}.p0"
        call(builder, name, ir.VoidType(), value, address, ir.Constant(ir.IntType(32), size), mask)

    if machine.MASKS:
        masked()
        return
    with builder.if_else(_full(builder, mask) if full is None else full, likely=True) as (whole, part):
        with whole:
            builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=size)
        with part:
            masked()


@intrinsic
def store(typingctx, array, at, mask, x):
    """Write the lanes of the mask to the places from ``at`` on."""
    dtype = array.dtype

    def codegen(context, builder, signature, args):
        address = _address(context, builder, array, args[0], context.cast(builder, args[1], at, types.int64))
        value, suffix = lift(context, builder, args[3], x, dtype), SUFFIXES[dtype]
        if dtype == types.boolean:  # a byte in memory
            value, suffix = builder.zext(value, ir.VectorType(ir.IntType(8), COUNT)), "i8"
        _store(builder, address, args[2], value, suffix, _bytes(dtype))
        return context.get_dummy_value()

    return types.none(array, at, mask, x), codegen


@intrinsic
def column(typingctx, matrix, row, at, mask):
    """Column ``at`` of the rows from ``row`` on of a C-contiguous matrix; where the mask is not set, of the last row or
    0."""
    dtype = matrix.dtype

    def codegen(context, builder, signature, args):
        array = context.make_array(matrix)(context, builder, args[0])
        line, wide = builder.extract_value(array.strides, 0), vector(types.int64)
        start = builder.ptrtoint(_address(context, builder, matrix, args[0], args[2]), ir.IntType(64))
        rows = builder.add(_splat(builder, args[1]), builder.sext(_iota(), wide))
        chosen = args[3]
        if not machine.MASKS:  # LLVM would ask for every lane whether it is set
            last = builder.sub(builder.extract_value(array.shape, 0), ir.Constant(ir.IntType(64), 1))
            last = _splat(builder, last)
            rows = builder.select(builder.icmp_signed("<", rows, last), rows, last)
            chosen = ir.Constant(chosen.type, [ir.Constant(ir.IntType(1), 1)] * COUNT)
        places = builder.add(builder.mul(rows, _splat(builder, line)), _splat(builder, start))
        addresses = builder.inttoptr(places, ir.VectorType(ir.PointerType(), COUNT))
        name = f"llvm.masked.gather.v{COUNT}{SUFFIXES[dtype]}.v{COUNT}p0"
        return call(builder, name, vector(dtype), addresses, _aligned(dtype), chosen, constant(0, dtype))

    return Lanes(dtype)(matrix, row, at, mask), codegen


def _orders(apart):
    """For each mask of 8 lanes the lanes in the order of the mask: those set first; or, ``apart``, the number of lanes
    set before each, which undoes that."""
    byte = ir.IntType(8)
    rows = []
    for bits in range(256):
        chosen = [lane for lane in range(8) if bits >> lane & 1]
        row = [sum(k < lane for k in chosen) for lane in range(8)] if apart else (chosen + [0] * 8)[:8]
        rows.append(ir.Constant(ir.VectorType(byte, 8), row))
    return ir.Constant(ir.ArrayType(ir.VectorType(byte, 8), 256), rows)


def _rearrange(builder, mask, value, apart):
    """8 lanes of 32 bits in the order that `_orders` has for the mask, by AVX2."""
    name = f"lanes.{'apart' if apart else 'together'}"
    table = builder.module.globals.get(name) or cgutils.global_constant(builder.module, name, _orders(apart))
    table.linkage = "internal"
    row = builder.zext(_bits(builder, mask), ir.IntType(64))
    zero, single = ir.Constant(ir.IntType(64), 0), isinstance(value.type.element, ir.FloatType)
    order = builder.load(builder.gep(table, [zero, row]), align=8)
    order = builder.zext(order, ir.VectorType(ir.IntType(32), 8))
    return call(builder, f"llvm.x86.avx2.perm{'ps' if single else 'd'}", value.type, value, order)


def _by_table(dtype):
    return machine.AVX2 and COUNT == 8 and dtype.bitwidth == 32


def _found(builder, mask):
    """How many lanes are set, int32."""
    return builder.ctpop(builder.zext(_bits(builder, mask), ir.IntType(32)))


@intrinsic
def pack(typingctx, mask, x):
    """The lanes of the mask one after the other, in front; what is behind them is undefined.  Of 32 bits each."""
    if x.dtype.bitwidth != 32:  # see `append`
        raise TypingError(f"pack of {x}: only lanes of 32 bits")

    def codegen(context, builder, signature, args):
        chosen, value = args
        if _by_table(x.dtype):
            return _rearrange(builder, chosen, value, False)
        undefined = ir.Constant(value.type, ir.Undefined)
        name = f"llvm.experimental.vector.compress.v{COUNT}{SUFFIXES[x.dtype]}"
        return call(builder, name, value.type, value, chosen, undefined)

    return x(mask, x), codegen


@intrinsic
def append(typingctx, array, at, last, mask, x):
    """Write the lanes of the mask one after the other, from place ``at`` on; up to ``last`` all places are ours."""
    dtype = array.dtype
    parts = dtype.bitwidth * COUNT // 512 or 1  # LLVM 22 stores halves of a longer vector at a wrong alignment
    size = COUNT // parts

    def codegen(context, builder, signature, args):
        place, end = (context.cast(builder, args[k], kind, types.int64) for k, kind in ((1, at), (2, last)))
        address = _address(context, builder, array, args[0], place)
        for part in range(parts):
            chosen, value = (_slice(builder, whole, part * size, size) for whole in args[3:])
            suffix = f"v{size}{SUFFIXES[dtype]}"
            if _by_table(dtype):
                packed = _rearrange(builder, chosen, value, False)
            else:
                undefined = ir.Constant(value.type, ir.Undefined)
                name = f"llvm.experimental.vector.compress.{suffix}"
                packed = call(builder, name, value.type, value, chosen, undefined)
            found = _found(builder, chosen)
            kept = builder.icmp_signed("<", _iota(0, size), _splat(builder, found, size))
            room = builder.icmp_signed("<=", builder.add(place, ir.Constant(place.type, size)), end)
            _store(builder, address, kept, packed, SUFFIXES[dtype], _bytes(dtype), room)
            address = builder.gep(address, [found])
            place = builder.add(place, builder.zext(found, place.type))
        return context.get_dummy_value()

    return types.none(array, at, last, mask, x), codegen


@intrinsic
def unpack(typingctx, array, at, mask):
    """The numbers from place ``at`` on, one for each lane of the mask; 0 in the others."""
    dtype = array.dtype

    def codegen(context, builder, signature, args):
        address = _address(context, builder, array, args[0], context.cast(builder, args[1], at, types.int64))
        zero, chosen = constant(0, dtype), args[2]
        if _by_table(dtype):
            kept = builder.icmp_signed("<", _iota(), _splat(builder, _found(builder, chosen)))
            name = f"llvm.masked.load.v{COUNT}{SUFFIXES[dtype]}.p0"
            packed = call(builder, name, vector(dtype), address, _aligned(dtype), kept, zero)
            return builder.select(chosen, _rearrange(builder, chosen, packed, True), zero)
        name = f"llvm.masked.expandload.v{COUNT}{SUFFIXES[dtype]}"
        return call(builder, name, vector(dtype), address, chosen, zero)

    return Lanes(dtype)(array, at, mask), codegen
