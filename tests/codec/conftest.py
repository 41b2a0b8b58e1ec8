"""Codecs of small models."""

from __future__ import annotations

import pytest
from lively import lively_model
from small_pictures import RATES, picture

from mlic_fast.codec import Codec, load
from mlic_fast.models import MlicModel


@pytest.fixture(scope="module")
def codecs(small_models: dict[str, MlicModel]) -> dict[str, Codec]:
    return {name: load(model, device="cpu") for name, model in small_models.items()}


@pytest.fixture
def codec(codecs: dict[str, Codec], variant: str) -> Codec:
    return codecs[variant]


@pytest.fixture(scope="module")
def fast(codecs: dict[str, Codec]) -> Codec:
    """The quickest of them."""
    return codecs["mlic"]


@pytest.fixture(scope="module")
def variable() -> Codec:
    return load(lively_model(RATES), device="cpu")


@pytest.fixture(scope="module")
def stream(fast: Codec) -> bytes:
    data = fast.compress(picture(70, 100))
    assert isinstance(data, bytes)
    return data


# -- there and back --------------------------------------------------------------------------
