"""Vectors in registers for Numba: a vector type and the few operations that the CPU kernels need.

LLVM keeps a loop-carried vector in registers where Numba's own array loops reload and store it at every edge.
A ``Vector`` of ``width`` numbers is a struct of 64-byte LLVM vectors, with one shorter part where the width asks
for it; LLVM splits parts that the machine is too narrow for.  Multiply-adds are explicit ``llvm.fma``, so that the
same bits come out wherever a kernel is inlined.  Offsets are in elements; nothing is bounds-checked.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models, register_default
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload_attribute
from sparse_dnm.kernels import lanes, machine

PART_BYTES = 64
NARROW = 32  # numbers of a Vector up to which several sums are made at once
GROUP = 8  # edges whose dot products are reduced together by `lane_sums`


class Vector(types.Type):
    """``width`` numbers of a float ``dtype``, held in registers."""

    def __init__(self, dtype, width):
        self.dtype, self.width = dtype, width
        super().__init__(name=f"Vector({dtype}, {width})")


def _parts(vector):
    """LLVM types of the parts of a Vector."""
    scalar = ir.FloatType() if vector.dtype == types.float32 else ir.DoubleType()
    lanes = PART_BYTES * 8 // vector.dtype.bitwidth
    counts = [lanes] * (vector.width // lanes)
    rest = vector.width % lanes
    while rest:
        lanes //= 2
        if rest >= lanes:
            counts.append(lanes)
            rest -= lanes
    return [ir.VectorType(scalar, count) for count in counts]


@register_default(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.LiteralStructType(_parts(fe_type)))


def _unpack(builder, value):
    return [builder.extract_value(value, k) for k in range(len(value.type.elements))]


def _pack(builder, parts):
    value = ir.Constant(ir.LiteralStructType([p.type for p in parts]), ir.Undefined)
    for k, part in enumerate(parts):
        value = builder.insert_value(value, part, k)
    return value


def _splat(builder, scalar, vector_type):
    first = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector_type.count), None)
    return builder.shuffle_vector(first, ir.Constant(vector_type, ir.Undefined), zeros)


def _shuffle(builder, a, b, picks):
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(picks)), [ir.Constant(ir.IntType(32), p) for p in picks])
    return builder.shuffle_vector(a, b, mask)


def _fma(builder, a, b, c):
    bits = 32 if isinstance(a.type.element, ir.FloatType) else 64
    name = f"llvm.fma.v{a.type.count}f{bits}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


def _data(context, builder, array_type, array):
    """Address of the first element of a contiguous array or of what a pointer points to."""
    if isinstance(array_type, types.CPointer):
        return array
    return context.make_array(array_type)(context, builder, array).data


def _addresses(context, builder, array_type, array, offset, parts):
    """Addresses of consecutive parts, starting ``offset`` elements into an array or pointer."""
    data = _data(context, builder, array_type, array)
    for part in parts:
        yield builder.bitcast(builder.gep(data, [offset]), part.as_pointer())
        offset = builder.add(offset, ir.Constant(offset.type, part.count))


class Width(types.Opaque):
    """A vector width that kernels hand on as an argument: known to the compiler, nothing at run time."""

    def __init__(self, count):
        self.count = count
        super().__init__(name=f"Width({count})")


register_default(Width)(models.OpaqueModel)


@intrinsic
def width_of(typingctx, count):
    """The Width of a compile-time constant."""
    if not isinstance(count, types.IntegerLiteral):
        raise TypingError("the width of a vector must be a compile-time constant")

    def codegen(context, builder, signature, args):
        return context.get_dummy_value()

    return Width(count.literal_value)(count), codegen


@overload_attribute(Width, "count")
def _count(width):
    count = width.count
    return lambda width: count


@intrinsic
def sums(typingctx, array, width):
    """How many Vectors of sums fit the registers beside what is added to them: 1, 2 or 4."""
    vectors = -(-width.count * array.dtype.bitwidth // (8 * machine.VECTOR_BYTES))
    fitting = machine.REGISTERS // 2 // vectors if width.count <= NARROW else 1
    count = 4 if fitting >= 4 else max(fitting, 1)
    count = 2 if count == 3 else count

    def codegen(context, builder, signature, args):
        return context.get_constant(types.int64, count)

    return types.int64(array, width), codegen


@intrinsic
def pointers(typingctx, *arrays):
    """The addresses of contiguous arrays, as a tuple; indexed like arrays, but neither wrapped nor counted.

    An index below 0 of a Numba array counts from its end, a choice that keeps loops from vectorising, and a reference
    to an array is counted atomically.
    """
    addresses = types.Tuple([types.CPointer(array.dtype) for array in arrays])

    def codegen(context, builder, signature, args):
        data = [
            _data(context, builder, array, builder.extract_value(args[0], k))
            for k, array in enumerate(signature.args[0])
        ]
        return context.make_tuple(builder, addresses, data)

    return addresses(types.StarArgTuple(arrays)), codegen


@intrinsic
def zeros(typingctx, array, width):
    """Vector of ``width`` zeros of the array's dtype."""
    vector = Vector(array.dtype, width.count)

    def codegen(context, builder, signature, args):
        return _pack(builder, [ir.Constant(part, None) for part in _parts(vector)])

    return vector(array, width), codegen


