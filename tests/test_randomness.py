"""Randomness: the published generator's known answers, and what a number may and may not depend on."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from cascaded_diffusion.randomness import derive_seed, normal, permutation, philox_4x32, random_words, uniform


def _counter(*words: int) -> list[Tensor]:
    return [torch.tensor([word]) for word in words]


# Known answers of Random123 1.14 (kat_vectors) for philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox_4x32(_counter(*counter), key[0] | key[1] << 32)
    assert tuple(int(word) for word in words) == expected


def test_words_are_the_generator_at_block_step_and_index() -> None:
    index = (7 << 32) + 5
    words = random_words(3, "test", torch.tensor([index]), 6, step=9)
    key = derive_seed(3, "test")
    first, second = (philox_4x32(_counter(block, 9, 5, 7), key) for block in (0, 1))
    assert words[0].tolist() == [int(word) for word in (*first, *second[:2])]


def test_numbers_never_change() -> None:
    """Shipped weights and published samples name a seed; these are the numbers that it stands for."""
    assert derive_seed(0, "test") == 0x8765A9D49C1DE3DA
    two = torch.tensor([2])
    assert random_words(1, "test", two, 4)[0].tolist() == [0x8ACA9FE9, 0x04CB929F, 0xB564B71F, 0xD4671CC9]
    assert uniform(1, "test", two).tolist() == [0x8ACA9FE9 / 2**32]
    expected = torch.tensor([[-0.28481439, 1.35409236, -1.06924748, -2.47417760]])
    torch.testing.assert_close(normal(1, "test", two, (4,)), expected, rtol=0, atol=2e-6)
    assert permutation(1, "test", 6).tolist() == [0, 5, 1, 3, 2, 4]


@pytest.mark.parametrize("step", [0, 3])
def test_an_image_has_the_same_numbers_in_any_batch(step: int) -> None:
    index = torch.tensor([4, 0, 7, 2**32 + 4, 1])
    together = normal(0, "test", index, (3, 5, 5), step=step)
    alone = torch.cat([normal(0, "test", index[i : i + 1], (3, 5, 5), step=step) for i in range(len(index))])
    assert torch.equal(together, alone)
    whole = uniform(0, "test", torch.arange(8), step=step)
    assert torch.equal(whole[index[:3]], uniform(0, "test", index[:3], step=step))
    assert torch.equal(whole, torch.cat([uniform(0, "test", torch.arange(a, a + 4), step=step) for a in (0, 4)]))


def test_seeds_purposes_steps_and_indices_give_different_uncorrelated_numbers() -> None:
    shape = (4096,)
    draws = {
        (seed, purpose, step, index): normal(seed, purpose, torch.tensor([index]), shape, step=step)[0]
        # 2**32 and 2**33 share their low word with 0, and 1 its high word.
        for seed, purpose, step, index in itertools.product((0, 1), ("a", "b"), (0, 1), (0, 1, 2**32, 2**33))
    }
    stacked = torch.stack(list(draws.values())).double()
    correlation = torch.corrcoef(stacked) - torch.eye(len(stacked))
    # 496 pairs, standard error 1/64: the largest of them stays within 5 errors.
    assert correlation.abs().max() < 5 / 64


def test_the_seed_and_the_purpose_do_not_run_into_each_other() -> None:
    assert len({derive_seed(1, "1/a"), derive_seed(11, "/a"), derive_seed(1, "a"), derive_seed(-1, "a")}) == 4
    assert 0 <= derive_seed(2**80, "a") < 2**64


def test_steps_outside_the_counter_are_refused() -> None:
    for step in (-1, 2**32):
        with pytest.raises(ValueError, match="step"):
            random_words(0, "test", torch.arange(2), 1, step=step)
    assert random_words(0, "test", torch.arange(2), 1, step=2**32 - 1).shape == (2, 1)


def test_uniform_fills_the_unit_interval_evenly() -> None:
    u = uniform(0, "test", torch.arange(100_000))
    assert u.dtype == torch.float64
    assert u.min() >= 0
    assert u.max() < 1
    share = torch.histc(u, 10, 0, 1) / len(u)
    assert (share - 0.1).abs().max() < 5 * (0.1 * 0.9 / len(u)) ** 0.5
    # Neighbouring images are independent.
    assert torch.corrcoef(torch.stack([u[:-1], u[1:]]))[0, 1].abs() < 5 * len(u) ** -0.5


def test_normal_has_the_moments_and_tails_of_a_normal() -> None:
    x = normal(0, "test", torch.arange(200), (1, 25, 41)).double().flatten()
    n = len(x)
    assert x.mean().abs() < 5 * n**-0.5
    # The standard errors of the sample's second, third and fourth moments are sqrt(2/n), sqrt(15/n) and sqrt(96/n).
    assert (x.square().mean() - 1).abs() < 5 * (2 / n) ** 0.5
    assert (x**3).mean().abs() < 5 * (15 / n) ** 0.5
    assert ((x**4).mean() - 3).abs() < 5 * (96 / n) ** 0.5
    for limit, share in ((1.0, 0.31731), (2.0, 0.0455), (3.0, 0.0027)):
        assert ((x.abs() > limit).double().mean() - share).abs() < 5 * (share / n) ** 0.5


@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7), (2, 4, 4)])
def test_normal_has_the_asked_shape_and_no_value_twice(shape: tuple[int, ...]) -> None:
    x = normal(0, "test", torch.arange(6), shape)
    assert x.shape == (6, *shape)
    assert x.dtype == torch.float32
    assert len(x.unique()) == x.numel()


def test_no_images_give_no_numbers() -> None:
    none = torch.arange(0)
    assert normal(0, "test", none, (3, 4, 4)).shape == (0, 3, 4, 4)
    assert uniform(0, "test", none).shape == (0,)


@pytest.mark.parametrize("length", [1, 2, 1000])
def test_permutation_is_one(length: int) -> None:
    order = permutation(0, "test", length)
    assert torch.equal(order.sort().values, torch.arange(length))


def test_permutations_differ_between_epochs_and_have_no_drift() -> None:
    orders = torch.stack([permutation(0, "test", 100, step=epoch) for epoch in range(400)])
    assert len({tuple(order.tolist()) for order in orders}) == 400
    # Every place holds each image equally often: its mean is 49.5 with a standard error of 28.87 / 20.
    assert (orders.double().mean(dim=0) - 49.5).abs().max() < 5 * 28.87 / 20
