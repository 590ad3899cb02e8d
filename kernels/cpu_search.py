"""What a search for candidates within many steps leaves to numpy and torch in a single step (DESIGN, 4.1 and 4.7)."""

import math

import numpy as np
from sparse_dnm.kernels.blocks import call, head, row, rows_of
from sparse_dnm.kernels.jit import inner, kernel


@kernel
def all_finite(rows, c):
    """The transformed scalars and the cutoff are numbers."""
    finite = math.isfinite(c)
    for k in range(rows.shape[0]):
        for r in range(rows.shape[1]):
            finite &= math.isfinite(rows[k, r])
    return finite


@kernel
def sum_up(indptr):
    """From the number of candidates of row r in ``indptr[r + 1]`` to a CSR; returns how many they are."""
    indptr[0] = 0
    for r in range(1, indptr.size):
        indptr[r] += indptr[r - 1]
    return indptr[indptr.size - 1]


@kernel
def refer(rows, stale, threshold, before, reference):
    """Where each row was last searched: those that are ``stale`` now, the others as ``before``."""
    scalars = before.shape[1] - 1
    for r in range(before.shape[0]):
        for k in range(scalars):
            reference[r, k] = rows[k, r] if stale[r] else before[r, k]
        reference[r, scalars] = threshold if stale[r] else before[r, scalars]


@kernel
def compose(first, second):
    """Write the places before two changes to ``second``, from the places before each of them (-1: new)."""
    for e in range(second.size):
        if second[e] >= 0:
            second[e] = first[second[e]]


@kernel
def move(origin, before, after):
    """The numbers of candidates at their new places; 0 for new ones."""
    for e in range(origin.size):
        after[e] = before[origin[e]] if origin[e] >= 0 else after.dtype.type(0)


@kernel
def give_slots(origin, before, after, taken, births):
    """Old candidates keep their slot, new ones take the lowest free ones, whose ``births`` are counted.

    Scratch: bool taken (capacity,).
    """
    taken[:] = False
    for e in range(origin.size):
        if origin[e] >= 0:
            after[e] = before[origin[e]]
            taken[after[e]] = True
    free = np.int64(0)
    for e in range(origin.size):
        if origin[e] < 0:
            while taken[free]:
                free += 1
            after[e] = free
            births[free] += 1
            free += 1


# Candidates live in three places of the memory, one after the other: those of before, of one search and of a second.


@inner
def search(entries, s, w, at, to, n, stale, c, threshold):
    """Search the ``stale`` rows: from the ``n`` candidates at place ``at`` to those at ``to``; returns their number, -1
    where they are too many or a number is not finite."""
    if not call(entries.all_finite, (w.rows, c)):
        return -1
    n_omega = n if s.free else 0
    indptr, old_indices, old_omega = row(w.indptr, to), head(row(w.indices, at), n), head(row(w.omega, at), n_omega)
    reference = rows_of(w.reference, at * s.n_rows, s.n_rows)
    given = (
        *(w.rows, reference, stale, threshold, s.offsets, s.n_inputs, s.n_sources, s.period, s.periodic),
        *(s.omega_in_closeness, s.omega_in_strength, s.seed, s.mean, s.std, row(w.indptr, at), old_indices, old_omega),
    )
    call(entries.scan, (*given, False, indptr, head(old_indices, 0), head(old_omega, 0), head(row(w.origin, to), 0)))
    size = call(entries.sum_up, (indptr,))
    if size > s.capacity:
        return -1
    n_omega = size if s.free else 0
    omega, origin = head(row(w.omega, to), n_omega), head(row(w.origin, to), n_omega)
    call(entries.scan, (*given, True, indptr, head(row(w.indices, to), size), omega, origin))
    call(entries.refer, (w.rows, stale, threshold, reference, rows_of(w.reference, to * s.n_rows, s.n_rows)))
    return size


@inner
def keep(move, entries, w, at, to, n):
    """After searches: moments and slots of the ``n`` candidates at place ``to``, from those of before at ``at``."""
    if move is not None:
        origin = head(row(w.origin, to), n)
        call(move, (origin, row(w.first, at), head(row(w.first, to), n)))
        call(move, (origin, row(w.second, at), head(row(w.second, to), n)))
        call(entries.give_slots, (origin, row(w.slots, at), head(row(w.slots, to), n), w.taken, w.births))
