from __future__ import annotations

from typing import Any

import pytest
import torch

from marl_aajr.core import products

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.mark.parametrize(
    "onednn", [False, pytest.param(True, marks=pytest.mark.skipif(not HAS_ONEDNN, reason=""))]
)
@pytest.mark.parametrize(
    "shape",
    [(300, 64, 64), (64, 300, 64), (64, 300, 80), (64, 64, 300), (300, 18, 64), (300, 64, 5)],
    ids=str,
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_product_is_the_product_whoever_multiplies(
    shape: tuple[int, int, int], has_bias: bool, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: onednn)
    n, k, m = shape
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(k, n, generator=generator).t(), torch.randn(m, k, generator=generator)
    bias = torch.randn(m, generator=generator) if has_bias else None
    found = products.product(a, b, bias, factor=3.0)
    expected = 3.0 * a.double() @ b.double().t() + (0.0 if bias is None else bias.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("missing", ["AVX-512", "oneDNN"])
def test_mkl_multiplies_where_onednn_has_nothing_to_offer(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = missing == "AVX-512"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2" if lacks else "AVX512")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: lacks)
    assert not products.onednn_is_faster.__wrapped__()


def test_memory_is_filled_again_behind_the_block() -> None:
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    with products.unfilled_memory():
        assert not settings.fill_uninitialized_memory
    assert settings.fill_uninitialized_memory == before
