"""Winograd's convolutions against the direct sum in double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cascaded_diffusion.networks import winograd
from cascaded_diffusion.networks.sharing import in_shares
from cascaded_diffusion.networks.winograd import Convolution, winograd_convolution, winograd_fits


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def problem(n: int, c: int, k: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = draw(n, c, height, width).to(memory_format=torch.channels_last)
    return x, draw(k, c, 3, 3) / (9 * c) ** 0.5, draw(k), draw(n, k, height, width)


def answers(function: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    given = [value.detach().clone(memory_format=torch.preserve_format).requires_grad_() for value in (x, weight, bias)]
    out = function(*given)
    return [out.detach(), *torch.autograd.grad(out, given, grad)]


def direct(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize("shape", [(3, 5, 7, 8, 12), (1, 64, 64, 4, 4), (5, 16, 8, 16, 8)], ids=str)
@pytest.mark.parametrize("work_space", [1, 3_000, 10**7])
def test_answer_and_gradients_are_the_direct_sums(
    shape: tuple[int, ...], work_space: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of the images is worked on at once: a row of tiles, some rows, some images, or all."""
    monkeypatch.setattr(winograd, "_WORK_SPACE", work_space)
    values = problem(*shape)
    exact = answers(direct, *(value.double() for value in values))
    for found, wanted in zip(answers(winograd_convolution, *values), exact, strict=True):
        error = torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted)
        assert error < 5e-6


def test_answers_are_in_channels_last_and_the_same_every_time(threads: int) -> None:
    values = problem(4, 64, 64, 8, 8)
    first, second = (answers(winograd_convolution, *values) for _ in range(2))
    assert first[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_it_is_taken_only_where_it_is_right_and_pays() -> None:
    x, weight, _, _ = problem(1, 64, 64, 20, 20)
    assert winograd_fits(x, weight)
    assert not winograd_fits(x[:, :, :18], weight)
    assert not winograd_fits(x[:, :, :, :19], weight)
    assert not winograd_fits(x[:, :, :12], weight)
    assert not winograd_fits(x.double(), weight.double())
    assert not winograd_fits(x.bfloat16(), weight.bfloat16())
    assert not winograd_fits(x[:, :63], weight[:, :63])
    assert not winograd_fits(x[:0], weight)
    assert not winograd_fits(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd_fits(x, weight)


def test_the_layer_takes_it_unless_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Convolution(64, 64), problem(1, 64, 64, 16, 16)[0]
    plain = F.conv2d(x, layer.weight, layer.bias, padding=1)
    assert not torch.equal(layer(x), plain)
    torch.testing.assert_close(layer(x), plain, rtol=0, atol=1e-5)
    layer.fast = False
    assert torch.equal(layer(x), plain)


def test_inference_mode_is_kept_by_the_threads(threads: int) -> None:
    x, weight, bias, _ = problem(4, 64, 64, 8, 8)
    with torch.inference_mode():
        out = winograd_convolution(x, weight, bias)
    torch.testing.assert_close(out, direct(x, weight, bias), rtol=0, atol=1e-5)


def test_shares_cover_all_once_and_pass_errors_on(threads: int) -> None:
    seen: list[int] = []
    in_shares(lambda own: seen.extend(own), 7)
    assert sorted(seen) == list(range(7))
    assert torch.get_num_threads() == threads

    def fail(own: range) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_shares(fail, 7)
