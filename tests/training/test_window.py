from __future__ import annotations

import math

import pytest
import torch

from cascaded_diffusion.training.window import Window


def test_losses_are_averaged_by_the_time_they_belong_to() -> None:
    """Eighths of (0, 1], the upper end of each included."""
    window = Window(torch.device("cpu"))
    window.add(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0.1, 0.125, 1.0], dtype=torch.float64))
    window.add(torch.tensor([4.0]), torch.tensor([0.126], dtype=torch.float64))
    window.end_step(4, 2.0)
    window.end_step(4, 4.0)
    told = window.summary()
    assert told["loss"] == 4
    assert told["loss_by_time"] == [2, 4, None, None, None, None, None, 8]
    assert told["grad_norm"] == 3


def test_what_is_not_finite_is_left_out() -> None:
    window = Window(torch.device("cpu"))
    window.add(torch.tensor([1.0, math.nan, math.inf, 3.0]), torch.full((4,), 0.5, dtype=torch.float64))
    window.end_step(4, None)
    window.end_step(4, 5.0)
    told = window.summary()
    assert told["loss"] == 2
    assert told["grad_norm"] == 5


def test_without_anything_finite_there_is_no_loss() -> None:
    window = Window(torch.device("cpu"))
    window.add(torch.tensor([math.nan]), torch.tensor([0.5], dtype=torch.float64))
    window.end_step(1, None)
    told = window.summary()
    assert (told["loss"], told["grad_norm"], told["loss_by_time"]) == (None, None, [None] * 8)


def test_speed_counts_the_images_of_all_processes_and_waiting_is_a_share() -> None:
    window = Window(torch.device("cpu"))
    window._started -= 10
    window.waited = 2.5
    window.end_step(40, 1.0)
    told = window.summary()
    assert told["images_per_second"] == pytest.approx(4, rel=0.05)
    assert told["data_wait"] == pytest.approx(0.25, rel=0.05)
