"""The models stay what they are, also where the vectors of the public code are not at hand."""

from __future__ import annotations

import numpy as np
import pytest
from make_golden import PATH, outputs

from mlic_fast.models import MlicModel


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(PATH) as file:
        return dict(file)


def test_outputs_are_the_recorded_ones(
    model: MlicModel, variant: str, golden: dict[str, np.ndarray], poisoned: None
) -> None:
    for key, value in outputs(model).items():
        np.testing.assert_allclose(
            value, golden[f"{variant}.{key}"], rtol=2e-3, atol=2e-3, err_msg=key
        )
