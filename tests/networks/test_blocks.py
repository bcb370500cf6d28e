"""The parts of the U-Net against plain re-statements of their formulas."""

from __future__ import annotations

from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascaded_diffusion.networks.blocks import (
    AttentionOrder,
    Direction,
    Resampling,
    ResidualBlock,
    SelfAttention,
    group_norm,
    resize_by_two,
)

M = TypeVar("M", bound=nn.Module)


def filled(module: M) -> M:
    """``module`` with random weights everywhere, in double precision."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.double()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("width", "groups"), [(32, 32), (96, 32), (48, 16), (20, 4), (7, 1)])
def test_groups_divide_any_width(width: int, groups: int) -> None:
    assert group_norm(width).num_groups == groups


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_norms_of_large_images_are_exact(layout: torch.memory_format, offset: float) -> None:
    """torch's own is off by 1e-5 and more here, for it adds up channels_last images pixel by pixel."""
    norm, x = filled(group_norm(64)), noise(2, 64, 128, 128) + offset
    weight = noise(*x.shape)
    x.requires_grad_()
    expected = F.group_norm(x, 32, norm.weight, norm.bias)
    slope = torch.autograd.grad((expected * weight).sum(), x)[0]
    single = x.detach().float().to(memory_format=layout).requires_grad_()
    out = norm.float()(single)
    assert out.is_contiguous(memory_format=layout)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3e-6)
    found = torch.autograd.grad((out * weight.float()).sum(), single)[0]
    torch.testing.assert_close(found.double(), slope, rtol=0, atol=3e-6)


@pytest.mark.parametrize("side", [8, 32, 64])
def test_norms_of_no_images_are_none(side: int) -> None:
    x = torch.zeros(0, 8, side, side).contiguous(memory_format=torch.channels_last)
    norm = group_norm(8)
    assert norm(x).shape == norm.activated(x).shape == x.shape


def test_resizing_by_two() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]])[None, None]
    assert resize_by_two(x, "down").tolist() == [[[[4.0]]]]
    assert resize_by_two(x, "up")[0, 0].tolist() == [[1, 1, 3, 3], [1, 1, 3, 3], [5, 5, 7, 7], [5, 5, 7, 7]]


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("conv", [True, False])
def test_resampling_without_a_block(direction: Direction, conv: bool) -> None:
    module, x = filled(Resampling(6, direction, conv=conv)), noise(2, 6, 4, 4)
    out = module(x, noise(2, 5))
    if not conv:
        expected = resize_by_two(x, direction)
    elif direction == "down":
        expected = F.conv2d(x, module.conv.weight, module.conv.bias, stride=2, padding=1)
    else:
        expected = F.conv2d(resize_by_two(x, "up"), module.conv.weight, module.conv.bias, padding=1)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("out_width", [6, 10])
def test_residual_block_follows_its_formula(scale_shift: bool, resample: Direction | None, out_width: int) -> None:
    block = filled(ResidualBlock(6, out_width, 5, dropout=0.0, scale_shift=scale_shift, resample=resample))
    x, signal = noise(2, 6, 4, 4), noise(2, 5)
    h, shortcut = F.silu(block.norm_in(x)), x
    if resample is not None:
        h, shortcut = resize_by_two(h, resample), resize_by_two(x, resample)
    h, told = block.conv_in(h), block.signal(signal)
    if scale_shift:
        scale, shift = told[:, :out_width, None, None], told[:, out_width:, None, None]
        h = block.norm_out(h) * (1 + scale) + shift
    else:
        h = block.norm_out(h + told[:, :, None, None])
    torch.testing.assert_close(block(x, signal), block.shortcut(shortcut) + block.conv_out(F.silu(h)))


def test_residual_block_starts_as_its_shortcut() -> None:
    block, x = ResidualBlock(6, 6, 5, dropout=0.5, scale_shift=True), torch.randn(1, 6, 4, 4)
    assert torch.equal(block(x, torch.randn(1, 5)), x)


def test_dropout_acts_in_training_only() -> None:
    block = filled(ResidualBlock(8, 8, 5, dropout=0.5, scale_shift=True))
    x, signal = noise(1, 8, 4, 4), noise(1, 5)
    assert not torch.equal(block(x, signal), block(x, signal))
    block.eval()
    assert torch.equal(block(x, signal), block(x, signal))


@pytest.mark.parametrize("order", ["heads-first", "qkv-first"])
def test_attention_follows_its_formula_in_both_orders(order: AttentionOrder) -> None:
    heads, size, module, x = 3, 4, filled(SelfAttention(12, 3, order)), noise(2, 12, 2, 3)
    rows = F.linear(
        module.norm(x).flatten(2).transpose(1, 2), module.query_key_value.weight, module.query_key_value.bias
    )
    seen = torch.empty(2, 6, 12, dtype=torch.float64)
    for head in range(heads):
        first = [
            (3 * head + part) * size if order == "heads-first" else (heads * part + head) * size for part in range(3)
        ]
        q, k, v = (rows[:, :, start : start + size] for start in first)
        weights = (q @ k.transpose(1, 2) / size**0.5).softmax(dim=-1)
        seen[:, :, head * size : (head + 1) * size] = weights @ v
    change = F.linear(seen, module.project.weight, module.project.bias).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), x + change)


def test_attention_on_a_cpu_is_trained_in_float32_and_sampled_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's bf16 kernel is slow backwards."""
    seen, own = [], F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = own(q, k, v)
        seen.append({one.dtype for one in (q, k, v, out)})
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    module, x = filled(SelfAttention(16, 2, "qkv-first")).float(), torch.randn(2, 16, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        trained = module(x)
        with torch.no_grad():
            sampled = module(x)
    assert seen == [{torch.float32}, {torch.bfloat16}]
    torch.testing.assert_close(trained, module(x), rtol=0, atol=0.05)
    torch.testing.assert_close(sampled, module(x), rtol=0, atol=0.05)


def test_attention_starts_as_no_change() -> None:
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(SelfAttention(8, 2, "qkv-first")(x), x)


def test_memory_format_is_kept_and_does_not_matter() -> None:
    x, signal = noise(2, 8, 4, 6), noise(2, 5)
    block = filled(ResidualBlock(8, 12, 5, dropout=0.0, scale_shift=True))
    attention = filled(SelfAttention(8, 2, "qkv-first"))
    last = x.to(memory_format=torch.channels_last)
    for plain, other in ((block(x, signal), block(last, signal)), (attention(x), attention(last))):
        assert other.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(plain, other)
