"""The faster gradient of small bf16 images: the sums of torch's own convolution, in another order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cascaded_diffusion.networks import winograd
from cascaded_diffusion.networks.small_images import small_convolution, small_fits
from cascaded_diffusion.networks.winograd import Convolution


def problem(n: int, c: int, k: int, height: int, width: int) -> tuple[Tensor, ...]:
    """Images, weight, bias and the answer's gradient, all numbers that bf16 can hold."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, c, height, width), (k, c, 3, 3), (k,), (n, k, height, width))
    return tuple(torch.randn(shape, generator=generator).bfloat16().float() for shape in shapes)


@pytest.mark.parametrize("shape", [(3, 5, 7, 4, 4), (2, 96, 100, 8, 8), (1, 3, 2, 2, 6), (4, 8, 8, 1, 1)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_answer_and_gradients_are_the_direct_sums(shape: tuple[int, ...], has_bias: bool) -> None:
    x, weight, bias, grad = problem(*shape)
    given = [value.requires_grad_() for value in ((x, weight, bias) if has_bias else (x, weight))]
    with torch.autocast("cpu", torch.bfloat16):
        out = small_convolution(x, weight, bias if has_bias else None)
    assert out.dtype == torch.bfloat16
    found = [out, *torch.autograd.grad(out, given, grad.bfloat16())]
    exact_given = [value.detach().double().requires_grad_() for value in given]
    exact = F.conv2d(*exact_given, padding=1)
    wanted = [exact, *torch.autograd.grad(exact, exact_given, grad.double())]
    for one, other in zip(found, wanted, strict=True):
        # One rounding to bf16, whose steps are 2^-8 of a number: the sums themselves are in float32.
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-4)


def test_gradients_arrive_as_the_weights_are_kept() -> None:
    x, weight, bias, grad = problem(2, 3, 4, 4, 4)
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        small_convolution(x, weight, bias).backward(grad.bfloat16())
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_it_is_taken_only_where_it_is_right_and_pays() -> None:
    x, weight, _, _ = problem(1, 96, 96, 8, 8)
    assert not small_fits(x, weight)  # float32
    with torch.autocast("cpu", torch.float16):
        assert not small_fits(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert small_fits(x, weight)
        assert small_fits(x[:, :8, :4, :4], weight[:8, :8])
        assert not small_fits(x[:, :95], weight[:, :95])
        assert not small_fits(torch.cat([x, x], dim=2), weight)
        assert not small_fits(x[:0], weight)
        assert not small_fits(x.double(), weight.double())
        assert not small_fits(x.half(), weight)
        assert not small_fits(x.to("meta"), weight.to("meta"))
        with torch.no_grad():
            assert not small_fits(x, weight)


def test_the_layer_takes_it_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(x.shape)
        return small_convolution(x, weight, bias)

    monkeypatch.setattr(winograd, "small_convolution", counted)
    layer, x = Convolution(4, 4), torch.randn(2, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        fast = layer(x)
        layer.fast = False
        plain = layer(x)
    assert calls == [(2, 4, 4, 4)]
    torch.testing.assert_close(fast, plain, rtol=2**-7, atol=1e-3)
