"""The range coders side by side on the symbols of one Kodak image: 20 passes of 24,576.

    python benchmarks/bench_coder.py [--symbols FILE.npz] [--repeats 20] [--json FILE]

FILE.npz holds `symbols` and `indexes` [passes, K]; without it, symbols are drawn to the statistics
of MLIC++ at about 0.3 bit a pixel. All coders get integer arrays and give bytes, and the reverse,
pass by pass in decoding, as a codec must.
Every coder's result is compared with the input before it is timed, and the coders take turns.

- mlic_fast: this project's stream.
- compressai.ans: as the public MLIC++ code calls it, through lists; tables are made lists once.
- drop-in: mlic_fast.coder.compressai on arrays (the bytes of compressai.ans).
- constriction: an independent coder, for its size and speed on the probabilities of the Gaussian
  model.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import constriction
import numpy as np

from mlic_fast.coder import SCALES, Decoder, Encoder, gaussian_tables
from mlic_fast.coder import compressai as drop_in
from mlic_fast.models.compressai_import import compressai_ans

PIXELS = 768 * 512
Array = np.ndarray


@dataclass(frozen=True)
class Coder:
    name: str
    encode: Callable[[Array, Array], bytes]
    decode: Callable[[bytes, Array], Array]


def draw_symbols(seed: int = 0) -> tuple[Array, Array]:
    """Symbols and indexes [20, 24576].

    57 to 78 % are in the lowest table; the others' indexes fall off geometrically.
    """
    rng = np.random.default_rng(seed)
    shape = (20, 24576)
    floor = rng.random(shape) < np.linspace(0.57, 0.78, 20)[:, None]
    mean_index = np.linspace(11.0, 5.0, 20)[:, None]
    indexes = np.minimum(1 + rng.exponential(mean_index, shape).astype(np.int64), 63)
    indexes[floor] = 0
    symbols = np.rint(rng.standard_normal(shape) * SCALES[indexes]).astype(np.int32)
    return symbols, indexes.astype(np.uint8)


def ours() -> Coder:
    tables = gaussian_tables()

    def encode(symbols: Array, indexes: Array) -> bytes:
        encoder = Encoder(tables)
        for s, i in zip(symbols, indexes, strict=True):
            encoder.encode(s, i)
        return encoder.finish() + bytes([encoder.lanes.bit_length() - 1])

    def decode(data: bytes, indexes: Array) -> Array:
        decoder = Decoder(tables, data[:-1], 1 << data[-1])
        symbols = [decoder.decode(i) for i in indexes]
        decoder.finish()
        return np.stack(symbols)

    return Coder("mlic_fast", encode, decode)


def compressai_tables() -> tuple[Array, Array, Array]:
    from compressai.entropy_models import GaussianConditional

    model = GaussianConditional([float(s) for s in SCALES])
    model.update()
    return model._quantized_cdf.numpy(), model._cdf_length.numpy(), model._offset.numpy()


def reference() -> Coder:
    ans = compressai_ans()
    tables = [array.tolist() for array in compressai_tables()]

    def encode(symbols: Array, indexes: Array) -> bytes:
        encoder = ans.BufferedRansEncoder()
        encoder.encode_with_indexes(symbols.ravel().tolist(), indexes.ravel().tolist(), *tables)
        return encoder.flush()

    def decode(data: bytes, indexes: Array) -> Array:
        decoder = ans.RansDecoder()
        decoder.set_stream(data)
        return np.stack(
            [np.array(decoder.decode_stream(i.tolist(), *tables), np.int32) for i in indexes]
        )

    return Coder("compressai.ans", encode, decode)


def dropped_in() -> Coder:
    tables = compressai_tables()

    def encode(symbols: Array, indexes: Array) -> bytes:
        encoder = drop_in.BufferedRansEncoder()
        for s, i in zip(symbols, indexes, strict=True):
            encoder.encode_with_indexes(s, i, *tables)
        return encoder.flush()

    def decode(data: bytes, indexes: Array) -> Array:
        decoder = drop_in.RansDecoder()
        decoder.set_stream(data)
        return np.stack([decoder.decode_stream(i, *tables) for i in indexes])

    return Coder("drop-in", encode, decode)


def independent() -> Coder:
    model = constriction.stream.model.QuantizedGaussian(-2048, 2047)
    scales = SCALES.astype(np.float64)

    def encode(symbols: Array, indexes: Array) -> bytes:
        coder = constriction.stream.stack.AnsCoder()
        for s, i in zip(symbols[::-1], indexes[::-1], strict=True):
            coder.encode_reverse(s, model, np.zeros(len(s)), scales[i])
        return coder.get_compressed().tobytes()

    def decode(data: bytes, indexes: Array) -> Array:
        coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, np.uint32))
        return np.stack([coder.decode(model, np.zeros(len(i)), scales[i]) for i in indexes])

    return Coder("constriction", encode, decode)


def ideal_bytes(symbols: Array, indexes: Array) -> float:
    """Sum of -log2 of the Gaussian model's probabilities."""
    from scipy.special import ndtr

    near = np.abs(symbols.astype(np.float64))
    scales = SCALES[indexes].astype(np.float64)
    pmf = ndtr((0.5 - near) / scales) - ndtr((-0.5 - near) / scales)
    return float(-np.log2(np.maximum(pmf, 1e-300)).sum() / 8)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--symbols", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    if args.symbols:
        with np.load(args.symbols) as file:
            symbols, indexes = file["symbols"].astype(np.int32), file["indexes"].astype(np.uint8)
    else:
        symbols, indexes = draw_symbols()
    ideal = ideal_bytes(symbols, indexes)
    lowest = float(np.mean(indexes == 0))
    print(
        f"{symbols.shape[0]} passes of {symbols.shape[1]} symbols, {lowest:.0%} in the lowest "
        f"table, ideal {ideal:.0f} bytes ({ideal * 8 / PIXELS:.3f} bit a pixel at 768x512)"
    )

    coders = [ours(), reference(), dropped_in(), independent()]
    streams = {}
    for coder in coders:
        streams[coder.name] = coder.encode(symbols, indexes)
        if not np.array_equal(coder.decode(streams[coder.name], indexes), symbols):
            raise SystemExit(f"{coder.name} does not decode what it encoded")
    if streams["drop-in"] != streams["compressai.ans"]:
        raise SystemExit("the drop-in's bytes differ from compressai.ans's")

    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.repeats):
        for coder in coders:
            data = streams[coder.name]
            encode = seconds(lambda c=coder: c.encode(symbols, indexes))
            decode = seconds(lambda c=coder, d=data: c.decode(d, indexes))
            times.setdefault((coder.name, "encode"), []).append(encode)
            times.setdefault((coder.name, "decode"), []).append(decode)

    results = {}
    print(
        f"\n{'':16}{'bytes':>8}{'vs ideal':>10}{'encode ms':>11}{'ratio':>7}"
        f"{'decode ms':>11}{'ratio':>7}"
    )
    best = {key: float(np.median(values)) for key, values in times.items()}
    for coder in coders:
        size = len(streams[coder.name])
        row = {"bytes": size, "over_ideal_percent": 100 * (size / ideal - 1)}
        for way in ("encode", "decode"):
            row[f"{way}_ms"] = 1000 * best[coder.name, way]
            row[f"{way}_ratio"] = best["compressai.ans", way] / best[coder.name, way]
        results[coder.name] = row
        print(
            f"{coder.name:16}{size:8}{row['over_ideal_percent']:+9.2f}%{row['encode_ms']:11.2f}{row['encode_ratio']:6.1f}x"
            f"{row['decode_ms']:11.2f}{row['decode_ratio']:6.1f}x"
        )
    if args.json:
        record = {
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "ideal_bytes": ideal,
            "coders": results,
        }
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
