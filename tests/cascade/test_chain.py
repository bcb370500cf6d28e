from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cascaded_diffusion.cascade.walk as walk
from cascaded_diffusion.cascade.chain import Cascade, CascadeStep
from cascaded_diffusion.cascade.stage import Stage, StageConfig
from cascaded_diffusion.errors import UserError

Configure = Callable[..., StageConfig]
NAMES = ["red", "green", "blue", "7"]


@pytest.fixture(scope="module")
def stages(random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure) -> list[Stage]:
    """8 -> 16 (gaussian) -> 32 (blur), all with the classes red, green, blue and 7."""
    named = {"class_names": NAMES}
    blur = sr_config(32, low=16, conditioning={"augmentation": "blur"}, **named)
    configs = (base_config(**named), sr_config(**named), blur)
    return [random_stage(config, seed=seed) for seed, config in enumerate(configs)]


@pytest.fixture(scope="module")
def cascade(stages: list[Stage]) -> Cascade:
    """All three stages; tests leave it as it is."""
    return Cascade(stages)


@pytest.fixture(scope="module")
def pair(stages: list[Stage]) -> Cascade:
    """The first two stages."""
    return Cascade(stages[:2])


@pytest.fixture
def calls(stages: list[Stage]) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Every call of every network: stage -> the conditions it got."""
    seen: dict[str, list[dict[str, Any]]] = {stage.name: [] for stage in stages}
    handles = [
        stage.network.register_forward_pre_hook(
            lambda _, args, kwargs, name=stage.name: seen[name].append(
                {"x": args[0].clone(), "time": args[1].clone(), **kwargs}
            ),
            with_kwargs=True,
        )
        for stage in stages
    ]
    yield seen
    for handle in handles:
        handle.remove()


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_images_and_stages(cascade: Cascade) -> None:
    images = cascade.sample(3)
    assert isinstance(images, np.ndarray)
    assert (images.shape, images.dtype) == ((3, 32, 32, 3), np.uint8)
    every = cascade.sample(3, return_stages=True)
    assert {name: part.shape for name, part in every.items()} == {
        "base8": (3, 8, 8, 3),
        "sr16": (3, 16, 16, 3),
        "sr32": (3, 32, 32, 3),
    }
    assert np.array_equal(every["sr32"], images)
    assert len(cascade.sample()) == 4  # one of each class


@pytest.mark.parametrize("settings", [{}, {"augmentation": "truncated", "s": 0.3}, {"sampler": "ancestral"}])
def test_samples_do_not_depend_on_the_batch_or_on_how_many(settings: dict[str, Any], cascade: Cascade) -> None:
    whole = cascade.sample(5, batch_size=64, return_stages=True, **settings)
    for others in (
        cascade.sample(5, batch_size=1, return_stages=True, **settings),
        cascade.sample(5, batch_size=3, return_stages=True, **settings),
        cascade.sample(7, batch_size=64, return_stages=True, **settings),
        cascade.sample(5, batch_size="auto", return_stages=True, **settings),
    ):
        for name, images in whole.items():
            difference = np.abs(images.astype(int) - others[name][:5])
            assert difference.max() <= 1
            assert images.std() > 5


def test_a_share_of_a_longer_run_is_as_it_is_there(pair: Cascade, calls: dict[str, list[dict[str, Any]]]) -> None:
    settings: dict[str, Any] = {"augmentation": "nontruncated", "s": 0.3, "sampler": "ancestral"}
    whole = pair.sample(7, classes=["green", "red", "7"], return_stages=True, **settings)
    calls["base8"].clear()
    share = pair.sample(3, classes=["green", "red", "7"], first=4, batch_size=2, return_stages=True, **settings)
    assert all(np.array_equal(share[name], whole[name][4:7]) for name in whole)
    assert calls["base8"][0]["labels"].tolist() == [0, 3]  # samples 4 and 5 of green, red, 7, green, red, 7, green
    enlarged = pair.sample(low_res=whole["base8"], classes=[1, 0, 3, 1, 0, 3, 1], **settings)
    part = pair.sample(low_res=whole["base8"][4:], classes=[1, 0, 3, 1, 0, 3, 1], first=4, **settings)
    assert np.array_equal(part, enlarged[4:])
    with pytest.raises(UserError, match="first: -1 is not allowed"):
        pair.sample(1, first=-1)


def test_seeds(pair: Cascade) -> None:
    first, again, other = (pair.sample(4, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert all(np.abs(first[i].astype(int) - other[i]).max() > 5 for i in range(4))
    assert all(np.abs(first[0].astype(int) - first[i]).max() > 5 for i in range(1, 4))


def test_sampling_leaves_the_callers_generator_alone(pair: Cascade) -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    pair.sample(2, sampler="ancestral")
    assert torch.equal(torch.rand(2), expected)


def test_until_stops_early(cascade: Cascade, calls: dict[str, list[dict[str, Any]]]) -> None:
    images = cascade.sample(2, until="sr16")
    assert images.shape == (2, 16, 16, 3)
    assert calls["sr32"] == []
    assert np.array_equal(images, cascade.sample(2, return_stages=True)["sr16"])
    assert cascade.sample(2, until="base8").shape == (2, 8, 8, 3)


def test_a_prefix_of_a_cascade_is_a_cascade(cascade: Cascade, stages: list[Stage]) -> None:
    whole = cascade.sample(2, return_stages=True)
    for count in (1, 2):
        assert np.array_equal(Cascade(stages[:count]).sample(2), whole[stages[count - 1].name])


# -- labels -----------------------------------------------------------------------------------------------------------


def test_sample_i_has_class_i_mod_k_in_every_stage(cascade: Cascade, calls: dict[str, list[dict[str, Any]]]) -> None:
    cascade.sample(5, classes=[2, "red"], batch_size=3)
    for name, seen in calls.items():
        labels = [tuple(call["labels"].tolist()) for call in seen]
        assert set(labels) == {(2, 0, 2), (0, 2)}, name


def test_labels_without_sampling(cascade: Cascade) -> None:
    plan = cascade.plan()
    assert cascade.sample_labels(plan).tolist() == [0, 1, 2, 3]
    assert cascade.sample_labels(plan, num=6).tolist() == [0, 1, 2, 3, 0, 1]
    assert cascade.sample_labels(plan, num=3, classes=["blue", 1]).tolist() == [2, 1, 2]
    assert cascade.sample_labels(plan, classes=[1, 1]).dtype == np.int64


@pytest.mark.parametrize("given, ids", [(["red", "blue"], [0, 2]), ([3, "2"], [3, 2]), (["7"], [3]), ([" 1 "], [1])])
def test_names_come_before_ids(given: list[int | str], ids: list[int], cascade: Cascade) -> None:
    assert cascade.class_ids(given) == ids


@pytest.mark.parametrize(
    "given, words",
    [
        ([4], ["4", "0 to 3", "red, green, blue, 7"]),
        ([-1], ["-1", "0 to 3"]),
        (["rde"], ["'rde'", "did you mean 'red'?"]),
        (["²"], ["'²'"]),
        ([1.5], ["1.5"]),
        ([], ["none given", "0 to 3"]),
        ("12", ["'12' is not a list", "such as ['12']"]),
        (3, ["3 is not a list", "such as [3]"]),
    ],
)
def test_classes_that_are_none(given: list[Any], words: list[str], cascade: Cascade) -> None:
    with pytest.raises(UserError) as caught:
        cascade.sample(classes=given)
    assert all(word in str(caught.value) for word in ["classes:", *words]), caught.value


def test_classes_in_an_array(cascade: Cascade) -> None:
    assert cascade.class_ids(np.array([0])) == [0]  # type: ignore[arg-type]  # a sequence to a person
    assert cascade.class_ids((2, "red")) == [2, 0]


def test_defaults_of_no_stage(stages: list[Stage]) -> None:
    with pytest.raises(UserError, match="defaults: 'bse8' is not a stage; allowed: base8, sr16, sr32"):
        Cascade(stages, defaults={"bse8": stages[0].config.sampling})


def test_a_cascade_without_classes(
    random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure
) -> None:
    plain = Cascade([random_stage(base_config(classes=None)), random_stage(sr_config(classes=None))])
    assert plain.sample(3).shape == (3, 16, 16, 3)
    assert plain.sample().shape == (1, 16, 16, 3)
    assert plain.sample_labels(plain.plan(), num=2).tolist() == [-1, -1]
    assert plain.sample(low_res=np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, 16, 16, 3)
    with pytest.raises(UserError, match=r"this cascade has no classes, 3, Bag cannot be asked for"):
        plain.sample(classes=[3, "Bag"])


def test_a_stage_without_classes_above_one_with(
    random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure
) -> None:
    mixed = Cascade([random_stage(base_config()), random_stage(sr_config(classes=None))])
    assert mixed.sample(classes=[1, 2]).shape == (2, 16, 16, 3)


# -- settings by stage ------------------------------------------------------------------------------------------------


def test_settings_by_stage_reach_their_stage(cascade: Cascade, calls: dict[str, list[dict[str, Any]]]) -> None:
    cascade.sample(2, steps={"base8": 6, "sr16": 3, "sr32": 2}, sampler={"sr32": "heun"}, guidance={"base8": 2.0})
    assert {name: len(seen) for name, seen in calls.items()} == {"base8": 6, "sr16": 3, "sr32": 3}
    assert {name: len(seen[0]["x"]) for name, seen in calls.items()} == {"base8": 4, "sr16": 2, "sr32": 2}


def test_s_reaches_the_network_with_the_mode_that_was_asked_for(
    pair: Cascade, calls: dict[str, list[dict[str, Any]]]
) -> None:
    for mode, s in (("nontruncated", 0.25), ("truncated", 0.25), ("none", 0.0)):
        calls["sr16"].clear()
        pair.sample(2, augmentation=mode, s={"sr16": s} if s else None)
        assert all(call["s"].tolist() == [s, s] for call in calls["sr16"])


def test_a_truncated_stage_stops_at_s(pair: Cascade, calls: dict[str, list[dict[str, Any]]]) -> None:
    """Of 8 steps over T=40 those above k = 20 remain, and the network never sees a level at or below it."""
    plan = pair.plan(steps=8, augmentation="truncated", s=0.5)
    assert plan.steps()["base8"] == plan.evaluations()["base8"] == 4
    pair.sample(2, steps=8, augmentation="truncated", s=0.5)
    times = [float(call["time"][0]) for call in calls["base8"]]
    assert len(times) == 4
    assert len(calls["sr16"]) == 8
    # The network is told (k - 1) 1000/T.
    assert all(time > (20 - 1) * 1000 / 40 for time in times)
    assert times == sorted(times, reverse=True)


def test_what_a_truncated_stage_hands_on_and_what_it_shows(
    pair: Cascade, calls: dict[str, list[dict[str, Any]]]
) -> None:
    """On: z_s itself, unclipped. Shown: its last prediction of z_0."""
    seen: list[CascadeStep] = []
    shown = pair.sample(2, augmentation="truncated", s=0.5, steps=8, return_stages=True, callback=seen.append)
    last = [step for step in seen if step.stage == "base8"][-1].step
    handed = calls["sr16"][0]["low_res"]
    assert torch.equal(handed, last.x)
    assert handed.abs().max() > 1.2
    expected = (last.x0.permute(0, 2, 3, 1) * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    assert np.array_equal(shown["base8"], expected)
    assert abs(last.level.time - 0.5) < 1e-9


def test_s_zero_truncates_nothing(pair: Cascade) -> None:
    none = pair.sample(2, augmentation="none", return_stages=True)
    for mode in ("truncated", "nontruncated"):
        other = pair.sample(2, augmentation=mode, s=0, return_stages=True)
        assert all(np.array_equal(none[name], other[name]) for name in none)


def test_a_finished_stage_hands_on_an_image(pair: Cascade, calls: dict[str, list[dict[str, Any]]]) -> None:
    images = pair.sample(2, augmentation="none", return_stages=True)
    handed = calls["sr16"][0]["low_res"]
    assert handed.abs().max() <= 1
    assert np.abs((handed.permute(0, 2, 3, 1).numpy() + 1) * 127.5 - images["base8"]).max() <= 0.51


def test_the_plan_in_words(cascade: Cascade) -> None:
    words = cascade.plan(guidance={"base8": 1.5}, augmentation="truncated", s=0.25).describe()
    assert words == "base8 ddim 4 steps, guidance 1.5; sr16 ddim 4 steps, truncated s=0.25; sr32 ddim 4 steps"


def test_the_callback_sees_every_step_of_every_stage(cascade: Cascade) -> None:
    seen: list[CascadeStep] = []
    cascade.sample(5, batch_size=3, steps={"base8": 3}, callback=seen.append)
    for samples in ([0, 1, 2], [3, 4]):
        part = [step for step in seen if step.samples.tolist() == samples]
        assert [(step.stage, step.step.index, step.step.total) for step in part] == [
            *(("base8", i, 3) for i in range(3)),
            *(("sr16", i, 4) for i in range(4)),
            *(("sr32", i, 4) for i in range(4)),
        ]
        assert part[-1].step.x.shape == (len(samples), 3, 32, 32)
        assert part[-1].step.level.alpha_bar == 1


# -- given images -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures() -> np.ndarray:
    """Three 8x8 pictures."""
    return np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def test_given_images_are_enlarged(
    cascade: Cascade, pictures: np.ndarray, calls: dict[str, list[dict[str, Any]]]
) -> None:
    images = cascade.sample(low_res=pictures, classes=[1, 3], augmentation="none")
    assert images.shape == (3, 32, 32, 3)
    assert calls["base8"] == []
    first = calls["sr16"][0]
    assert first["labels"].tolist() == [1, 3, 1]
    assert np.array_equal(((first["low_res"] + 1) * 127.5).round().permute(0, 2, 3, 1).byte().numpy(), pictures)
    assert np.array_equal(images, cascade.sample(low_res=pictures, classes=[1, 3], augmentation="none", batch_size=2))


def test_given_images_for_a_later_stage(cascade: Cascade, calls: dict[str, list[dict[str, Any]]]) -> None:
    large = np.zeros((2, 16, 16, 3), np.uint8)
    every = cascade.sample(low_res=large, start_stage="sr32", return_stages=True)
    assert list(every) == ["sr32"]
    assert calls["sr16"] == []
    assert set(calls["sr32"][0]["labels"].tolist()) == {-1}


def test_without_classes_given_images_are_enlarged_without_class(
    cascade: Cascade, pictures: np.ndarray, calls: dict[str, list[dict[str, Any]]]
) -> None:
    cascade.sample(low_res=pictures)
    assert {label for name in ("sr16", "sr32") for call in calls[name] for label in call["labels"].tolist()} == {-1}


def test_stages_that_need_the_class_say_so(
    random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure, pictures: np.ndarray
) -> None:
    needy = Cascade([random_stage(base_config()), random_stage(sr_config(training={"class_dropout": 0.0}))])
    with pytest.raises(UserError, match=r"classes: sr16 needs the class of the images it enlarges"):
        needy.sample(low_res=pictures)
    assert needy.sample(low_res=pictures, classes=[1]).shape == (3, 16, 16, 3)


def test_a_guide_that_needs_the_class_says_so(
    random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure, pictures: np.ndarray
) -> None:
    stage = random_stage(sr_config())
    stage.guided_by(random_stage(sr_config(training={"class_dropout": 0.0}), 1))
    cascade = Cascade([random_stage(base_config()), stage])
    assert cascade.sample(low_res=pictures).shape == (3, 16, 16, 3)
    with pytest.raises(UserError, match=r"classes: sr16 needs the class of the images it enlarges"):
        cascade.sample(low_res=pictures, more={"sr16": {"guide": 2.0}})


def test_classes_that_no_stage_looks_at_are_refused(
    random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure, pictures: np.ndarray
) -> None:
    cascade = Cascade([random_stage(base_config()), random_stage(sr_config(classes=None, class_names=None))])
    assert cascade.sample(low_res=pictures).shape == (3, 16, 16, 3)
    with pytest.raises(UserError, match="classes: no effect here, for sr16 has no classes"):
        cascade.sample(low_res=pictures, classes=[1])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"start_stage": "sr16"}, ["start_stage", "sr16 needs images of 8 pixels"]),
        ({"start_stage": "sr64"}, ["start_stage", "'sr64'", "base8, sr16, sr32"]),
        ({"until": "sr64"}, ["until", "'sr64'", "base8, sr16, sr32"]),
        ({"low_res": 8, "start_stage": "base8"}, ["low_res", "base8 is a base stage and takes no images"]),
        ({"low_res": 16}, ["low_res", "(3, 16, 16, 3)", "sr16", "uint8 (N, 8, 8, 3)"]),
        ({"low_res": 8, "start_stage": "sr32"}, ["low_res", "sr32", "uint8 (N, 16, 16, 3)"]),
        ({"low_res": 8, "start_stage": "sr32", "until": "sr16"}, ["until", "sr16 comes before", "sr32"]),
        ({"low_res": 8, "num": 2}, ["num: 2", "3 images"]),
        ({"low_res": 8, "augmentation": "truncated"}, ["truncated", "sr16 starts from given images"]),
        ({"num": 0}, ["num: 0", "from 1"]),
        ({"num": -2}, ["num: -2", "from 1"]),
        ({"batch_size": 0}, ["batch_size: 0", "from 1", "auto"]),
        ({"batch_size": "many"}, ["batch_size: 'many'", "auto"]),
        ({"steps": {"sr64": 2}}, ["steps", "'sr64'"]),
        ({"num": 4.0}, ["num: 4.0 is not a whole number"]),
        ({"num": "4"}, ["num: '4' is not a whole number"]),
        ({"first": 0.5}, ["first: 0.5 is not a whole number"]),
        ({"seed": 1.0}, ["seed: 1.0 is not a whole number"]),
        ({"more": {"sr32": None}}, ["set: None for sr32"]),
        ({"classes": ["9" * 5000]}, ["is not a class"]),
        ({"precision": "bfloat16"}, ["precision: 'bfloat16'", "auto, fp32, bf16"]),
    ],
)
def test_refusals_come_before_any_work(
    arguments: dict[str, Any], words: list[str], cascade: Cascade, calls: dict[str, list[dict[str, Any]]]
) -> None:
    if "low_res" in arguments:
        side = arguments["low_res"]
        arguments = {**arguments, "low_res": np.zeros((3, side, side, 3), np.uint8)}
    with pytest.raises(UserError) as caught:
        cascade.sample(**arguments)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not any(calls.values())


def test_given_images_must_be_uint8(cascade: Cascade, pictures: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"low_res: list is not an array"):
        cascade.sample(low_res=[1, 2])  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"low_res: float32 \(3, 8, 8, 3\) does not fit sr16; allowed: uint8"):
        cascade.sample(low_res=pictures.astype(np.float32))
    with pytest.raises(UserError, match=r"low_res: uint8 \(3, 8, 8, 1\) does not fit sr16"):
        cascade.sample(low_res=pictures[..., :1])


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batches of more than 3 run out of memory; the list holds the sizes that were tried."""
    tried: list[int] = []
    honest = walk.sample_stage

    def sample_stage(*args: Any, index: torch.Tensor, **kwargs: Any) -> Any:
        tried.append(len(index))
        if len(index) > 3:
            raise torch.OutOfMemoryError("too many")
        return honest(*args, index=index, **kwargs)

    monkeypatch.setattr(walk, "sample_stage", sample_stage)
    return tried


