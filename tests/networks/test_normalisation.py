"""Norm, scale, shift and SiLU in one go against the plain path, on a CPU and by the kernels' own arithmetic."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascaded_diffusion.networks import norm_kernels, normalisation
from cascaded_diffusion.networks.norm_kernels import has_kernels, norm_silu
from cascaded_diffusion.networks.normalisation import group_norm


def problem(*shape: int, offset: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x = (draw(*shape) + offset).to(memory_format=torch.channels_last)
    return x, draw(*shape[:2]), draw(*shape[:2]), draw(*shape)


def exact(x: Tensor, groups: int, gain: Tensor, shift: Tensor, grad: Tensor) -> list[Tensor]:
    given = [value.double().requires_grad_() for value in (x, gain, shift)]
    out = F.silu(F.group_norm(given[0], groups) * given[1][:, :, None, None] + given[2][:, :, None, None])
    return [out.detach(), *torch.autograd.grad(out, given, grad.double())]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float(torch.linalg.vector_norm(found.double() - wanted) / torch.linalg.vector_norm(wanted))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("shape", [(3, 64, 32, 32), (1, 20, 40, 36), (2, 7, 33, 35)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_all_in_one_go_is_the_plain_path(
    shape: tuple[int, ...], told: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, scale, shift, grad = problem(*shape)
    norm = group_norm(shape[1])
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    given = [x.requires_grad_(), norm.weight, norm.bias]
    if told:
        given += [scale.requires_grad_(), shift.requires_grad_()]

    def answers(fast: bool) -> list[Tensor]:
        norm.fast = fast
        out = norm.activated(x, *given[3:])
        assert ("NormSilu" in type(out.grad_fn).__name__) == fast
        assert out.is_contiguous(memory_format=torch.channels_last)
        return [out.detach(), *torch.autograd.grad(out, given, grad)]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for found, wanted in zip(answers(True), answers(False), strict=True):
            assert relative(found, wanted.double()) < 1e-5
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(3, 64, 32, 32), (40, 96, 16, 16), (2, 7, 3, 5)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_bf16_in_one_go_is_nearer_to_the_exact_answer(shape: tuple[int, ...], threads: int) -> None:
    x, scale, shift, grad = problem(*shape)
    x, scale, shift, grad = (value.bfloat16() for value in (x, scale, shift, grad))
    norm = group_norm(shape[1])
    given = [value.requires_grad_() for value in (x, scale, shift)]
    gain = 1 + scale.detach().double()
    wanted = exact(x.detach(), norm.num_groups, gain, shift.detach(), grad)

    def errors(fast: bool) -> list[float]:
        norm.fast = fast
        out = norm.activated(*given)
        assert ("NormSilu" in type(out.grad_fn).__name__) == fast
        assert out.dtype == torch.bfloat16
        assert out.is_contiguous(memory_format=torch.channels_last)
        found = [out.detach(), *torch.autograd.grad(out, given, grad)]
        return [relative(mine, exactly) for mine, exactly in zip(found, wanted, strict=True)]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast, plain = errors(True), errors(False)
    finally:
        torch.set_num_threads(before)
    assert max(fast) < 4e-3  # one rounding to 8 bits
    assert all(mine < 1.1 * theirs for mine, theirs in zip(fast, plain, strict=True))


def test_double_precision_autocast_and_no_gradient_take_the_plain_path() -> None:
    norm, x = group_norm(8), problem(1, 8, 32, 32)[0]

    def took(x: Tensor) -> bool:
        return "NormSilu" in type(norm.activated(x).grad_fn).__name__

    assert took(x)
    assert not took(x.contiguous())
    assert not took(x[:, :, :16])
    with torch.autocast("cpu", torch.bfloat16):
        assert not took(x)
        assert took(x.bfloat16())
        assert took(x.bfloat16()[:, :, ::4, ::4].contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        assert norm.activated(x).grad_fn is None
    assert "NormSilu" not in type(norm.double().activated(x.double()).grad_fn).__name__


@pytest.mark.parametrize(
    ("side", "dtype", "fast"), [(32, torch.bfloat16, False), (31, torch.bfloat16, True), (31, torch.float32, False)]
)
def test_without_a_gradient_small_images_in_bf16_go_in_one(
    side: int, dtype: torch.dtype, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    whole = normalisation._forward
    monkeypatch.setattr(normalisation, "_forward", lambda *args: (seen.append(1), whole(*args)))
    with torch.no_grad():
        group_norm(8).activated(problem(1, 8, side, side)[0].to(dtype))
    assert bool(seen) == fast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "groups"), [((2, 96, 7, 9), 32), ((1, 20, 16, 16), 4)], ids=str)
def test_the_kernels_arithmetic(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:
    """Strips of 64 pixels, the last of them shorter, joined: what the CUDA kernels compute, here by torch."""
    x, gain, shift, grad = problem(*shape, offset=30.0)
    x, grad = x.to(dtype), grad.to(dtype)
    given = [value.detach().requires_grad_() for value in (x, gain, shift)]
    out, mean, rstd = norm_silu(*given, groups, 1e-5)
    assert out.dtype == dtype
    assert mean.dtype == rstd.dtype == torch.float32
    found = [out.detach(), *torch.autograd.grad(out, given, grad)]
    rounding = 1e-5 if dtype == torch.float32 else 5e-3
    for mine, wanted in zip(found, exact(x, groups, gain, shift, grad), strict=True):
        assert relative(mine, wanted) < rounding


def test_the_operation_is_whole_for_the_compiler() -> None:
    """Its schema, its answer without numbers and its gradient agree."""
    x, gain, shift, _ = problem(2, 8, 4, 5)
    given = [value.requires_grad_() for value in (x, gain, shift)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(norm_kernels.norm_silu, (*given, 4, 1e-5), test_utils=checks)


@pytest.mark.gpu
@pytest.mark.skipif(not (torch.cuda.is_available() and has_kernels()), reason="needs CUDA and Triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_kernels(dtype: torch.dtype) -> None:
    x, gain, shift, grad = problem(2, 96, 23, 17, offset=3.0)
    given = [value.cuda().requires_grad_() for value in (x.to(dtype), gain, shift)]
    out = norm_silu(*given, 32, 1e-5)[0]
    found = [out.detach(), *torch.autograd.grad(out, given, grad.to(dtype).cuda())]
    rounding = 1e-5 if dtype == torch.float32 else 5e-3
    for mine, wanted in zip(found, exact(x.to(dtype), 32, gain, shift, grad.to(dtype)), strict=True):
        assert relative(mine.cpu(), wanted) < rounding
