"""The range coders side by side on the symbols of one image, 24,576 a pass at Kodak size.

    python benchmarks/bench_coder.py [--image FILE [--model demo]] [--repeats 20] [--json FILE]

With an image, the symbols are what the demo model codes for it (6 passes), or a full-size model of
seeded weights (mlic_plus_plus: 20 passes); without one they are drawn to the statistics of MLIC++
at about 0.3 bit a pixel (20 passes). All coders take integer arrays and give bytes, and the
reverse, in decoding pass by pass, as a codec must. Each result is compared with the input before
anything is timed; the coders take turns, and the best time of each counts.

- mlic_fast: this project's stream.
- compressai.ans: as the public MLIC++ code calls it, through lists; its tables are made lists once.
- drop-in: mlic_fast.coder.compressai on arrays; the bytes of compressai.ans.
- constriction: an independent coder, with the Gaussian itself as its model.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import constriction
import numpy as np
from scipy.special import ndtr

from mlic_fast import load
from mlic_fast.benchmark.models import trained_like_model
from mlic_fast.coder import SCALES, Decoder, Encoder, gaussian_tables
from mlic_fast.coder import compressai as drop_in
from mlic_fast.conformance.recorder import Recorder
from mlic_fast.models import PRESETS
from mlic_fast.models.compressai_import import compressai_ans

Array = np.ndarray
PIXELS = 768 * 512
BASELINE = "compressai.ans"


@dataclass(frozen=True)
class Coder:
    """encode(symbols, indexes) -> bytes; decode(bytes, indexes) -> symbols of each pass."""

    name: str
    encode: Callable[[Array, Array], bytes]
    decode: Callable[[bytes, Array], list[Array]]


def mlic_fast() -> Coder:
    tables = gaussian_tables()
    lanes = 0  # in a file it is in the header

    def encode(symbols: Array, indexes: Array) -> bytes:
        nonlocal lanes
        encoder = Encoder(tables)
        for s, i in zip(symbols, indexes, strict=True):
            encoder.encode(s, i)
        data = encoder.finish()
        lanes = encoder.lanes
        return data

    def decode(data: bytes, indexes: Array) -> list[Array]:
        decoder = Decoder(tables, data, lanes)
        symbols = [decoder.decode(i) for i in indexes]
        decoder.finish()
        return symbols

    return Coder("mlic_fast", encode, decode)


def compressai_tables() -> tuple[Array, Array, Array]:
    from compressai.entropy_models import GaussianConditional

    model = GaussianConditional([float(s) for s in SCALES])
    model.update()
    return model._quantized_cdf.numpy(), model._cdf_length.numpy(), model._offset.numpy()


def baseline() -> Coder:
    ans = compressai_ans()
    tables = [array.tolist() for array in compressai_tables()]

    def encode(symbols: Array, indexes: Array) -> bytes:
        encoder = ans.BufferedRansEncoder()
        encoder.encode_with_indexes(symbols.ravel().tolist(), indexes.ravel().tolist(), *tables)
        return encoder.flush()

    def decode(data: bytes, indexes: Array) -> list[Array]:
        decoder = ans.RansDecoder()
        decoder.set_stream(data)
        return [np.array(decoder.decode_stream(i.tolist(), *tables), np.int32) for i in indexes]

    return Coder(BASELINE, encode, decode)


def dropped_in() -> Coder:
    tables = compressai_tables()

    def encode(symbols: Array, indexes: Array) -> bytes:
        encoder = drop_in.BufferedRansEncoder()
        encoder.encode_with_indexes(symbols, indexes, *tables)
        return encoder.flush()

    def decode(data: bytes, indexes: Array) -> list[Array]:
        decoder = drop_in.RansDecoder()
        decoder.set_stream(data)
        return [decoder.decode_stream(i, *tables) for i in indexes]

    return Coder("drop-in", encode, decode)


def independent() -> Coder:
    model = constriction.stream.model.QuantizedGaussian(-4096, 4095)
    scales = SCALES.astype(np.float64)

    def encode(symbols: Array, indexes: Array) -> bytes:
        coder = constriction.stream.stack.AnsCoder()
        for s, i in zip(symbols[::-1], indexes[::-1], strict=True):
            coder.encode_reverse(s, model, np.zeros(s.size), scales[i])
        return coder.get_compressed().tobytes()

    def decode(data: bytes, indexes: Array) -> list[Array]:
        coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, np.uint32))
        return [coder.decode(model, np.zeros(i.size), scales[i]) for i in indexes]

    return Coder("constriction", encode, decode)


def draw_symbols(seed: int = 0) -> tuple[Array, Array]:
    """[20, 24576] of each: 57 to 78 % in the lowest table, the others' indexes exponential."""
    rng = np.random.default_rng(seed)
    shape = (20, 24576)
    floor = rng.random(shape) < np.linspace(0.57, 0.78, 20)[:, None]
    mean_index = np.linspace(11.0, 5.0, 20)[:, None]
    indexes = np.minimum(1 + rng.exponential(mean_index, shape).astype(np.int64), 63)
    indexes[floor] = 0
    symbols = np.rint(rng.standard_normal(shape) * SCALES[indexes])
    return symbols.astype(np.int32), indexes.astype(np.uint8)


