"""The bridge's golden vectors, and that each check can fail."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden_bbdm import CHECKS

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(path for path in FOLDER.glob("*.npz") if path.stem.startswith(tuple(CHECKS)))
SPOILT = {
    "bb_schedule": "linear_1000_20.steps",
    "bb_bridge_": "loop_out",
    "bb_unet_small": "out",
    "bb_unet_f4_keys": "key_shapes",
    "vqgan_small": "codes",
    "vqgan_f4_keys": "keys",
    "ema": "shadow",
}


def kind_of(path):
    return max((kind for kind in CHECKS if path.stem.startswith(kind)), key=len)


def test_every_kind_has_a_file():
    assert {kind_of(path) for path in FILES} == set(CHECKS) == set(SPOILT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_numbers_of_the_released_program(path):
    vectors = dict(np.load(path, allow_pickle=False))
    check = CHECKS[kind_of(path)]
    error, tolerance = check(vectors)
    assert error <= tolerance

    key = SPOILT[kind_of(path)]
    value = vectors[key].copy()
    if value.dtype.kind == "U":
        value[0] = "[1]"
    else:
        value.flat[0] += 1
    error, tolerance = check({**vectors, key: value})
    assert error > tolerance
