"""A cascade: stages in a chain, from a class to an image."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from cascaded_diffusion.cascade.batching import BatchSizes, check_batch_size
from cascaded_diffusion.cascade.describe import describe_html, describe_text
from cascaded_diffusion.cascade.find import find_cascade
from cascaded_diffusion.cascade.manifest import CascadeManifest, check_chain, load_entry, schedules_agree
from cascaded_diffusion.cascade.offload import OffloadedStages
from cascaded_diffusion.cascade.sampling import SamplingConfig
from cascaded_diffusion.cascade.save import write_cascade
from cascaded_diffusion.cascade.settings import Choice, Requests, resolve_settings
from cascaded_diffusion.cascade.stage import Stage
from cascaded_diffusion.cascade.walk import BatchKeeper, CascadeStep, Plan, Watch, sample_batches
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.networks.compiling import CompileChoice
from cascaded_diffusion.precision import Precision, autocast

__all__ = ["Cascade", "CascadeStep", "Plan"]

_MOST_SAMPLES = 10**9


class Cascade:
    """A chain of trained stages.

    Attributes:
        stages: name to :class:`Stage`, in order.
        defaults: name to the stage's default sampling settings in this cascade.
        truncated: name to whether the stage below can be stopped at s for this one.
        classes: number of classes, or ``None``.
        class_names: their names, or ``None``.
        provenance: name to where the stage's weights come from.
        offloaded: has the weights of the stages that are not at work, if :meth:`to` was told so.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        defaults: Mapping[str, SamplingConfig] | None = None,
        no_truncated: bool = False,
        provenance: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        """Chain stages that are in memory.

        Args:
            stages: in order, the base first.
            defaults: sampling settings that differ from those in the stages' own configurations.
            no_truncated: accept SR stages trained with another schedule than the stage below has.
            provenance: for each stage, where its weights come from.

        Raises:
            UserError: stages that do not chain, both named; or defaults of none of them.
        """
        configs = [stage.config for stage in stages]
        check_chain(configs, truncated=not no_truncated)
        self.stages = {stage.name: stage for stage in stages}
        for name in defaults or {}:
            if name not in self.stages:
                raise UserError(f"defaults: {name!r} is not a stage; allowed: {', '.join(self.stages)}")
        given = {name: stage.config.sampling for name, stage in self.stages.items()} | dict(defaults or {})
        self.defaults = {name: stage.config.settled(given[name]) for name, stage in self.stages.items()}
        for name, stage in self.stages.items():
            _check_defaults(stage, self.defaults[name])
        self.truncated = {c.name: False for c in configs} | {
            high.name: schedules_agree(low, high) for low, high in pairwise(configs)
        }
        self.classes = configs[0].classes
        self.class_names = configs[0].class_names
        self.provenance = {stage.name: dict((provenance or {}).get(stage.name, {})) for stage in stages}
        self.offloaded: OffloadedStages | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        token: str | bool | None = None,
        revision: str | None = None,
        endpoint: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Open a cascade: a packaged name (which wins), a folder, or ``user/name`` on the Hugging Face hub.

        Args:
            name: which cascade.
            token: of an account of the hub that may read it; default the one that is logged in.
            revision: branch, tag or commit on the hub; default ``main``.
            endpoint: address of the hub; default ``HF_ENDPOINT`` or the public one.
            cache_dir: folder instead of the hub's cache.

        Raises:
            UserError: no such cascade, or a file of it is missing, changed or does not fit.
            RuntimeError: the hub does not answer, and the cache does not have it.
        """
        folder, _ = find_cascade(name, token=token, revision=revision, endpoint=endpoint, cache_dir=cache_dir)
        manifest = CascadeManifest.read(folder)
        stages = []
        for entry in manifest.stages:
            stages.append(load_entry(folder / entry.folder, entry))
            if stages[-1].name != entry.name:
                raise UserError(
                    f"{folder / entry.folder}: its config.json is that of {stages[-1].name}, not {entry.name}"
                )
        return cls._from_manifest(manifest, stages)

    @classmethod
    def _from_manifest(cls, manifest: CascadeManifest, stages: Sequence[Stage]) -> Self:
        cascade = cls(
            stages,
            defaults={entry.name: entry.sampling for entry in manifest.stages},
            no_truncated=True,
            provenance={entry.name: entry.provenance for entry in manifest.stages},
        )
        for entry in manifest.stages:
            cascade.truncated[entry.name] = cascade.truncated[entry.name] and entry.truncated
        return cascade

    def __repr__(self) -> str:
        return describe_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return describe_html(self)

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the cascade to a folder that does not exist yet or is empty. ``dtype`` float16 halves the weights."""
        entries = [
            (stage, self.defaults[name], self.truncated[name], self.provenance[name])
            for name, stage in self.stages.items()
        ]
        write_cascade(Path(path), entries, dtype=dtype)

    def push_to_hub(
        self,
        repository: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        revision: str | None = None,
        message: str | None = None,
        data: str | None = None,
        dataset: str | None = None,
        licence: str | None = None,
        scores: str | Path | None = None,
        endpoint: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> str:
        """Upload the cascade to the Hugging Face hub with a card that is written for it; the repository's address.

        Args:
            repository: ``user/name``; it is made if it does not exist.
            token: of an account that may write; default the one that is logged in.
            private: whether a new repository is.
            revision: branch; default ``main``.
            message: of the commit.
            data: the training data in words, for the card.
            dataset: its name on the hub.
            licence: of the weights, as the hub abbreviates it, such as ``apache-2.0``.
            scores: a file of ``cdm evaluate --json``.
            endpoint: address of the hub; default ``HF_ENDPOINT`` or the public one.
            dtype: of the weights in the repository.

        Raises:
            UserError: a wrong name, licence or scores file, or no right to write.
            RuntimeError: the hub does not answer.
        """
        from cascaded_diffusion.interop.publish import Publication, publish

        notes = Publication(data, dataset, licence, None if scores is None else Path(scores))
        return publish(
            self,
            repository,
            notes,
            dtype=dtype,
            token=token,
            private=private,
            revision=revision,
            message=message,
            endpoint=endpoint,
        )

    def to(self, device: str | torch.device, *, offload: bool = False) -> Self:
        """Move every stage to a device; with ``offload`` each only for as long as :meth:`sample` has it at work.

        Raises:
            UserError: ``offload`` to the CPU, where the others would wait as well.
        """
        if offload and torch.device(device).type == "cpu":
            raise UserError("offload: cpu holds all stages anyway; allowed on an accelerator")
        self.offloaded = OffloadedStages(list(self.stages.values()), torch.device(device)) if offload else None
        if not offload:
            for stage in self.stages.values():
                stage.to(device)
        return self

    def accelerate(self, *, compile: CompileChoice = "auto", precision: Precision = "fp32") -> Self:
        """Make sampling faster on the device that the stages are on: :meth:`Stage.accelerate` for each of them."""
        for stage in self.stages.values():
            stage.accelerate(compile=compile, precision=precision)
        return self

    @property
    def device(self) -> torch.device:
        """Where the stages compute."""
        if self.offloaded is not None:
            return self.offloaded.device
        return next(next(iter(self.stages.values())).network.parameters()).device

    def class_ids(self, classes: Sequence[int | str] | None) -> list[int] | None:
        """Class ids from ids and names; all for ``None``; ``None`` for a cascade without classes.

        A string is a class's name first and an id second.
        """
        if self.classes is None:
            if classes is not None:
                raise UserError(
                    f"classes: this cascade has no classes, {', '.join(map(str, classes))} cannot be asked for"
                )
            return None
        if classes is None:
            return list(range(self.classes))
        if isinstance(classes, str | bytes) or not isinstance(classes, Iterable):
            raise UserError(f"classes: {classes!r} is not a list; allowed: ids and names, such as [{classes!r}]")
        classes = list(classes)
        if not classes:
            raise UserError(f"classes: none given; allowed: 0 to {self.classes - 1} or a class's name")
        return [self._class_id(value) for value in classes]

    def _class_id(self, value: int | str) -> int:
        assert self.classes is not None
        names = list(self.class_names or [])
        if isinstance(value, str) and value in names:
            return names.index(value)
        text = str(value).strip()
        if text.isascii() and text.isdigit() and len(text) < 20 and int(text) < self.classes:
            return int(text)
        close = difflib.get_close_matches(text, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        known = f" or one of {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}" if names else ""
        raise UserError(f"classes: {value!r} is not a class; allowed: 0 to {self.classes - 1}{known}{hint}")

    def plan(
        self,
        *,
        steps: Choice = None,
        sampler: Choice = None,
        augmentation: Choice = None,
        s: Choice = None,
        guidance: Choice = None,
        more: Mapping[str, Mapping[str, Any]] | None = None,
        start_stage: str | None = None,
        until: str | None = None,
    ) -> Plan:
        """Check what is asked of the stages, before any work. Arguments as in :meth:`sample`."""
        names = list(self.stages)
        for what, name in (("start_stage", start_stage), ("until", until)):
            if name is not None and name not in names:
                raise UserError(f"{what}: no stage {name!r} in this cascade; allowed: {', '.join(names)}")
        first = names.index(start_stage) if start_stage else 0
        last = names.index(until) if until else len(names) - 1
        if last < first:
            raise UserError(f"until: {until} comes before the start stage {start_stage}")
        stages = tuple(self.stages[name] for name in names[first : last + 1])
        requests = Requests(steps, sampler, augmentation, s, guidance, more)
        return Plan(stages, resolve_settings(stages, self.defaults, requests, truncated=self.truncated))

    def sample(
        self,
        num: int | None = None,
        classes: Sequence[int | str] | None = None,
        *,
        steps: Choice = None,
        sampler: Choice = None,
        augmentation: Choice = None,
        s: Choice = None,
        guidance: Choice = None,
        more: Mapping[str, Mapping[str, Any]] | None = None,
        seed: int = 0,
        batch_size: BatchSizes = 64,
        low_res: np.ndarray | None = None,
        start_stage: str | None = None,
        until: str | None = None,
        return_stages: bool = False,
        callback: Watch | None = None,
        precision: Precision = "fp32",
        first: int = 0,
        keep: BatchKeeper | None = None,
        collect: bool = True,
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Sample images: uint8 (N, H, W, C), or with ``return_stages`` a dict of such arrays by stage name.

        Sample i has the same label and noise whatever the batch size, so the first images of a longer run are the same.

        Args:
            num: how many; sample i has class i mod K of those chosen. Default: one of each.
            classes: ids or names; default all.
            steps, sampler, augmentation, s, guidance: one value for all stages that it means something to, or a dict by
                stage name; default: what the cascade recommends. A strength s > 0 on a stage whose default is no
                augmentation means ``nontruncated``.
            more: other keys of a stage's sampling settings by stage name, such as ``{"sr32": {"start": 0.6}}``.
            seed: of the noise; equal seeds give equal images.
            batch_size: samples that a stage works on at once, or a dict of that by stage name. ``auto``, which a stage
                that the dict leaves out has too: 64 on a CPU, elsewhere what the free memory is estimated to hold;
                halved when memory runs out.
            low_res: uint8 (N, r, r, C) images for ``start_stage`` to enlarge. ``classes`` then are theirs in turn; left
                out, they are enlarged without class where the stages have learned that.
            start_stage: the SR stage to start from, with ``low_res``; default the first SR stage.
            until: the last stage to run.
            return_stages: give every stage's images; of a stage that was stopped at s, its prediction of z_0.
            callback: called after every step of every stage.
            precision: of the networks: fp32, bf16 autocast, or auto for bf16 where the hardware computes in it.
            first: make samples ``first`` to ``first + num - 1`` of a longer run, the same as they are there.
                ``low_res`` holds the images of these alone, ``classes`` stays that of the longer run.
            keep: takes finished batches, and has those that need not be made again.
            collect: if not, nothing is returned (an empty dict): ``keep`` alone has the images, and memory holds no
                more than two batches of them, however many there are.

        Raises:
            UserError: anything asked for that the cascade cannot do, before any work.
        """
        if low_res is not None and start_stage is None and len(self.stages) > 1:
            start_stage = list(self.stages)[1]
        seed = _whole("seed", seed)
        asked = {"steps": steps, "sampler": sampler, "augmentation": augmentation, "s": s, "guidance": guidance}
        plan = self.plan(**asked, more=more, start_stage=start_stage, until=until)
        labels = torch.from_numpy(self.sample_labels(plan, num=num, classes=classes, low_res=low_res, first=first))
        check_batch_size(batch_size, [stage.name for stage in plan.stages])
        _check_low_res(plan, low_res)
        with autocast(precision, self.device):
            images = sample_batches(
                plan,
                labels,
                low_res,
                seed=seed,
                batch_size=batch_size,
                device=self.device,
                callback=callback,
                first=first,
                keep=keep,
                collect=collect,
                offloaded=self.offloaded,
            )
        return images if return_stages or not collect else images[plan.stages[-1].name]

    def sample_labels(
        self,
        plan: Plan,
        *,
        num: int | None = None,
        classes: Sequence[int | str] | None = None,
        low_res: np.ndarray | None = None,
        first: int = 0,
    ) -> np.ndarray:
        """The class of each sample that :meth:`sample` would make of these arguments: int64 (N,), -1 without class."""
        ids = self.class_ids(classes)
        if classes is not None and all(stage.config.classes is None for stage in plan.stages):
            names = ", ".join(stage.name for stage in plan.stages)
            raise UserError(f"classes: no effect here, for {names} has no classes; leave it out")
        num, first = None if num is None else _whole("num", num), _whole("first", first)
        if low_res is not None:
            if not isinstance(low_res, np.ndarray):
                raise UserError(f"low_res: {type(low_res).__name__} is not an array; allowed: uint8 (N, r, r, C)")
            if num is not None and num != len(low_res):
                raise UserError(f"num: {num} does not fit the {len(low_res)} images given; leave it out")
            if ids is not None and classes is None:
                _refuse_without_class(plan)
                ids = None
            num = len(low_res)
        ids = [-1] if ids is None else ids
        count = len(ids) if num is None else num
        if not 1 <= count <= _MOST_SAMPLES:
            raise UserError(f"num: {count} is not allowed; give a number from 1 to {_MOST_SAMPLES:,}")
        if first < 0:
            raise UserError(f"first: {first} is not allowed; give a number from 0")
        return np.array(ids, np.int64)[np.arange(first, first + count) % len(ids)]


def _check_defaults(stage: Stage, sampling: SamplingConfig) -> None:
    if sampling.guide != 1 and stage.guide is None:
        raise UserError(f"{stage.name}: sampling.guide: {sampling.guide:g} needs a guide, which it does not have")
    try:
        stage.config.check_sampling(sampling)
    except ValueError as error:
        raise UserError(f"{stage.name}: {error}") from None


def _check_low_res(plan: Plan, low_res: np.ndarray | None) -> None:
    first = plan.stages[0]
    conditioning = first.config.conditioning
    if conditioning is None:
        if low_res is not None:
            raise UserError(f"low_res: {first.name} is a base stage and takes no images")
        return
    side, channels = conditioning.low_resolution, first.config.channels
    if low_res is None:
        raise UserError(f"start_stage: {first.name} needs images of {side} pixels to start from")
    if low_res.dtype != np.uint8 or low_res.shape[1:] != (side, side, channels):
        allowed = f"uint8 (N, {side}, {side}, {channels})"
        raise UserError(f"low_res: {low_res.dtype} {low_res.shape} does not fit {first.name}; allowed: {allowed}")


def _whole(what: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"{what}: {value!r} is not a whole number") from None


def _refuse_without_class(plan: Plan) -> None:
    for stage in plan.stages:
        guide = stage.guide if plan.settings[stage.name].guide != 1 else None
        asked = [stage.config, *([] if guide is None else [guide.config])]
        if any(config.classes is not None and config.training.class_dropout == 0 for config in asked):
            raise UserError(f"classes: {stage.name} needs the class of the images it enlarges; name it with classes")
