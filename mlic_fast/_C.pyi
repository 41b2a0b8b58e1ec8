from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Submodule; mlic_fast.engine.cpu.cpu_kernels is its typed front.
exact: Any

#: Submodule; mlic_fast.coder.gpu_coder is its typed front.
gpu_coder: Any

class RansTables:
    def __init__(
        self,
        frequencies: NDArray[np.uint16],
        sizes: NDArray[np.int32],
        minima: NDArray[np.int32],
        precisions: NDArray[np.uint8],
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...

class RansEncoder:
    def __init__(self, tables: RansTables, lanes: int) -> None: ...
    def encode(
        self, symbols: NDArray[np.int32], indexes: NDArray[np.uint8] | NDArray[np.int32]
    ) -> None: ...
    def finish(self, digest: int) -> bytes: ...
    @property
    def lanes(self) -> int: ...

class RansDecoder:
    def __init__(self, tables: RansTables, data: bytes, lanes: int, threads: int) -> None: ...
    def decode(self, indexes: NDArray[np.uint8] | NDArray[np.int32]) -> NDArray[np.int32]: ...
    def finish(self) -> int: ...

class CompressaiCdfs:
    def __init__(
        self, cdfs: object, sizes: NDArray[np.int32], offsets: NDArray[np.int32]
    ) -> None: ...

class CompressaiEncoder:
    def encode(
        self, symbols: NDArray[np.int32], indexes: NDArray[np.int32], cdfs: CompressaiCdfs
    ) -> None: ...
    def flush(self) -> bytes: ...

class CompressaiDecoder:
    def __init__(self, data: bytes) -> None: ...
    def decode(self, indexes: NDArray[np.int32], cdfs: CompressaiCdfs) -> NDArray[np.int32]: ...

def integers(sequence: object) -> NDArray[np.int32]: ...