@intrinsic
def load(typingctx, array, offset, width):
    """array.flat[offset : offset + width]."""
    vector = Vector(array.dtype, width.count)
    align = array.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        parts = _parts(vector)
        pointers = _addresses(context, builder, signature.args[0], args[0], args[1], parts)
        return _pack(builder, [builder.load(p, align=align) for p in pointers])

    return vector(array, types.int64, width), codegen


@intrinsic
def store(typingctx, array, offset, vector):
    """array.flat[offset : offset + vector.width] = vector."""
    align = array.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        parts = _unpack(builder, args[2])
        pointers = _addresses(context, builder, signature.args[0], args[0], args[1], [p.type for p in parts])
        for part, pointer in zip(parts, pointers, strict=True):
            builder.store(part, pointer, align=align)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), codegen


@intrinsic
def prefetch(typingctx, array, at):
    """Ask for the cache line of array[at]; any place is allowed."""

    def codegen(context, builder, signature, args):
        address = builder.gep(_data(context, builder, signature.args[0], args[0]), [args[1]])
        address = builder.bitcast(address, cgutils.voidptr_t)
        kind = ir.FunctionType(ir.VoidType(), [address.type, *[ir.IntType(32)] * 3])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, *(ir.Constant(ir.IntType(32), number) for number in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@intrinsic
def scaled_add(typingctx, total, scale, vector):
    """total + scale * vector, with a scalar scale."""

    def codegen(context, builder, signature, args):
        out = [
            _fma(builder, _splat(builder, args[1], v.type), v, t)
            for t, v in zip(_unpack(builder, args[0]), _unpack(builder, args[2]), strict=True)
        ]
        return _pack(builder, out)

    return vector(total, vector.dtype, vector), codegen


@intrinsic
def affine(typingctx, weight, vector, bias):
    """weight * vector + bias, with scalar weight and bias."""

    def codegen(context, builder, signature, args):
        out = [
            _fma(builder, _splat(builder, args[0], v.type), v, _splat(builder, args[2], v.type))
            for v in _unpack(builder, args[1])
        ]
        return _pack(builder, out)

    return vector(vector.dtype, vector, vector.dtype), codegen


@intrinsic
def leaky(typingctx, z, vector, slope):
    """vector where z > 0, else slope * vector."""

    def codegen(context, builder, signature, args):
        out = []
        for x, v in zip(_unpack(builder, args[0]), _unpack(builder, args[1]), strict=True):
            positive = builder.fcmp_ordered(">", x, ir.Constant(x.type, None))
            out.append(builder.select(positive, v, builder.fmul(_splat(builder, args[2], v.type), v)))
        return _pack(builder, out)

    return vector(z, vector, vector.dtype), codegen


@intrinsic
def multiply_add(typingctx, a, b, c):
    """a * b + c"""

    def codegen(context, builder, signature, args):
        triples = zip(*(_unpack(builder, arg) for arg in args), strict=True)
        return _pack(builder, [_fma(builder, *triple) for triple in triples])

    return a(a, b, c), codegen


@intrinsic
def leaky_each(typingctx, z, slope):
    """z where z > 0, else slope * z, with a Vector of slopes."""

    def codegen(context, builder, signature, args):
        out = []
        for x, s in zip(*(_unpack(builder, arg) for arg in args), strict=True):
            out.append(builder.select(builder.fcmp_ordered(">", x, ir.Constant(x.type, None)), x, builder.fmul(s, x)))
        return _pack(builder, out)

    return z(z, slope), codegen


@intrinsic
def leaky_pick(typingctx, z, vector, slope):
    """vector where z > 0, else slope * vector, with a Vector of slopes."""

    def codegen(context, builder, signature, args):
        out = []
        for x, v, s in zip(*(_unpack(builder, arg) for arg in args), strict=True):
            out.append(builder.select(builder.fcmp_ordered(">", x, ir.Constant(x.type, None)), v, builder.fmul(s, v)))
        return _pack(builder, out)

    return z(z, vector, slope), codegen


@intrinsic
def at(typingctx, pointer, offset):
    """The pointer moved on by so many numbers."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.int64), codegen


@intrinsic
def all_are(typingctx, array, at, width, value):
    """array[at : at + width], of int8, are all ``value``."""
    size = width.count

    def codegen(context, builder, signature, args):
        kind = ir.VectorType(ir.IntType(8), size)
        address = builder.gep(_data(context, builder, signature.args[0], args[0]), [args[1]])
        wanted = _splat(builder, context.cast(builder, args[3], value, types.int8), kind)
        equal = builder.icmp_signed("==", builder.load(builder.bitcast(address, kind.as_pointer()), align=1), wanted)
        bits = builder.bitcast(equal, ir.IntType(size))
        return builder.icmp_signed("==", bits, ir.Constant(bits.type, -1))

    return types.boolean(array, types.int64, width, value), codegen


@intrinsic
def add(typingctx, a, b):
    """a + b"""

    def codegen(context, builder, signature, args):
        pairs = zip(_unpack(builder, args[0]), _unpack(builder, args[1]), strict=True)
        return _pack(builder, [builder.fadd(x, y) for x, y in pairs])

    return a(a, b), codegen


def _lane_products(builder, a, b):
    """Products of two Vectors, summed into GROUP lanes."""
    by_count = {}
    for x, y in zip(_unpack(builder, a), _unpack(builder, b), strict=True):
        count = x.type.count
        by_count[count] = _fma(builder, x, y, by_count[count]) if count in by_count else builder.fmul(x, y)
    total = None
    for count in sorted(by_count, reverse=True):
        part = by_count[count]
        while count > GROUP:
            count //= 2
            low = _shuffle(builder, part, part, range(count))
            high = _shuffle(builder, part, part, range(count, 2 * count))
            part = builder.fadd(low, high)
        if count < GROUP:
            part = _shuffle(builder, part, ir.Constant(part.type, None), [*range(count), *[count] * (GROUP - count)])
        total = part if total is None else builder.fadd(total, part)
    return total


def _transpose_sum(builder, vectors):
    """Lane e of the result is the sum of vector e's lanes: a tree of pairwise merges, log2(GROUP) deep."""
    step = 1
    while len(vectors) > 1:
        low = [k + GROUP * s for k0 in range(0, GROUP, 2 * step) for s in (0, 1) for k in range(k0, k0 + step)]
        high = [k + step for k in low]
        vectors = [
            builder.fadd(_shuffle(builder, a, b, low), _shuffle(builder, a, b, high))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        step *= 2
    return vectors[0]


def _lane_sum(builder, lanes):
    """Sum of the lanes, added in the same order as by `_transpose_sum`."""
    for step in (1, 2, 4):
        lanes = builder.fadd(lanes, _shuffle(builder, lanes, lanes, [lane ^ step for lane in range(GROUP)]))
    return builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))


