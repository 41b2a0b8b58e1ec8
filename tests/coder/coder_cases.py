"""What tests of the range coder are given: small tables, symbols on them, payloads made by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import strategies as st

from mlic_fast.coder import Tables

INT32 = np.iinfo(np.int32)
LANES = [2**k for k in range(1, 11)]

#: On small tables, near them and at the ends of int32.
SYMBOLS = st.one_of(
    st.integers(-8, 8), st.sampled_from([INT32.min, INT32.max, 0]), st.integers(30, 50)
)

#: Words after an escape that are no number, and what the decoder says of them.
malformed_escapes = pytest.mark.parametrize(
    ("words", "message"),
    [
        ("ffff ffff ffff ffff", "malformed"),  # digits that never end
        ("8888 8888 8888 8888", "malformed"),
        ("0008 0000 0000 0000", "malformed"),  # a zero after a zero: superfluous
        ("ffff ffff f7ff 0000", "exceeds 32 bits"),
        ("ffff ffff", "too early"),
    ],
)


@st.composite
def small_tables(draw: st.DrawFn) -> Tables:
    """Up to six tables of up to nine entries, of any precision, at any place of int32."""
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        precision = draw(st.sampled_from([1, 4, 14, 16]))
        size = draw(st.integers(2, min(9, 1 << precision)))
        cuts = draw(
            st.sets(st.integers(1, (1 << precision) - 1), min_size=size - 1, max_size=size - 1)
        )
        frequencies = np.diff([0, *sorted(cuts), 1 << precision])
        if draw(st.booleans()):
            frequencies[:] = np.sort(frequencies)[::-1]  # with a minimum of zero, a run table
        minimum = draw(st.sampled_from([-3, -1, 0, 0, 40, INT32.min, INT32.max - 9]))
        parts.append((frequencies, size, minimum, precision))
    frequencies, sizes, minima, precisions = zip(*parts, strict=True)
    return Tables(
        np.concatenate(frequencies).astype(np.uint16),
        np.array(sizes, np.int32),
        np.array(minima, np.int32),
        np.array(precisions, np.uint8),
    )


def pack_states(states: Sequence[int]) -> bytes:
    """States of lanes as docs/format.md stores them."""
    sizes = [state.bit_length() - 17 for state in states]
    nibbles = sum(size << 4 * lane for lane, size in enumerate(sizes))
    bits = at = 0
    for state, size in zip(states, sizes, strict=True):
        bits |= (state - (1 << 16 + size)) << at
        at += 16 + size
    return nibbles.to_bytes(len(sizes) // 2, "little") + bits.to_bytes((at + 7) // 8, "little")
