#!/usr/bin/env bash
# Plants three bugs in copies of the range coder, and says how long a fuzzer takes to find each,
# without any corpus. Fails if one is not found within 5 minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

# plant TARGET PATTERN REPLACEMENT WHAT: the pattern must be there exactly once.
plant() {
  local target=$1 file=csrc/rans/decoder.cpp started found
  cp -r --parents --preserve=timestamps csrc fuzz "$copy"
  rm -rf "$copy/found"
  touch "$copy/csrc/rans/decoder.cpp"  # that of the bug before
  [ "$(grep -cF -- "$2" $file)" = 1 ]
  PATTERN=$2 REPLACEMENT=$3 perl -pe 's/\Q$ENV{PATTERN}\E/$ENV{REPLACEMENT}/' $file >"$copy/$file"
  make -C "$copy/fuzz" --jobs 2 "../build/fuzz/checked/$target" >/dev/null
  mkdir "$copy/found"
  started=$(date +%s)
  if "$copy/build/fuzz/checked/$target" -max_total_time=300 -max_len=200 -entropic=0 \
    -artifact_prefix="$copy/" "$copy/found" >"$copy/log" 2>&1; then
    echo "NOT found: $4"
    exit 1
  fi
  found=$(grep -a -m 1 -o 'AddressSanitizer: [a-z-]*\|runtime error: .*\|^host: .*\|^the .*' "$copy/log")
  echo "found in $(($(date +%s) - started)) s by $target: $4 ($found)"
}

plant payload 'if (left() < sizeof(Unsigned)) throw_too_short();' \
  'if (left() + 1 < sizeof(Unsigned)) throw_too_short();' \
  'off by one, a read of one byte beyond the payload'
plant decoder 'ends &= states_[lane] >> kWordBits == 1;' '' \
  'the check left out of the states with which lanes retire'
plant payload 'escaped_symbol(bounds.minimum, bounds.beyond, u[lane]);' \
  'u[lane] & 1 ? int32_t(bounds.minimum - 1) - int32_t(u[lane] >> 1)
               : int32_t(bounds.beyond) + int32_t(u[lane] >> 1);' \
  'an overflow of 32 bits in the arithmetic of escapes'