def photograph_symbols(path: Path, model: str) -> tuple[Array, Array]:
    """[passes, K] of each: what a model codes for a photograph."""
    codec = load("demo" if model == "demo" else trained_like_model(model), engine="cpu")
    recorder = codec._engine._ops = Recorder(codec._engine._ops)
    codec.compress(path)
    _, *symbols = recorder.symbols  # the first are those of z
    passes = [np.moveaxis(x, -1, 1).reshape(-1) for x in (*symbols, *recorder.indexes)]
    return np.stack(passes[: len(symbols)]), np.stack(passes[len(symbols) :])


def ideal_bytes(symbols: Array, indexes: Array) -> float:
    """Sum of -log2 of the Gaussian model's probabilities, none below CompressAI's bound of 1e-9."""
    distance = np.abs(symbols.astype(np.float64))
    scales = SCALES[indexes].astype(np.float64)
    pmf = ndtr((0.5 - distance) / scales) - ndtr((-0.5 - distance) / scales)
    return float(-np.log2(np.maximum(pmf, 1e-9)).sum() / 8)


def check(coders: list[Coder], symbols: Array, indexes: Array) -> dict[str, bytes]:
    """The stream of each coder, having decoded all of them."""
    streams = {coder.name: coder.encode(symbols, indexes) for coder in coders}
    for coder in coders:
        if not np.array_equal(coder.decode(streams[coder.name], indexes), symbols):
            raise SystemExit(f"{coder.name} does not decode what it encoded")
    if streams["drop-in"] != streams[BASELINE]:
        raise SystemExit(f"the drop-in's bytes differ from those of {BASELINE}")
    return streams


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(symbols: Array, indexes: Array, repeats: int) -> dict[str, dict[str, float]]:
    coders = [mlic_fast(), baseline(), dropped_in(), independent()]
    streams = check(coders, symbols, indexes)
    times: dict[str, list[tuple[float, float]]] = {coder.name: [] for coder in coders}
    for _ in range(repeats):
        for coder in coders:
            encode = seconds(lambda c=coder: c.encode(symbols, indexes))
            decode = seconds(lambda c=coder: c.decode(streams[c.name], indexes))
            times[coder.name].append((encode, decode))
    best = {name: np.min(pairs, axis=0) * 1000 for name, pairs in times.items()}
    ideal = ideal_bytes(symbols, indexes)
    return {
        name: {
            "bytes": len(streams[name]),
            "over_ideal_percent": 100 * (len(streams[name]) / ideal - 1),
            "encode_ms": encode,
            "encode_ratio": best[BASELINE][0] / encode,
            "decode_ms": decode,
            "decode_ratio": best[BASELINE][1] / decode,
        }
        for name, (encode, decode) in best.items()
    }


def describe_machine() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    packages = ("mlic_fast", "numpy", "compressai", "constriction")
    return {
        "cpu": names[0].partition(": ")[2] if names else platform.processor(),
        "python": platform.python_version(),
        "commit": git.stdout.strip(),
        **{name: version(name) for name in packages},
    }


def main() -> None:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path)
    parser.add_argument("--model", default="demo", choices=list(PRESETS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    symbols, indexes = photograph_symbols(args.image, args.model) if args.image else draw_symbols()
    ideal = ideal_bytes(symbols, indexes)
    print(f"{symbols.shape[0]} passes of {symbols.shape[1]} symbols, ", end="")
    print(f"{np.mean(indexes == 0):.0%} in the lowest table; ideal {ideal:.0f} bytes ", end="")
    print(f"({8 * ideal / PIXELS:.3f} bit a pixel at 768x512)")

    results: dict[str, Any] = measure(symbols, indexes, args.repeats)
    print(f"{'':16}{'bytes':>8}{'to ideal':>10}{'encode':>12}{'':7}{'decode':>12}")
    for name, row in results.items():
        print(f"{name:16}{row['bytes']:8}{row['over_ideal_percent']:+9.2f}%", end="")
        print(f"{row['encode_ms']:9.2f} ms{row['encode_ratio']:6.1f}x", end="")
        print(f"{row['decode_ms']:9.2f} ms{row['decode_ratio']:6.1f}x")
    if args.json:
        record = {"machine": describe_machine(), "ideal_bytes": ideal, "coders": results}
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
