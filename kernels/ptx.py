"""What must not stand in the PTX of an exact kernel."""

from __future__ import annotations

import re

#: Float instructions that are fused, that may be fused later, that flush, or that approximate.
INEXACT = re.compile(
    r"\b(?:fma\.\w+|(?:add|sub|mul)\.f32|\w+\.approx[.\w]*|div\.full[.\w]*|\w+[.\w]*\.ftz[.\w]*)"
)
