"""Embeddings: values worked out by hand, and the null label."""

from __future__ import annotations

import math

import pytest
import torch

from cascaded_diffusion.networks.embeddings import ClassEmbedding, ScalarEmbedding, sinusoid


def test_sinusoid_is_cosines_then_sines_of_falling_frequencies() -> None:
    waves = sinusoid(torch.tensor([0.0, 3.0]), 4)
    slow = 3.0 * 10000.0**-0.5
    expected = [[1.0, 1.0, 0.0, 0.0], [math.cos(3.0), math.cos(slow), math.sin(3.0), math.sin(slow)]]
    torch.testing.assert_close(waves, torch.tensor(expected))


@pytest.mark.parametrize("width", [1, 2, 5, 9])
def test_odd_widths_end_in_a_zero(width: int) -> None:
    waves = sinusoid(torch.tensor([7.0]), width)
    assert waves.shape == (1, width)
    if width % 2:
        assert waves[0, -1] == 0


def test_fractional_times_are_told_apart_in_double_and_half_precision_networks() -> None:
    embedding = ScalarEmbedding(8, 16).to(torch.float64)
    a, b = embedding(torch.tensor([1.0, 1.5], dtype=torch.float64))
    assert a.dtype == torch.float64
    assert (a - b).abs().max() > 1e-3


def test_scale_multiplies_the_number() -> None:
    torch.manual_seed(0)
    embedding = ScalarEmbedding(8, 16, scale=1000.0)
    torch.testing.assert_close(
        embedding(torch.tensor([0.25])),
        embedding.mix(torch.nn.functional.silu(embedding.expand(sinusoid(torch.tensor([250.0]), 8)))),
    )


def test_minus_one_is_embedded_as_zeros_and_teaches_nothing() -> None:
    embedding = ClassEmbedding(3, 4)
    vectors = embedding(torch.tensor([-1, 2, -1, 0]))
    assert not vectors[[0, 2]].any()
    torch.testing.assert_close(vectors[[1, 3]], embedding.table.weight[[2, 0]])
    embedding(torch.tensor([-1, 1])).sum().backward()
    gradient = embedding.table.weight.grad
    assert gradient is not None
    torch.testing.assert_close(gradient, torch.tensor([[0.0], [1.0], [0.0]]).expand(3, 4))
