"""Randomness as a pure function of (seed, purpose, global image index).

A counter-based generator, Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
written in tensor operations: image ``i`` gets the same numbers whichever rank, worker, batch or device asks for them,
and a resumed run needs no saved generator state.

The 64-bit key is a hash of (seed, purpose). The 128-bit counter is (block, step, index low, index high), where
``block`` counts groups of four 32-bit words inside one image and ``step`` separates, for instance, the steps of a
sampler.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["derive_seed", "normal", "permutation", "philox_4x32", "random_words", "uniform"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def derive_seed(seed: int, purpose: str) -> int:
    """A 64-bit key from a seed and the name of what the numbers are for."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    # int64 multiplication wraps modulo 2**64, so the bits are those of the unsigned product.
    product = b * a
    return (product >> 32) & _MASK, product & _MASK


def philox_4x32(counter: Sequence[Tensor], key: int, rounds: int = 10) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 random bits (held in int64) for each counter.

    Args:
        counter: four int64 tensors of one broadcastable shape, each in [0, 2**32).
        key: 64-bit key.
        rounds: 10 in the published generator.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & _MASK, key >> 32
    for _ in range(rounds):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_words(seed: int, purpose: str, index: Tensor, count: int, *, step: int = 0) -> Tensor:
    """``count`` words of 32 random bits for every image index: int64 (N, count), each in [0, 2**32).

    Args:
        seed: the run's or the sample's seed.
        purpose: what the numbers are for; another purpose gives independent numbers.
        index: int64 (N,), global image indices, not negative.
        count: words an image.
        step: in [0, 2**32); separates repeated draws for the same purpose.
    """
    if not 0 <= step <= _MASK:
        raise ValueError(f"step: {step} is not in [0, 2**32)")
    index = index.to(torch.int64)[:, None]
    blocks = torch.arange((count + 3) // 4, device=index.device)[None]
    zero = torch.zeros_like(blocks)
    words = philox_4x32(
        (blocks + torch.zeros_like(index), zero + step, index & _MASK, (index >> 32) & _MASK),
        derive_seed(seed, purpose),
    )
    shape = (index.shape[0], blocks.shape[1])
    return torch.stack([word.expand(shape) for word in words], dim=-1).flatten(1)[:, :count]


def uniform(seed: int, purpose: str, index: Tensor, *, step: int = 0) -> Tensor:
    """One float64 in [0, 1) for every image index: (N,)."""
    return random_words(seed, purpose, index, 1, step=step)[:, 0].to(torch.float64) * 2.0**-32


def normal(seed: int, purpose: str, index: Tensor, shape: Sequence[int], *, step: int = 0) -> Tensor:
    """Standard normal noise for every image index: float32 (N, *shape), by the Box-Muller transform."""
    size = math.prod(shape)
    pairs = (size + 1) // 2
    words = random_words(seed, purpose, index, 2 * pairs, step=step)
    # The half-step keeps the radius finite; float32 rounding to exactly 1 gives radius 0, which is harmless.
    first, second = ((words[:, i * pairs : (i + 1) * pairs].to(torch.float32) + 0.5) * 2.0**-32 for i in (0, 1))
    radius = torch.sqrt(-2.0 * torch.log(first))
    angle = (2.0 * math.pi) * second
    noise = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :size]
    return noise.reshape(index.shape[0], *shape)


def permutation(seed: int, purpose: str, length: int, *, step: int = 0) -> Tensor:
    """A random order of ``range(length)``: int64 (length,)."""
    words = random_words(seed, purpose, torch.arange(length), 2, step=step)
    # 63 bits sort positions; the stable sort settles the (never yet seen) tie.
    return torch.argsort((words[:, 0] >> 1) << 32 | words[:, 1], stable=True)
