from __future__ import annotations

import pytest
import torch

from cascaded_diffusion import precision
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.precision import autocast, bf16_is_native, pick_device, settled_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_cpu_is_always_there(name: str) -> None:
    assert pick_device(name).type == "cpu"


def test_the_default_is_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(None).type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device(None) == CPU


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta", "cpu:x", "mps:7"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(UserError) as caught:
        pick_device(name)
    assert repr(name) in str(caught.value)
    assert "cpu always is" in str(caught.value)
    assert "\n" not in str(caught.value)


def _product_dtype() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize("native", [False, True])
def test_what_the_network_computes_in(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_is_native", lambda device: native)
    for wanted, dtype in (
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("auto", torch.bfloat16 if native else torch.float32),
    ):
        with autocast(wanted, CPU):  # type: ignore[arg-type]
            assert _product_dtype() == dtype
    assert _product_dtype() == torch.float32


def test_what_is_recorded_of_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    for native, settled in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("cascaded_diffusion.precision.bf16_is_native", lambda _, native=native: native)
        assert settled_precision("auto", CPU) == settled
        assert (settled_precision("fp32", CPU), settled_precision("bf16", CPU)) == ("fp32", "bf16")
    with pytest.raises(UserError, match="precision: 'half' is not known; allowed: auto, fp32, bf16"):
        settled_precision("half", CPU)  # type: ignore[arg-type]


def test_hardware_is_asked() -> None:
    assert isinstance(bf16_is_native(CPU), bool)
    assert not bf16_is_native(torch.device("meta"))
