"""The command-line flags of guided-diffusion's and improved-diffusion's scripts, read as those scripts read them.

Their README prints, for each published model, the flags that its network and diffusion process were made with; the
checkpoint alone does not tell them. Names, defaults and the widths that go with each image size are those of the
scripts ``image_*.py`` and ``super_res_*.py``.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError

from cascaded_diffusion.config import StrictModel, explain
from cascaded_diffusion.errors import UserError

__all__ = ["FAMILIES", "ReadFlags", "ScriptFlags", "read_flags"]

FAMILIES = ("guided-diffusion", "improved-diffusion")


def _split(value: Any) -> Any:
    """``"32,16,8"`` as a list; the empty word as none."""
    return [word for word in value.split(",") if word] if isinstance(value, str) else value


_Numbers = BeforeValidator(_split)
_Side = Annotated[int, Field(ge=1, le=4096)]
_Multiplier = Annotated[int, Field(gt=0, le=64)] | Annotated[float, Field(gt=0, le=64)]
_Heads = Annotated[int, Field(ge=-1, le=8192)]


class ScriptFlags(StrictModel):
    """The flags that say what a checkpoint is, with the defaults of guided-diffusion.

    ``attention_resolutions`` are pixels of the output, as on the command line; guided-diffusion's constructor takes
    down-sampling factors instead.
    """

    image_size: _Side = Field(64, description="pixels a side; base models")
    large_size: _Side = Field(256, description="pixels a side of the output; up-samplers")
    small_size: _Side = Field(64, description="pixels a side of the low-resolution image; up-samplers")
    num_channels: int = Field(128, ge=1, le=8192, description="base width")
    num_res_blocks: int = Field(2, ge=1, le=64, description="residual blocks of an encoder level")
    num_heads: int = Field(4, ge=1, le=8192, description="attention heads")
    num_heads_upsample: _Heads = Field(-1, description="attention heads of the decoder, -1 for num_heads")
    num_head_channels: _Heads = Field(-1, description="channels of a head, -1 to go by num_heads")
    attention_resolutions: Annotated[tuple[_Side, ...], _Numbers] = Field((16, 8), max_length=12, description="pixels")
    channel_mult: Annotated[tuple[_Multiplier, ...], _Numbers] = Field(
        (), max_length=12, description="width of the levels; empty for what belongs to the size"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in training")
    class_cond: bool = Field(False, description="whether the network is told the class")
    use_scale_shift_norm: bool = Field(True, description="embeddings scale and shift the second norm")
    resblock_updown: bool = Field(False, description="residual blocks where the resolution changes")
    use_new_attention_order: bool = Field(False, description="split query, key and value before the heads")
    learn_sigma: bool = Field(False, description="whether the variance is learned")
    sigma_small: bool = Field(False, description="the posterior's variance where it is not learned, else beta")
    diffusion_steps: int = Field(1000, ge=1, le=1_000_000, description="T")
    noise_schedule: Literal["linear", "cosine"] = Field("linear", description="noise schedule")
    predict_xstart: bool = Field(False, description="the network predicts the image, else the noise")
    rescale_timesteps: bool = Field(False, description="timesteps are scaled to 0..1000")
    timestep_respacing: str = Field(
        "", max_length=1000, description="steps at sampling: 250, 10,20,30 or ddim25; empty for all"
    )
    use_ddim: bool = Field(False, description="DDIM at sampling")
    clip_denoised: bool = Field(True, description="clip the predicted image at sampling")


_BASE_ONLY = frozenset({"image_size"})
_UPSAMPLER_ONLY = frozenset({"large_size", "small_size"})
# The scripts of these lack them or fix their value.
_NOT_OF: dict[str, frozenset[str]] = {
    "guided-diffusion": frozenset(),
    "improved-diffusion": frozenset({"num_head_channels", "resblock_updown", "use_new_attention_order"}),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "guided-diffusion": {},
    "improved-diffusion": {"rescale_timesteps": True},
}
_WITHOUT_MEANING = frozenset(
    {
        "anneal_lr",
        "base_samples",
        "batch_size",
        "classifier_attention_resolutions",
        "classifier_depth",
        "classifier_path",
        "classifier_pool",
        "classifier_resblock_updown",
        "classifier_scale",
        "classifier_use_fp16",
        "classifier_use_scale_shift_norm",
        "classifier_width",
        "data_dir",
        "ema_rate",
        "eval_interval",
        "fp16_scale_growth",
        "iterations",
        "log_interval",
        "lr",
        "lr_anneal_steps",
        "microbatch",
        "model_path",
        "noised",
        "num_samples",
        "rescale_learned_sigmas",
        "resume_checkpoint",
        "save_interval",
        "schedule_sampler",
        "use_checkpoint",
        "use_fp16",
        "use_kl",
        "val_data_dir",
        "weight_decay",
    }
)
"""Flags of the same scripts that say nothing about the network or how it is sampled without a classifier."""

_WIDTHS: dict[tuple[str, bool], dict[int, tuple[float, ...]]] = {
    ("guided-diffusion", False): {
        64: (1, 2, 3, 4),
        128: (1, 1, 2, 3, 4),
        256: (1, 1, 2, 2, 4, 4),
        512: (0.5, 1, 1, 2, 2, 4, 4),
    },
    ("guided-diffusion", True): {64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4), 512: (1, 1, 2, 2, 4, 4)},
    ("improved-diffusion", False): {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)},
    ("improved-diffusion", True): {64: (1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)},
}
"""Width of the levels that the scripts give a network of each size: base models, and up-samplers by large_size."""


class ReadFlags(NamedTuple):
    """What a line of flags says."""

    family: str
    values: ScriptFlags
    given: frozenset[str]
    ignored: tuple[str, ...]
    """Flags that were given and mean nothing here, with their values."""

    @property
    def names_upsampler(self) -> bool:
        """Whether a flag was given that only the up-samplers' scripts have."""
        return bool(self.given & _UPSAMPLER_ONLY)

    def check_kind(self, *, upsampler: bool) -> None:
        """``UserError`` for a flag of the other kind of model than the checkpoint is."""
        wrong = sorted(self.given & (_BASE_ONLY if upsampler else _UPSAMPLER_ONLY))
        kinds = ("an up-sampler", "base models") if upsampler else ("a base model", "up-samplers")
        allowed = _UPSAMPLER_ONLY if upsampler else _BASE_ONLY
        if wrong:
            raise UserError(
                f"--flags: --{wrong[0]} is for {kinds[1]}, but the checkpoint's first layer is that of {kinds[0]}; "
                f"allowed: {', '.join(sorted(allowed))}"
            )

    def size(self, *, upsampler: bool) -> int:
        """Pixels a side of the output."""
        return self.values.large_size if upsampler else self.values.image_size

    def constructor_arguments(self, *, upsampler: bool, classes: int | None) -> dict[str, Any]:
        """The arguments of the network's constructor, which counts attention in down-sampling factors."""
        flags, size = self.values, self.size(upsampler=upsampler)
        widths = flags.channel_mult or self._widths(size, upsampler=upsampler)
        return {
            "image_size": size,
            "in_channels": 3,
            "model_channels": flags.num_channels,
            "out_channels": 6 if flags.learn_sigma else 3,
            "num_res_blocks": flags.num_res_blocks,
            "attention_resolutions": tuple(size // pixels for pixels in flags.attention_resolutions),
            "dropout": flags.dropout,
            "channel_mult": widths,
            "num_classes": classes if flags.class_cond else None,
            "num_heads": flags.num_heads,
            "num_head_channels": flags.num_head_channels,
            "num_heads_upsample": flags.num_heads_upsample,
            "use_scale_shift_norm": flags.use_scale_shift_norm,
            "resblock_updown": flags.resblock_updown,
            "use_new_attention_order": flags.use_new_attention_order,
            "super_res": upsampler,
        }

    def _widths(self, size: int, *, upsampler: bool) -> tuple[float, ...]:
        table = _WIDTHS[self.family, upsampler]
        if size not in table:
            name = "large_size" if upsampler else "image_size"
            raise UserError(
                f"--flags: {name} {size} has no widths of its own in {self.family}; allowed: "
                f"{', '.join(map(str, table))}, or any size with --channel_mult"
            )
        return table[size]


def read_flags(text: str, family: str) -> ReadFlags:
    """Read ``--name value --name value``.

    Args:
        text: the flags as they are typed behind the scripts' names; the empty text means all defaults.
        family: whose scripts; their defaults and names differ a little.

    Raises:
        UserError: a flag that those scripts do not know (with the nearest), a value that it cannot have, a flag given
            twice with different values, or a word that belongs to no flag.
    """
    if family not in FAMILIES:
        raise UserError(f"family: {family!r} is not known; allowed: {', '.join(FAMILIES)}")
    pairs = _pairs(text)
    known = ScriptFlags.model_fields.keys() - _NOT_OF[family]
    for name in pairs:
        if name not in known and name not in _WITHOUT_MEANING:
            raise UserError(f"--flags: {_unknown(name, family, known)}")
    meant = {name: value for name, value in pairs.items() if name in known}
    try:
        values = ScriptFlags.model_validate(_DEFAULTS[family] | meant)
    except ValidationError as error:
        raise UserError(f"--flags: {explain(error)}") from None
    if values.timestep_respacing and not re.fullmatch(r"ddim[1-9]\d*|[1-9]\d*(,[1-9]\d*)*", values.timestep_respacing):
        raise UserError(
            f"--flags: timestep_respacing {values.timestep_respacing!r} is not a number of steps; allowed: 250, "
            "sections such as 10,20,30, or ddim25"
        )
    ignored = tuple(f"{name} {value}" for name, value in pairs.items() if name in _WITHOUT_MEANING)
    return ReadFlags(family, values, frozenset(meant), ignored)


def _pairs(text: str) -> Mapping[str, str]:
    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as error:
        raise UserError(f"--flags: {text!r} cannot be split into words ({error})") from None
    pairs: dict[str, str] = {}
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise UserError(f"--flags: {word!r} belongs to no flag; write --name value --name value")
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"--flags: --{name} has no value; write --name value")
            value = words.pop(0)
        if pairs.setdefault(name, value) != value:
            raise UserError(f"--flags: --{name} is given twice, as {pairs[name]} and as {value}")
    return pairs


def _unknown(name: str, family: str, known: set[str]) -> str:
    if name in ScriptFlags.model_fields:
        return f"--{name} is no flag of {family}; it is guided-diffusion's"
    names = sorted(known | _WITHOUT_MEANING)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean --{close[0]}? " if close else ""
    return f"--{name} is no flag of {family}; {hint}allowed: {', '.join(sorted(known))}"