def test_auto_halves_until_it_fits_and_changes_no_image(pair: Cascade, little_memory: list[int]) -> None:
    images = pair.sample(7, batch_size="auto")
    assert little_memory[0] == 7
    assert little_memory[:2] == [7, 3]
    assert max(little_memory[1:]) == 3  # and never tried more again
    assert len(images) == 7
    assert np.abs(images.astype(int) - pair.sample(7, batch_size=1)).max() <= 1


def test_a_batch_size_that_was_asked_for_is_kept(pair: Cascade, little_memory: list[int]) -> None:
    with pytest.raises(RuntimeError, match=r"out of memory with 5 samples at once"):
        pair.sample(7, batch_size=5)
    assert little_memory == [5]


def test_auto_gives_up_at_one(pair: Cascade, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("too many")

    monkeypatch.setattr(walk, "sample_stage", never)
    with pytest.raises(RuntimeError, match=r"out of memory with 1 samples at once"):
        pair.sample(3, batch_size="auto")


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_saved_cascade_samples_bit_equal(cascade: Cascade, tmp_path: Path) -> None:
    cascade.save_pretrained(tmp_path / "saved")
    again = Cascade.from_pretrained(tmp_path / "saved")
    assert list(again.stages) == ["base8", "sr16", "sr32"]
    assert again.defaults == cascade.defaults
    assert again.truncated == cascade.truncated == {"base8": False, "sr16": True, "sr32": False}
    assert (again.classes, again.class_names) == (4, tuple(NAMES))
    for settings in ({}, {"augmentation": "truncated", "s": 0.3, "guidance": 2.0}):
        one, two = (c.sample(3, return_stages=True, **settings) for c in (cascade, again))
        assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_cascade_in_half_precision_samples_nearly_the_same(tiny_cascade: Cascade, tmp_path: Path) -> None:
    tiny_cascade.save_pretrained(tmp_path / "half", dtype=torch.float16)
    again = Cascade.from_pretrained(tmp_path / "half")
    assert {p.dtype for stage in again.stages.values() for p in stage.network.parameters()} == {torch.float32}
    difference = np.abs(again.sample(4).astype(int) - tiny_cascade.sample(4))
    assert difference.mean() < 1
    tiny_cascade.save_pretrained(tmp_path / "full")
    half, full = (
        sum(path.stat().st_size for path in (tmp_path / name).rglob("*.safetensors")) for name in ("half", "full")
    )
    assert half < 0.6 * full


def test_saving_never_overwrites(tiny_cascade: Cascade, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"already there and not an empty folder"):
        tiny_cascade.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_tuned_defaults_are_used_and_saved(pair: Cascade, stages: list[Stage], tmp_path: Path) -> None:
    tuned = pair.defaults["sr16"].model_copy(update={"s": 0.4, "steps": 2})
    cascade = Cascade(stages[:2], defaults={"sr16": tuned})
    cascade.save_pretrained(tmp_path / "tuned")
    again = Cascade.from_pretrained(tmp_path / "tuned")
    assert again.plan().settings["sr16"] == tuned
    assert np.array_equal(again.sample(2), pair.sample(2, s=0.4, steps={"sr16": 2}))


def test_defaults_that_a_stage_has_not_learned_are_refused(pair: Cascade, stages: list[Stage]) -> None:
    wrong = pair.defaults["sr16"].model_copy(update={"s": 0.9})
    with pytest.raises(UserError, match=r"sr16: sampling\.s: 0\.9 is above conditioning\.s_max 0\.5"):
        Cascade(stages[:2], defaults={"sr16": wrong})


def test_stages_with_other_schedules_give_up_truncated_sampling(
    random_stage: Callable[..., Stage], base_config: Configure, sr_config: Configure, tmp_path: Path
) -> None:
    other = base_config(diffusion={"noise_schedule": {"timesteps": 50}})
    parts = [random_stage(other), random_stage(sr_config())]
    with pytest.raises(UserError, match=r"sr16 .* cosine T=40, base8 has cosine T=50; --no-truncated"):
        Cascade(parts)
    Cascade(parts, no_truncated=True).save_pretrained(tmp_path / "cascade")
    cascade = Cascade.from_pretrained(tmp_path / "cascade")
    assert not cascade.truncated["sr16"]
    assert cascade.sample(2, s=0.2).shape == (2, 16, 16, 3)
    with pytest.raises(UserError, match=r"truncated is not available, sr16 was assembled with --no-truncated"):
        cascade.sample(2, augmentation="truncated")


def test_names_that_are_no_cascade(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'nowhere' is neither a folder nor packaged"):
        Cascade.from_pretrained("nowhere")
    with pytest.raises(UserError, match=r"not a cascade \(no cascade\.json\)"):
        Cascade.from_pretrained(tmp_path)


def test_it_moves(pair: Cascade) -> None:
    assert pair.to("cpu") is pair
    assert pair.device == torch.device("cpu")


def test_bf16_is_close(pair: Cascade) -> None:
    exact, rough = pair.sample(2, until="base8"), pair.sample(2, until="base8", precision="bf16")
    assert np.abs(exact.astype(int) - rough).mean() < 8
