"""EDM's preconditioning: its table 1, written in sigma, against ours, written in alpha_bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cascaded_diffusion.diffusion.denoiser import Diffusion, DiffusionConfig
from cascaded_diffusion.diffusion.grid import sampling_grid
from cascaded_diffusion.diffusion.levels import sigma_of
from cascaded_diffusion.diffusion.losses import min_snr_weight, sigmoid_weight
from cascaded_diffusion.diffusion.preconditioning import edm_image, edm_input, edm_target
from cascaded_diffusion.diffusion.process import from_prediction, per_image, prediction_target, q_sample
from cascaded_diffusion.diffusion.samplers import ddim, heun

CONTINUOUS = {"kind": "cosine", "timesteps": None}
ALPHA_BARS = torch.tensor([1e-4, 0.1, 0.5, 0.93, 0.9999], dtype=torch.float64)


def _diffusion(**values: Any) -> Diffusion:
    return Diffusion(DiffusionConfig.model_validate({"noise_schedule": CONTINUOUS, **values}))


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise, output = (torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    return 0.5 * x0, noise, output


@pytest.mark.parametrize("sigma_data", [0.5, 0.3])
def test_it_is_the_papers_table_on_our_scale(drawn: tuple[Tensor, Tensor, Tensor], sigma_data: float) -> None:
    x0, noise, output = drawn
    ab = per_image(ALPHA_BARS, x0)
    sigma = ((1 - ab) / ab).sqrt()
    # The paper's: y = x0 + sigma n, and four functions of sigma.
    y = x0 + sigma * noise
    z = q_sample(x0, noise, ab)
    torch.testing.assert_close(z / ab.sqrt(), y)
    skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
    torch.testing.assert_close(edm_input(z, ab, sigma_data), y / (sigma**2 + sigma_data**2).sqrt())
    torch.testing.assert_close(edm_image(output, z, ab, sigma_data), skip * y + out * output)
    # lambda |D - x0|^2 with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 is the plain error to the target.
    weighted = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2 * (skip * y + out * output - x0) ** 2
    torch.testing.assert_close((output - edm_target(x0, noise, ab, sigma_data)) ** 2, weighted)


def test_with_sigma_data_one_it_is_v_prediction(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, output = drawn
    ab = per_image(ALPHA_BARS, x0)
    z = q_sample(x0, noise, ab)
    torch.testing.assert_close(edm_input(z, ab, 1.0), z)
    torch.testing.assert_close(edm_target(x0, noise, ab, 1.0), -prediction_target("v", x0, noise, ab))
    torch.testing.assert_close(edm_image(output, z, ab, 1.0), from_prediction("v", -output, z, ab))


def test_the_loss_sees_scaled_input_and_its_target(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, _ = (value.float() for value in drawn)
    diffusion = _diffusion(prediction="edm", sigma_data=0.4)
    times = diffusion.schedule.time_of(ALPHA_BARS)
    seen = {}

    def right(x: Tensor, time: Tensor) -> Tensor:
        seen["x"], seen["time"] = x, time
        return edm_target(x0, noise, per_image(diffusion.schedule.alpha_bar(times), x0), 0.4)

    assert diffusion.training_loss(right, x0, noise, times).abs().max() < 1e-10
    ab = diffusion.schedule.alpha_bar(times)
    z = q_sample(x0, noise, per_image(ab, x0))
    torch.testing.assert_close(seen["x"], edm_input(z, per_image(ab, x0), 0.4))
    sigmas = torch.tensor([sigma_of(value) for value in ab.tolist()], dtype=torch.float64)
    # c_noise = ln(sigma) / 4, from -2.5 to 2.5 for log SNR within 20, spread over the embedding's 0 to 1000.
    torch.testing.assert_close(seen["time"], ((sigmas.log() / 4 + 2.5) * 200).float())
    wrong = diffusion.training_loss(lambda x, t: right(x, t) + 2.0, x0, noise, times)
    torch.testing.assert_close(wrong, torch.full((5,), 4.0))


@pytest.mark.parametrize("sampler", [ddim, heun])
def test_a_perfect_network_leads_every_sampler_to_its_image(sampler: Any) -> None:
    """Images N(0, sigma_data^2): D is linear, and the probability flow scales noise to sigma_data in closed form."""
    diffusion, sigma_data = _diffusion(prediction="edm", sigma_data=0.3), 0.3
    # For such images the best D is c_skip y: F = 0.
    denoise = diffusion.denoiser(lambda x, _: torch.zeros_like(x), clip=False)
    grid = sampling_grid(diffusion.schedule, 400)
    x = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    start = 1 - grid[0].alpha_bar + sigma_data**2 * grid[0].alpha_bar
    found = sampler(denoise, x, grid, noise=lambda _: torch.zeros_like(x))
    torch.testing.assert_close(found, x * sigma_data / start**0.5, rtol=0.02, atol=0.001)


def test_truncated_hand_over_is_at_the_level_whatever_is_predicted() -> None:
    """The sampler's x at s is sqrt(ab) x0 + sqrt(1 - ab) eps of what the denoiser says, on the scale of the others."""
    diffusion = _diffusion(prediction="edm", sigma_data=0.5)
    image = torch.full((1, 1, 2, 2), 0.7)

    def network(x: Tensor, time: Tensor) -> Tensor:
        # Ask for the image itself, at whatever level this is.
        sigma = torch.exp(time.double() / 50 - 10).float()
        ab = (1 / (1 + sigma**2)).reshape(-1, 1, 1, 1)
        z = x * (1 - ab + 0.25 * ab).sqrt()
        skip = 0.25 * ab.sqrt() / (1 - ab + 0.25 * ab)
        return (image - skip * z) / ((1 - ab).sqrt() * 0.5 / (1 - ab + 0.25 * ab).sqrt())

    grid = sampling_grid(diffusion.schedule, 8, stop=0.3)
    x = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    found = ddim(diffusion.denoiser(network), x, grid, noise=lambda _: torch.zeros_like(x))
    ab = grid[-1].alpha_bar
    assert ab == diffusion.schedule.level(0.3).alpha_bar
    # From pure noise with a constant image DDIM keeps eps.
    torch.testing.assert_close(found, ab**0.5 * image + (1 - ab) ** 0.5 * x, rtol=1e-3, atol=1e-3)


