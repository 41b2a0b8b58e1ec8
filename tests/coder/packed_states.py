"""States of lanes as docs/format.md stores them, to make payloads by hand."""

from collections.abc import Sequence


def pack_states(states: Sequence[int]) -> bytes:
    sizes = [state.bit_length() - 17 for state in states]
    nibbles = sum(size << 4 * lane for lane, size in enumerate(sizes))
    bits = at = 0
    for state, size in zip(states, sizes, strict=True):
        bits |= (state - (1 << 16 + size)) << at
        at += 16 + size
    return nibbles.to_bytes(len(sizes) // 2, "little") + bits.to_bytes((at + 7) // 8, "little")
