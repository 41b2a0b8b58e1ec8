"""Drop-in for ``compressai.ans``: the same classes, methods and bytes in a fraction of the time.

Symbols, indexes, CDFs, sizes and offsets may be lists, numpy arrays or torch CPU tensors of
integers. Tables are converted once for any number of calls with the same contents. Damaged streams
raise `CorruptStreamError` where compressai.ans reads beyond its buffer. ::

    from mlic_fast.coder.compressai import BufferedRansEncoder, RansDecoder, RansEncoder
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlic_fast import _C
from mlic_fast.coder.arrays import as_int32, as_numpy


class BufferedRansEncoder:
    """Collects symbols over several calls and codes them all in `flush`."""

    def __init__(self) -> None:
        self._core = _C.CompressaiEncoder()

    def encode_with_indexes(
        self, symbols: Any, indexes: Any, cdfs: Any, cdfs_sizes: Any, offsets: Any
    ) -> None:
        """Adds symbols.

        Args:
            symbols: integers of 32 bits.
            indexes: the CDF of each symbol.
            cdfs: a row a table, rising from 0 to 65536; its last interval is the escape.
            cdfs_sizes: used length of each row.
            offsets: smallest symbol of each table.

        Raises:
            TypeError, ValueError: arguments that cannot be coded; nothing is added then.
        """
        symbols, indexes = _integers(symbols, "symbols"), _integers(indexes, "indexes")
        self._core.encode(symbols.ravel(), indexes.ravel(), _cdfs(cdfs, cdfs_sizes, offsets))

    def flush(self) -> bytes:
        """The stream of all symbols added so far; the encoder then starts anew."""
        return self._core.flush()


class RansEncoder:
    """Codes one batch of symbols into one stream."""

    def encode_with_indexes(
        self, symbols: Any, indexes: Any, cdfs: Any, cdfs_sizes: Any, offsets: Any
    ) -> bytes:
        """The stream of the symbols; arguments as for `BufferedRansEncoder.encode_with_indexes`."""
        encoder = BufferedRansEncoder()
        encoder.encode_with_indexes(symbols, indexes, cdfs, cdfs_sizes, offsets)
        return encoder.flush()


class RansDecoder:
    """Decodes a stream at once or, after `set_stream`, in steps."""

    def __init__(self) -> None:
        self._core: _C.CompressaiDecoder | None = None

    def decode_with_indexes(
        self, encoded: bytes, indexes: Any, cdfs: Any, cdfs_sizes: Any, offsets: Any
    ) -> list[int] | NDArray[np.int32]:
        """All symbols of a stream: a list if `indexes` is one, else an int32 array of its shape.

        Raises:
            CorruptStreamError: the stream ends early or is malformed.
            TypeError, ValueError: as for the encoder.
        """
        return _decode(_C.CompressaiDecoder(encoded), indexes, cdfs, cdfs_sizes, offsets)

    def set_stream(self, encoded: bytes) -> None:
        """Begins a stream. Raises CorruptStreamError if the bytes cannot be one."""
        self._core = _C.CompressaiDecoder(encoded)

    def decode_stream(
        self, indexes: Any, cdfs: Any, cdfs_sizes: Any, offsets: Any
    ) -> list[int] | NDArray[np.int32]:
        """The next symbols of the stream; otherwise as `decode_with_indexes`."""
        if self._core is None:
            raise ValueError("call set_stream before decode_stream")
        return _decode(self._core, indexes, cdfs, cdfs_sizes, offsets)


def _decode(
    core: _C.CompressaiDecoder, indexes: Any, cdfs: Any, cdfs_sizes: Any, offsets: Any
) -> list[int] | NDArray[np.int32]:
    symbols = core.decode(_integers(indexes, "indexes"), _cdfs(cdfs, cdfs_sizes, offsets))
    return symbols.tolist() if isinstance(indexes, (list, tuple)) else symbols


def _integers(values: Any, name: str) -> NDArray[np.int32]:
    if isinstance(values, (list, tuple)):
        return _C.integers(values)  # several times as fast as numpy
    return as_int32(values, name)


def _cdfs(cdfs: Any, sizes: Any, offsets: Any) -> _C.CompressaiCdfs:
    rows = cdfs if isinstance(cdfs, (list, tuple)) else as_int32(as_numpy(cdfs), "cdfs")
    return _C.CompressaiCdfs(rows, _integers(sizes, "cdfs_sizes"), _integers(offsets, "offsets"))
