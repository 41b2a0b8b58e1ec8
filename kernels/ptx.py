"""What must and must not stand in the code that Triton makes of a kernel."""

from __future__ import annotations

import re

#: Float instructions of the PTX that are fused, that may be fused later, that flush, or that
#: approximate: none may stand in an exact kernel.
INEXACT = re.compile(
    r"\b(?:fma\.\w+|(?:add|sub|mul)\.f32|\w+\.approx[.\w]*|div\.full[.\w]*|\w+[.\w]*\.ftz[.\w]*)"
)

_COPY = re.compile(r"(%\w+) = ttg\.async_commit_group")
_WAIT = re.compile(r"ttg\.async_wait ([^{]*)\{")


def fetches_ahead(ttgir: str) -> bool:
    """Whether no step of a loop waits for copies that the same step began.

    Copies that are made ahead are waited for in a later step, to which the loop carries them.
    """
    copies = set(_COPY.findall(ttgir))
    return not any(copies & set(re.findall(r"%\w+", wait)) for wait in _WAIT.findall(ttgir))
