"""The formulas of edges, compiled for the CPU: ``of_lanes`` takes `Lanes` of numbers, ``of_one`` one number."""

from sparse_dnm.kernels import edge_formulas, lanes, vector_math
from sparse_dnm.kernels.jit import compile_formulas, inner

of_one = compile_formulas(edge_formulas, inner)
of_lanes = compile_formulas(
    edge_formulas,
    inner,
    math=vector_math,
    select=lanes.select,
    sin_pi=vector_math.sin_pi,
    cos_pi=vector_math.cos_pi,
)
