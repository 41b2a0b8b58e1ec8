#!/usr/bin/env bash
# Plants three bugs in copies of the range coder, and says how long a fuzzer takes to find each,
# without any corpus. Fails if one is not found within 5 minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

# plant TARGET FILE PATTERN REPLACEMENT WHAT: the pattern must be there exactly once.
plant() {
  local target=$1 file=csrc/rans/$2 started found
  rm -rf "$copy"/*
  cp -r --parents csrc fuzz "$copy"
  [ "$(grep -cF -- "$3" $file)" = 1 ]
  PATTERN=$3 REPLACEMENT=$4 perl -pe 's/\Q$ENV{PATTERN}\E/$ENV{REPLACEMENT}/' $file >"$copy/$file"
  make -C "$copy/fuzz" --jobs 2 "../build/fuzz/checked/$target" >/dev/null
  mkdir "$copy/found"
  started=$(date +%s)
  if "$copy/build/fuzz/checked/$target" -max_total_time=300 -max_len=200 -entropic=0 \
    -artifact_prefix="$copy/" "$copy/found" >"$copy/log" 2>&1; then
    echo "NOT found: $5"
    exit 1
  fi
  found=$(grep -a -m 1 -o 'ERROR: AddressSanitizer: [a-z-]*\|runtime error: .*\|^host: .*' "$copy/log")
  echo "found in $(($(date +%s) - started)) s by $target: $5 ($found)"
}

plant payload decoder.cpp 'if (left() < sizeof(Unsigned)) throw_too_short();' \
  'if (left() + 1 < sizeof(Unsigned)) throw_too_short();' \
  'off by one, a read of one byte beyond the payload'
plant decoder decoder.cpp 'ends &= states_[lane] >> kWordBits == 1;' '' \
  'the check left out of the states with which lanes retire'
plant payload core.h 'return u & 1 ? minimum - 1 - distance : beyond + distance;' \
  'return u & 1 ? int32_t(minimum - 1) - int32_t(distance) : int32_t(beyond) + int32_t(distance);' \
  'an overflow of 32 bits in the arithmetic of escapes'