@intrinsic
def products(typingctx, a, b):
    """Products of two Vectors, summed into GROUP lanes: a dot product but for its last additions."""

    def codegen(context, builder, signature, args):
        lanes = _lane_products(builder, args[0], args[1])
        return _regroup(builder, lanes, signature.return_type)

    return Vector(a.dtype, GROUP)(a, b), codegen


def _regroup(builder, lanes, vector):
    """GROUP lanes as a Vector, whose parts may be shorter."""
    parts, at = [], 0
    for part in _parts(vector):
        parts.append(_shuffle(builder, lanes, lanes, range(at, at + part.count)))
        at += part.count
    return _pack(builder, parts)


@intrinsic
def lane_sums(typingctx, v0, v1, v2, v3, v4, v5, v6, v7):
    """Vector of the sums of these Vectors' GROUP lanes each."""

    def codegen(context, builder, signature, args):
        result = _transpose_sum(builder, [builder.extract_value(arg, 0) for arg in args])
        return _regroup(builder, result, signature.return_type)

    return v0(v0, v1, v2, v3, v4, v5, v6, v7), codegen


@intrinsic
def scatter(typingctx, array, start, places, first, vector):
    """array[start + (places[first + lane] >> 32)] = vector[lane]; ``places`` int64."""

    def codegen(context, builder, signature, args):
        out = _data(context, builder, signature.args[0], args[0])
        place = _data(context, builder, signature.args[2], args[2])
        at = args[3]
        for part in _unpack(builder, args[4]):
            for lane in range(part.type.count):
                index = builder.lshr(builder.load(builder.gep(place, [at])), ir.Constant(ir.IntType(64), 32))
                number = builder.extract_element(part, ir.Constant(ir.IntType(32), lane))
                builder.store(number, builder.gep(out, [builder.add(args[1], index)]))
                at = builder.add(at, ir.Constant(at.type, 1))
        return context.get_dummy_value()

    return types.void(array, types.int64, places, types.int64, vector), codegen


