"""The range coder of .mlic files: interleaved rANS as in docs/format.md, its core in csrc/rans."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlic_fast import _C
from mlic_fast.coder.arrays import as_indexes, as_int32
from mlic_fast.coder.tables import Tables


class Encoder:
    """Collects passes of symbols and codes them all at once in `finish`.

    Different encoders may work in different threads on the same tables; the GIL is released.

    Args:
        tables: the probability tables.
        lanes: number of interleaved states, a power of two from 2 to 1024; by default chosen by the
            size of the payload.
    """

    def __init__(self, tables: Tables, lanes: int | None = None) -> None:
        if lanes == 0:
            raise ValueError("lanes must be a power of two from 2 to 1024")
        self._core = _C.RansEncoder(tables.core, lanes or 0)

    def encode(self, symbols: Any, indexes: Any) -> None:
        """Adds a pass.

        Args:
            symbols: integers of 32 bits, any shape; a numpy array or a torch CPU tensor,
                contiguous or not.
            indexes: integers of the same shape, the table of each symbol.

        Raises:
            TypeError: not integers.
            ValueError: shapes that differ, an index without a table, or `finish` was called.
        """
        symbols, indexes = as_int32(symbols, "symbols"), as_indexes(indexes)
        if symbols.shape != indexes.shape:
            raise ValueError(f"symbols {symbols.shape} and indexes {indexes.shape} differ in shape")
        self._core.encode(symbols, indexes)

    def finish(self, digest: int = 0) -> bytes:
        """The payload of all passes.

        Args:
            digest: 32 bits that travel for free and come back from `Decoder.finish`.

        Raises:
            ValueError: digest out of range, or called before.
        """
        if not 0 <= digest < 1 << 32:
            raise ValueError("digest must be an unsigned integer of 32 bits")
        return self._core.finish(digest)

    @property
    def lanes(self) -> int:
        """Number of lanes, which the decoder must be told; known after `finish` if not given."""
        if self._core.lanes == 0:
            raise ValueError("the number of lanes is chosen in finish()")
        return self._core.lanes


class Decoder:
    """Decodes the passes of a payload in the order in which they were encoded.

    Args:
        tables: those of the encoder.
        data: the payload.
        lanes: the encoder's number of lanes.
        threads: that share large passes; the symbols do not depend on them.

    Raises:
        CorruptStreamError: the bytes cannot be a payload of so many lanes.
        ValueError: a number of threads that cannot be.
    """

    def __init__(
        self,
        tables: Tables,
        data: bytes | bytearray | memoryview,
        lanes: int,
        threads: int = 1,
    ) -> None:
        if threads < 1:
            raise ValueError("there must be a thread")
        self._core = _C.RansDecoder(tables.core, bytes(data), lanes, threads)

    def decode(self, indexes: Any) -> NDArray[np.int32]:
        """The symbols of the next pass, in the shape of `indexes`.

        Raises:
            CorruptStreamError: the payload ends early or is malformed. Altered bytes may also give
                wrong symbols here; `finish` tells.
            TypeError, ValueError: as for `Encoder.encode`.
        """
        return self._core.decode(as_indexes(indexes))

    def finish(self) -> int:
        """Checks that the payload was consumed exactly and that every lane is back at its start.

        Returns:
            The digest given to `Encoder.finish`.

        Raises:
            CorruptStreamError: it was not.
            ValueError: called before.
        """
        return self._core.finish()
