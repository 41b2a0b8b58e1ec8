"""csrc/rans/core.h is one header for host and device: it must compile for CUDA as it is."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCE = """
#include "rans/core.h"

using namespace mlic::rans;

__global__ void decode(TableSet set, const uint16_t* indexes, const uint16_t* words,
                       int32_t* symbols, uint32_t* states) {
  const uint16_t index = indexes[threadIdx.x];
  const Table& table = set.tables[index];
  uint32_t x = states[threadIdx.x];
  const uint32_t entry = decode_entry(set, table, x);
  if (needs_word(x)) x = take_word(x, words[threadIdx.x]);
  const uint32_t digit = decode_bits(kDigitBits, x);
  const uint64_t u = is_valid_digit(digit, 0) ? add_digit(0, digit, 0) : 0;
  const bool escapes = entry == table.escape && is_last_digit(digit);
  symbols[threadIdx.x] = escapes ? static_cast<int32_t>(escaped_symbol(table, set.minima[index], u))
                                 : symbol_of(table, entry);
  states[threadIdx.x] = x;
}

__global__ void encode(TableSet set, const EncoderEntry* entries, const uint16_t* indexes,
                       const int32_t* symbols, uint16_t* words, uint32_t* states) {
  const uint16_t index = indexes[threadIdx.x];
  const uint64_t u = escape_of(set.tables[index], set.minima[index], symbols[threadIdx.x]);
  uint32_t x = states[threadIdx.x];
  for (uint32_t round = count_digits(u); round-- > 0;) {
    if (must_shed_bits(x, kDigitBits)) words[round] = static_cast<uint16_t>(x);
    x = encode_bits(x, digit_of(u, round), kDigitBits);
  }
  if (must_shed(x, entries[index])) x >>= 16;
  states[threadIdx.x] = encode_entry(x, entries[index]);
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_compiles_for_cuda(tmp_path):
    source = tmp_path / "core.cu"
    source.write_text(SOURCE)
    command = ["nvcc", "-std=c++17", "-arch=sm_80", "-I", str(CSRC), "-c", str(source)]
    command += ["-Werror=all-warnings", "-o", str(tmp_path / "core.o")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
