"""The elementary functions against mpmath, and the same bits everywhere."""

import hashlib

import mpmath
import numpy as np
import pytest

from mlic_fast.coder import elementary

POINTS = {
    "exp": np.concatenate([np.linspace(-50.0, 50.0, 501), [-699.0, -1e-9, 0.0, 1e-9, 699.0]]),
    "log1p": np.linspace(0.0, 1.0, 301),
    "erfc": np.linspace(0.0, 20.0, 501),
    "sigmoid": np.linspace(-60.0, 60.0, 501),
    "tanh": np.linspace(-30.0, 30.0, 501),
    "softplus": np.linspace(-60.0, 60.0, 501),
}
TRUTH = {
    "exp": mpmath.exp,
    "log1p": mpmath.log1p,
    "erfc": mpmath.erfc,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh,
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
}
HASHES = {
    "exp": "9a02f5b00cd0fcb1",
    "log1p": "2c1a02c9b4cdebf1",
    "erfc": "94f7a27a4b1a2ddb",
    "sigmoid": "09d0c68d01ba0a0e",
    "tanh": "83fdcefedaa6b3e5",
    "softplus": "e23a15d781e66f6a",
}


@pytest.mark.parametrize("name", POINTS)
def test_truth(name):
    got = getattr(elementary, name)(POINTS[name])
    with mpmath.workdps(40):
        truth = [TRUTH[name](mpmath.mpf(float(x))) for x in POINTS[name]]
        scale = [1 if name == "tanh" else max(abs(t), mpmath.mpf(1e-300)) for t in truth]
        errors = [
            float(abs(mpmath.mpf(float(g)) - t) / s)
            for g, t, s in zip(got, truth, scale, strict=True)
        ]
    assert max(errors) < 1e-13


@pytest.mark.parametrize("name", POINTS)
def test_bits(name):
    got = getattr(elementary, name)(POINTS[name])
    assert hashlib.sha256(got.astype("<f8").tobytes()).hexdigest()[:16] == HASHES[name]


def test_exp_underflows_to_zero():
    assert elementary.exp(np.array([-701.0, -1e30, -np.inf])).tolist() == [0.0, 0.0, 0.0]
