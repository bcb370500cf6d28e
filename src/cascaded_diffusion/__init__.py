"""Cascaded diffusion models: train, chain and sample.

The public names below are imported when first used, so that ``import cascaded_diffusion`` is quick and does not load
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cascaded_diffusion.version import VERSION as __version__

if TYPE_CHECKING:
    from cascaded_diffusion.cascade.chain import Cascade as Cascade
    from cascaded_diffusion.cascade.chain import CascadeStep as CascadeStep
    from cascaded_diffusion.cascade.sampling import SamplingConfig as SamplingConfig
    from cascaded_diffusion.cascade.show import grid as grid
    from cascaded_diffusion.cascade.stage import Stage as Stage
    from cascaded_diffusion.cascade.stage import StageConfig as StageConfig
    from cascaded_diffusion.conditioning.augmentation import ConditioningConfig as ConditioningConfig
    from cascaded_diffusion.conditioning.augmentation import blur_3x3 as blur_3x3
    from cascaded_diffusion.conditioning.augmentation import diffuse_to as diffuse_to
    from cascaded_diffusion.data.prepare import prepare as prepare
    from cascaded_diffusion.data.prepared import PreparedData as PreparedData
    from cascaded_diffusion.demo.figures import denoising_strips as denoising_strips
    from cascaded_diffusion.demo.figures import s_effect as s_effect
    from cascaded_diffusion.diffusion.denoiser import Diffusion as Diffusion
    from cascaded_diffusion.diffusion.denoiser import DiffusionConfig as DiffusionConfig
    from cascaded_diffusion.diffusion.grid import sampling_grid as sampling_grid
    from cascaded_diffusion.diffusion.samplers import Prediction as Prediction
    from cascaded_diffusion.diffusion.samplers import ancestral as ancestral
    from cascaded_diffusion.diffusion.samplers import ddim as ddim
    from cascaded_diffusion.diffusion.samplers import dpmpp_2m as dpmpp_2m
    from cascaded_diffusion.diffusion.samplers import heun as heun
    from cascaded_diffusion.diffusion.schedule import Level as Level
    from cascaded_diffusion.diffusion.schedule import Schedule as Schedule
    from cascaded_diffusion.diffusion.schedule import ScheduleConfig as ScheduleConfig
    from cascaded_diffusion.errors import UserError as UserError
    from cascaded_diffusion.evaluation.cas import CasConfig as CasConfig
    from cascaded_diffusion.evaluation.cas import classification_accuracy_score as classification_accuracy_score
    from cascaded_diffusion.evaluation.colour import colour_drift as colour_drift
    from cascaded_diffusion.evaluation.features import extract as extract
    from cascaded_diffusion.evaluation.features import load_extractor as load_extractor
    from cascaded_diffusion.evaluation.frechet import frechet_distance as frechet_distance
    from cascaded_diffusion.evaluation.inception_score import inception_score as inception_score
    from cascaded_diffusion.evaluation.kernel import kernel_distance as kernel_distance
    from cascaded_diffusion.evaluation.neighbours import memorisation as memorisation
    from cascaded_diffusion.evaluation.precision_recall import precision_recall as precision_recall
    from cascaded_diffusion.evaluation.statistics import FeatureStatistics as FeatureStatistics
    from cascaded_diffusion.interop.diffusers_folder import export_diffusers as export_diffusers
    from cascaded_diffusion.interop.diffusers_folder import import_diffusers as import_diffusers
    from cascaded_diffusion.interop.diffusers_folder import load_diffusers_unet as load_diffusers_unet
    from cascaded_diffusion.interop.guided_diffusion import load_guided_diffusion as load_guided_diffusion
    from cascaded_diffusion.interop.guided_stage import import_guided_diffusion as import_guided_diffusion
    from cascaded_diffusion.networks.unet import NetworkConfig as NetworkConfig
    from cascaded_diffusion.networks.unet import UNet as UNet
    from cascaded_diffusion.recipes.recipe import Recipe as Recipe
    from cascaded_diffusion.recipes.recipe import load_recipe as load_recipe
    from cascaded_diffusion.recipes.recipe import stage_config as stage_config
    from cascaded_diffusion.report.plots import plot_search as plot_search
    from cascaded_diffusion.report.plots import plot_training as plot_training
    from cascaded_diffusion.training.config import TrainingConfig as TrainingConfig
    from cascaded_diffusion.training.loop import read_metrics as read_metrics
    from cascaded_diffusion.training.loop import train as train

_HOMES = {
    "CasConfig": "evaluation.cas",
    "Cascade": "cascade.chain",
    "CascadeStep": "cascade.chain",
    "ConditioningConfig": "conditioning.augmentation",
    "Diffusion": "diffusion.denoiser",
    "DiffusionConfig": "diffusion.denoiser",
    "FeatureStatistics": "evaluation.statistics",
    "Level": "diffusion.schedule",
    "NetworkConfig": "networks.unet",
    "Prediction": "diffusion.samplers",
    "PreparedData": "data.prepared",
    "Recipe": "recipes.recipe",
    "SamplingConfig": "cascade.sampling",
    "Schedule": "diffusion.schedule",
    "ScheduleConfig": "diffusion.schedule",
    "Stage": "cascade.stage",
    "StageConfig": "cascade.stage",
    "TrainingConfig": "training.config",
    "UNet": "networks.unet",
    "UserError": "errors",
    "ancestral": "diffusion.samplers",
    "blur_3x3": "conditioning.augmentation",
    "classification_accuracy_score": "evaluation.cas",
    "colour_drift": "evaluation.colour",
    "ddim": "diffusion.samplers",
    "denoising_strips": "demo.figures",
    "diffuse_to": "conditioning.augmentation",
    "dpmpp_2m": "diffusion.samplers",
    "export_diffusers": "interop.diffusers_folder",
    "extract": "evaluation.features",
    "frechet_distance": "evaluation.frechet",
    "grid": "cascade.show",
    "heun": "diffusion.samplers",
    "import_diffusers": "interop.diffusers_folder",
    "import_guided_diffusion": "interop.guided_stage",
    "inception_score": "evaluation.inception_score",
    "kernel_distance": "evaluation.kernel",
    "load_diffusers_unet": "interop.diffusers_folder",
    "load_extractor": "evaluation.features",
    "load_guided_diffusion": "interop.guided_diffusion",
    "load_recipe": "recipes.recipe",
    "memorisation": "evaluation.neighbours",
    "plot_search": "report.plots",
    "plot_training": "report.plots",
    "precision_recall": "evaluation.precision_recall",
    "prepare": "data.prepare",
    "read_metrics": "training.loop",
    "s_effect": "demo.figures",
    "sampling_grid": "diffusion.grid",
    "stage_config": "recipes.recipe",
    "train": "training.loop",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604 - all of them are strings


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
