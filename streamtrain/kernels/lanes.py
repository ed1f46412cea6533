"""Vectors of a fixed number of lanes for kernels: places in arrays in, vectors and arrays out.

numba vectorises a loop as it sees fit, and sums the remainder apart. A vector of a cache line, or
of several, stays in registers instead, and what a lane computes does not depend on its neighbours.
The number of lanes is the length of a tuple, which numba knows while it compiles; LLVM cuts
vectors that are wider than the machine's. Offsets count entries of a C-contiguous array, and are
not checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.core.errors import TypingError
from numba.extending import register_model

intrinsic: Any = extending.intrinsic  # its types know nothing of what it makes
LINE = 64  # bytes of a cache line


def lanes_of(dtype: Any) -> int:
    """Lanes of `dtype` in a cache line."""
    return LINE // int(np.dtype(dtype).itemsize)


class Lanes(types.Type):
    """numba's type of a vector."""

    def __init__(self, item: Any, count: int) -> None:
        self.item, self.count = item, count
        super().__init__(name=f"Lanes({item}, {count})")


@register_model(Lanes)
class _Model(PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        item = ir.FloatType() if kind.item == types.float32 else ir.DoubleType()
        super().__init__(manager, kind, ir.VectorType(item, kind.count))


def _contiguous(array):
    """Refuse arrays whose entries do not lie side by side, as offsets know no strides."""
    if array.layout != "C":
        raise TypingError(f"lanes are of C-contiguous arrays; got {array}")


def _entry(context, builder, array, value, offset):
    """Pointer to the entry of `array` at `offset`."""
    return builder.gep(context.make_array(array)(context, builder, value).data, [offset])


def _place(context, builder, array, value, offset, kind):
    """Pointer to the lanes of `array` from `offset` on."""
    whole = context.get_value_type(kind).as_pointer()
    return builder.bitcast(_entry(context, builder, array, value, offset), whole)


def _everywhere(context, builder, number, dtype, kind):
    """Lanes that all hold `number`, which is of `dtype`."""
    nothing = ir.Constant(context.get_value_type(kind), ir.Undefined)
    number = context.cast(builder, number, dtype, kind.item)
    one = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    first = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, nothing, first)


@intrinsic
def load(typing, array, offset, width):
    """Read the lanes of `array` from `offset` on, as many as the tuple `width` is long."""
    _contiguous(array)
    kind = Lanes(array.dtype, width.count)

    def code(context, builder, signature, args):
        place = _place(context, builder, array, args[0], args[1], kind)
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return kind(array, types.intp, width), code


@intrinsic
def store(typing, array, offset, lanes):
    """Write lanes to `array` from `offset` on."""
    _contiguous(array)

    def code(context, builder, signature, args):
        place = _place(context, builder, array, args[0], args[1], lanes)
        builder.store(args[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), code


@intrinsic
def fill(typing, value, array, width):
    """`value` in every lane, as a number of the dtype of `array`."""
    kind = Lanes(array.dtype, width.count)

    def code(context, builder, signature, args):
        return _everywhere(context, builder, args[0], value, kind)

    return kind(value, array, width), code


@intrinsic
def spread(typing, source, offset, array, width):
    """The number of `source` at `offset` in every lane, as a number of the dtype of `array`.

    Cheaper than `fill(source[offset], ...)`, where numba allows for a negative place.
    """
    _contiguous(source)
    kind = Lanes(array.dtype, width.count)

    def code(context, builder, signature, args):
        number = builder.load(_entry(context, builder, source, args[0], args[1]))
        return _everywhere(context, builder, number, source.dtype, kind)

    return kind(source, types.intp, array, width), code


@intrinsic
def row_of(typing, indices, offset, width):
    """Where the row of lanes begins that `indices` names at `offset`."""
    _contiguous(indices)

    def code(context, builder, signature, args):
        row = builder.load(_entry(context, builder, indices, args[0], args[1]))
        row = context.cast(builder, row, indices.dtype, types.intp)
        return builder.mul(row, ir.Constant(row.type, width.count))

    return types.intp(indices, types.intp, width), code


@intrinsic
def multiply_add(typing, a, b, c):
    """Give a b + c, rounded once where the machine can."""

    def code(context, builder, signature, args):
        vector = context.get_value_type(a)
        name = f"llvm.fmuladd.v{a.count}f{a.item.bitwidth}"
        kind = ir.FunctionType(vector, [vector] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return a(a, a, a), code