def test_min_snr_counts_in_the_images_error(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, noise, output = drawn
    ab = per_image(ALPHA_BARS, x0)
    z = q_sample(x0, noise, ab)
    loss = (output - edm_target(x0, noise, ab, 0.5)) ** 2 * per_image(
        min_snr_weight("edm", ALPHA_BARS, 5.0, sigma_data=0.5), x0
    )
    snr = ab / (1 - ab)
    torch.testing.assert_close(loss, snr.clamp(max=5) * (edm_image(output, z, ab, 0.5) - x0) ** 2)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"sigma_data": 0.5}, "sigma_data: 0.5 needs prediction: edm, not eps"),
        ({"prediction": "edm", "variance": "learned", "noise_schedule": {}}, "edm does not go with variance: learned"),
        ({"log_normal": {}, "variance": "learned", "noise_schedule": {}}, "log_normal"),
        ({"sigmoid_bias": 0.0, "min_snr_gamma": 5.0}, "sigmoid_bias: 0 does not go with min_snr_gamma"),
        ({"sigmoid_bias": 0.0, "noise_schedule": {}}, "sigmoid_bias: 0 needs a continuous noise_schedule"),
    ],
)
def test_contradictions_are_refused_by_key(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DiffusionConfig.model_validate({"noise_schedule": CONTINUOUS, **values})


def test_a_discrete_schedule_can_be_preconditioned_too() -> None:
    diffusion = _diffusion(prediction="edm", noise_schedule={"timesteps": 40})
    assert diffusion.embedding == "log-sigma"
    assert _diffusion(prediction="edm", noise_embedding="angle").embedding == "angle"
    x = torch.zeros(1, 1, 2, 2)
    x0, _ = diffusion.predict(lambda x, _: torch.ones_like(x), x, diffusion.schedule.level(0.5))
    ab = diffusion.schedule.level(0.5).alpha_bar
    assert x0[0, 0, 0, 0].item() == pytest.approx(0.5 * (1 - ab) ** 0.5 / (1 - ab + 0.25 * ab) ** 0.5)


@pytest.mark.parametrize("weight", [min_snr_weight, sigmoid_weight])
def test_the_weights_sigma_data_is_edms(weight: Callable[..., Tensor]) -> None:
    torch.testing.assert_close(weight("edm", ALPHA_BARS, 1.0), weight("edm", ALPHA_BARS, 1.0, sigma_data=0.5))
    assert (weight("edm", ALPHA_BARS, 1.0) < weight("edm", ALPHA_BARS, 1.0, sigma_data=0.6)).all()
