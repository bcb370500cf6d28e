r"""EDM's preconditioning (2206.00364, section 5 and table 1) on the variance-preserving scale.

EDM's denoiser is :math:`D(y; \sigma) = c_\mathrm{skip} y + c_\mathrm{out} F(c_\mathrm{in} y; c_\mathrm{noise})` with

.. math::
    c_\mathrm{skip} = \frac{\sigma_d^2}{\sigma^2 + \sigma_d^2}, \quad
    c_\mathrm{out} = \frac{\sigma \sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
    c_\mathrm{in} = \frac{1}{\sqrt{\sigma^2 + \sigma_d^2}}, \quad
    c_\mathrm{noise} = \tfrac14 \ln \sigma

and its loss weighs the squared error of :math:`D` by :math:`\lambda = 1 / c_\mathrm{out}^2`. With
:math:`y = z / \alpha` and :math:`\sigma = s / \alpha` (:mod:`~cascaded_diffusion.diffusion.levels`) and
:math:`q = s^2 + \sigma_d^2 \alpha^2`, the variance of :math:`z`, this is

.. math::
    D = \frac{\sigma_d^2 \alpha}{q} z + \frac{s \sigma_d}{\sqrt q} F\!\left(\frac{z}{\sqrt q}\right), \qquad
    \lambda (D - x_0)^2 = (F - F^*)^2, \quad
    F^* = \frac{s\,x_0 - \sigma_d^2 \alpha\,\epsilon}{\sigma_d \sqrt q}.

Input and target have unit mean square at every level where that of the images is :math:`\sigma_d^2`, and nothing is
divided by :math:`\alpha` or :math:`s`. With :math:`\sigma_d = 1` it is v-prediction, F = -v. What is a function of the
image alone, such as z_s for a truncated hand-over and conditioning augmentation, does not change: a sampler sees x_0
and eps, whatever the network outputs.
"""

from __future__ import annotations

from torch import Tensor

from cascaded_diffusion.diffusion.process import root, scaled

__all__ = ["edm_image", "edm_input", "edm_target"]


def _variance(alpha_bar: float | Tensor, sigma_data: float) -> float | Tensor:
    return 1 - alpha_bar + sigma_data**2 * alpha_bar


def edm_input(x_t: Tensor, alpha_bar: float | Tensor, sigma_data: float) -> Tensor:
    """What the network sees: c_in y = z / sqrt(q)."""
    return scaled(1 / root(_variance(alpha_bar, sigma_data)), x_t)


def edm_target(x0: Tensor, noise: Tensor, alpha_bar: float | Tensor, sigma_data: float) -> Tensor:
    """What the network is trained to output, F*; the plain squared error to it is EDM's weighted loss."""
    norm = sigma_data * root(_variance(alpha_bar, sigma_data))
    return scaled(root(1 - alpha_bar) / norm, x0) - scaled(sigma_data**2 * root(alpha_bar) / norm, noise)


def edm_image(output: Tensor, x_t: Tensor, alpha_bar: float | Tensor, sigma_data: float) -> Tensor:
    """The predicted x_0 that an output F stands for: D."""
    variance = _variance(alpha_bar, sigma_data)
    skip = scaled(sigma_data**2 * root(alpha_bar) / variance, x_t)
    return skip + scaled(root(1 - alpha_bar) * sigma_data / root(variance), output)
