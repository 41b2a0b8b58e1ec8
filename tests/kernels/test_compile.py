"""Kernels compile for real GPUs, in processes of their own: here they are the interpreter's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(*command: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=1800
    )


def test_all_that_a_path_launches_compiles(tmp_path: Path) -> None:
    """With the types, alignments and constants of real launches, several at a time."""
    script = Path(__file__).with_name("compile_path.py")
    done = run(str(script), cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kernels"] > 20


def test_a_compile_that_fails_leaves_nothing_behind() -> None:
    from triton.runtime import _async_compile

    from mlic_fast.kernels import functions

    def fail() -> None:
        raise OSError("no compiler")

    def launch() -> None:
        _async_compile.active_mode.get().submit("kernel", fail, None)

    for _ in range(2):  # a mode that is still active forbids another
        with pytest.raises(OSError, match="no compiler"):
            functions.compile_only(launch, 2)
    assert _async_compile.active_mode.get() is None
    assert not functions._COMPILES_ONLY.get()


@pytest.mark.parametrize(
    ("model", "only", "targets"),
    [("photo", "depthwise", "90"), ("demo", "normalise", "80,90"), ("wide", "pass", "90")],
)
def test_report(tmp_path: Path, model: str, only: str, targets: str) -> None:
    """One of the exact path; one that is not, whose root is approximate, on two targets that have
    other contexts ahead; the largest there is.
    """
    command = ("-m", "mlic_fast.kernels.compile", "--jobs", "1", "--models", model)
    done = run(*command, "--targets", targets, "--only", only, cache=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()[1:]
    assert all(only in line for line in lines)
    assert [line[42:].split()[0] for line in lines] == targets.split(",")


def test_a_loop_that_fetches_nothing_ahead_is_found(tmp_path: Path) -> None:
    """The product kernel as it was, when branches kept its loads from being made ahead."""
    script = Path(__file__).with_name("compile_branches.py")
    done = run(str(script), cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, False]


LOOP = """
$L__BB0_1:                              // %.lr.ph
                                        //   Parent Loop BB0_0 Depth=1
                                        // =>  This Inner Loop Header: Depth=2
{}
  @%p1 bra $L__BB0_1;
"""
COPY, PRODUCT = "cp.async.commit_group;", "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32"


@pytest.mark.parametrize(
    ("body", "ahead"),
    [
        (["cp.async.wait_group 1;", PRODUCT, COPY], True),
        (["cp.async.wait_group 0;", COPY, PRODUCT], True),
        (["cp.async.wait_group 0;", PRODUCT, COPY], False),  # too few stages
        (["cp.async.wait_group 0;", COPY], False),
        (["ld.global.b32 %r1, [%rd1];", PRODUCT], False),
        ([PRODUCT], True),  # of what is there
        (["ld.global.b32 %r1, [%rd1];"], True),
    ],
)
def test_copies_in_flight(body: list[str], ahead: bool) -> None:
    from mlic_fast.kernels.ptx import fetches_ahead

    loop = LOOP.format("\n".join(body))
    assert fetches_ahead(loop) == ahead
    header = "$L__BB0_0: // =>This Loop Header: Depth=1"
    outer = f"{header}\n{COPY}\ncp.async.wait_group 0;\n{loop}\n@%p2 bra.uni $L__BB0_0;"
    assert fetches_ahead(outer) == ahead  # what stands around the innermost loop does not matter


@pytest.mark.parametrize(
    ("instruction", "found"),
    [
        ("fma.rn.f32 %r1, %r2, %r3, %r4;", True),
        ("add.f32 %r1, %r2, %r3;", True),
        ("mul.f32 %r1, %r2, %r3;", True),
        ("div.full.f32 %r1, %r2, %r3;", True),
        ("sqrt.approx.ftz.f32 %r1, %r2;", True),
        ("cvt.rmi.ftz.f32.f32 %r1, %r2;", True),
        ("add.rn.f32 %r1, %r2, %r3;", False),
        ("mul.rn.f32 %r1, %r2, %r3;", False),
        ("div.rn.f32 %r1, %r2, %r3;", False),
        ("sqrt.rn.f32 %r1, %r2;", False),
        ("add.s32 %r1, %r2, %r3;", False),
    ],
)
def test_inexact_instructions_are_found(instruction: str, found: bool) -> None:
    from mlic_fast.kernels.ptx import INEXACT

    assert bool(INEXACT.search(instruction)) == found
