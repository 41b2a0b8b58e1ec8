"""What must and must not stand in the code that Triton makes of a kernel."""

from __future__ import annotations

import re

#: Float instructions of the PTX that are fused, that may be fused later, that flush, or that
#: approximate: none may stand in an exact kernel.
INEXACT = re.compile(
    r"\b(?:fma\.\w+|(?:add|sub|mul)\.f32|\w+\.approx[.\w]*|div\.full[.\w]*|\w+[.\w]*\.ftz[.\w]*)"
)

#: Where basic blocks begin. LLVM says in comments there which loops they are part of.
_BLOCK = re.compile(r"^(?:\$L__(BB\w+):|// %bb\.\d+:).*\n(?:\s*//.*\n)*", re.MULTILINE)
_EVENT = re.compile(
    r"cp\.async\.(?P<copy>commit_group)|cp\.async\.wait_group\s+(?P<wait>\d+)"
    r"|(?P<product>\bmma\.sync|\bwgmma\.mma_async|\btcgen05\.mma)|(?P<load>\bld\.global)"
)


def fetches_ahead(ptx: str) -> bool:
    """Whether every innermost loop has copies in flight while it computes.

    That is at its matrix products, or, where it has none, after it has waited for copies. A loop
    with products that copies nothing and loads from global memory does not fetch ahead either.
    """
    return all(_fetches_ahead(body) for body in _innermost_loops(ptx))


def _fetches_ahead(body: str) -> bool:
    events = [(match.lastgroup, match["wait"]) for match in _EVENT.finditer(body)]
    kinds = {kind for kind, _ in events}
    if "copy" not in kinds:
        return not {"product", "load"} <= kinds
    uses = "product" if "product" in kinds else "wait"
    in_flight, least = 0, 1
    for iteration in range(2):  # the second is like all that follow
        for kind, allowed in events:
            if kind == "copy":
                in_flight += 1
            elif kind == "wait":
                in_flight = min(in_flight, int(allowed))
            if kind == uses and iteration:
                least = min(least, in_flight)
    return least > 0


def _innermost_loops(ptx: str) -> list[str]:
    """The basic blocks of each, from its header on: those laid out before it come after it."""
    begins = list(_BLOCK.finditer(ptx))
    ends = [*(match.start() for match in begins[1:]), len(ptx)]
    loops = []
    for number, header in enumerate(begins):
        if "This Inner Loop Header" not in header[0]:
            continue
        member = f"in Loop: Header={header[1]} "
        others = [*range(number + 1, len(begins)), *range(number)]
        blocks = [number, *(other for other in others if member in begins[other][0])]
        loops.append("".join(ptx[begins[block].end() : ends[block]] for block in blocks))
    return loops