@intrinsic
def put(typingctx, array, vector, i0, i1, i2, i3, i4, i5, i6, i7):
    """array[i7] = vector[7], then array[i6] = vector[6] ..: the first of equal places keeps its number."""

    def codegen(context, builder, signature, args):
        (numbers,) = _unpack(builder, args[1])
        for lane, index in reversed(list(enumerate(args[2:]))):
            number = builder.extract_element(numbers, ir.Constant(ir.IntType(32), lane))
            builder.store(number, builder.gep(args[0], [index]))
        return context.get_dummy_value()

    return types.void(array, vector, *[types.int64] * GROUP), codegen


@intrinsic
def lanes_of(typingctx, vector):
    """A Vector of GROUP numbers as Lanes, zeros behind them."""

    def codegen(context, builder, signature, args):
        (numbers,) = _unpack(builder, args[0])
        picks = [min(lane, GROUP) for lane in range(lanes.COUNT)]
        return _shuffle(builder, numbers, ir.Constant(numbers.type, None), picks)

    return lanes.Lanes(vector.dtype)(vector), codegen


@intrinsic
def first_of(typingctx, numbers):
    """The first GROUP of Lanes as a Vector."""

    def codegen(context, builder, signature, args):
        return _pack(builder, [_shuffle(builder, args[0], args[0], range(GROUP))])

    return Vector(numbers.dtype, GROUP)(numbers), codegen


@intrinsic
def dot(typingctx, a, b):
    """<a, b>, added in the same order as `products` and `lane_sums`."""

    def codegen(context, builder, signature, args):
        return _lane_sum(builder, _lane_products(builder, args[0], args[1]))

    return a.dtype(a, b), codegen


@intrinsic
def lane_total(typingctx, vector):
    """Sum of all lanes, by halves."""

    def codegen(context, builder, signature, args):
        first, *others = _unpack(builder, args[0])
        for part in others:  # as long as the first: the width is a power of two
            first = builder.fadd(first, part)
        size = first.type.count
        while size > 1:
            size //= 2
            low, high = (_shuffle(builder, first, first, range(start, start + size)) for start in (0, size))
            first = builder.fadd(low, high)
        return builder.extract_element(first, ir.Constant(ir.IntType(32), 0))

    return vector.dtype(vector), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c of three numbers, rounded once."""

    def codegen(context, builder, signature, args):
        name = f"llvm.fma.f{a.bitwidth}"
        kind = ir.FunctionType(args[0].type, [args[0].type] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return a(a, a, a), codegen


@intrinsic
def leaky_one(typingctx, z, number, slope):
    """number where z > 0, else slope * number, of three numbers, without a branch."""

    def codegen(context, builder, signature, args):
        positive = builder.fcmp_ordered(">", args[0], ir.Constant(args[0].type, 0))
        return builder.select(positive, args[1], builder.fmul(args[2], args[1]))

    return z(z, z, z), codegen


@intrinsic
def dot_and_sum(typingctx, a, b):
    """(<a, b>, sum of a), each added in the same order as `dot`."""
    pair = types.UniTuple(a.dtype, 2)

    def codegen(context, builder, signature, args):
        ones = _pack(builder, [ir.Constant(p, [1.0] * p.count) for p in _parts(a)])
        sums = [_lane_sum(builder, _lane_products(builder, args[0], other)) for other in (args[1], ones)]
        return context.make_tuple(builder, pair, sums)

    return pair(a, b), codegen


@intrinsic
def transpose(typingctx, v0, v1, v2, v3, v4, v5, v6, v7):
    """The GROUP x GROUP block of these rows as a tuple of its columns (Eklundh 1972: swaps of halves)."""
    block = types.UniTuple(v0, GROUP)

    def codegen(context, builder, signature, args):
        rows = [builder.extract_value(arg, 0) for arg in args]
        for step in (4, 2, 1):
            for k in range(GROUP):
                if not k & step:
                    a, b = rows[k], rows[k + step]
                    low = [lane + GROUP - step if lane & step else lane for lane in range(GROUP)]
                    high = [lane + GROUP if lane & step else lane + step for lane in range(GROUP)]
                    rows[k], rows[k + step] = _shuffle(builder, a, b, low), _shuffle(builder, a, b, high)
        return context.make_tuple(builder, block, [_pack(builder, [row]) for row in rows])

    return block(v0, v1, v2, v3, v4, v5, v6, v7), codegen
