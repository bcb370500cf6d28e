"""What several test modules share: small prepared data, small stages, and a small cascade.

Session-scoped folders are shared between tests: read them, copy them, never write to them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import ipaddress
import os
import resource
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from cascaded_diffusion.cascade.chain import Cascade
from cascaded_diffusion.cascade.stage import Stage, StageConfig, build_network
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.evaluation.features import Features
from cascaded_diffusion.training.export import stage_from_run
from cascaded_diffusion.training.loop import train

Frugal = Callable[[Callable[[], object]], str]

COLOURS = ((220, 40, 40), (40, 200, 60), (50, 70, 220), (230, 210, 50))
CPU = torch.device("cpu")

Configure = Callable[..., StageConfig]

# A property does not fail for a machine that has other work.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums in one order whatever the machine, and no thread of a test competes with another test's."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or fills the user's cache; processes that tests start inherit this one."""
    os.environ["CASCADED_DIFFUSION_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def _is_here(host: object) -> bool:
    """Whether a host is this machine, by number or by name."""
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(str(host).partition("%")[0])
        return address.is_loopback or address.is_unspecified
    return False


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """No test reaches another machine: it fails where it tries to, whatever the code under test would make of that."""
    patch = pytest.MonkeyPatch()
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host: object) -> None:
        if not _is_here(host):
            pytest.fail(f"a test reaches for {host!r} on the network", pytrace=True)

    def checked_connect(self: socket.socket, address: Any) -> None:
        check(address[0] if isinstance(address, tuple) else None)  # anything else is a path or a number in here
        connect(self, address)

    def checked_connect_ex(self: socket.socket, address: Any) -> int:
        check(address[0] if isinstance(address, tuple) else None)
        return connect_ex(self, address)

    def checked_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        try:
            ipaddress.ip_address(str(name).partition("%")[0])  # nobody has to be asked for an address
        except ValueError:
            check(name)
        return look_up(host, *arguments, **options)

    patch.setattr(socket.socket, "connect", checked_connect)
    patch.setattr(socket.socket, "connect_ex", checked_connect_ex)
    patch.setattr(socket, "getaddrinfo", checked_look_up)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell that starts the tests in its background has them, and every process they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def frugal() -> Frugal:
    """``frugal(function)``: call it in a process that may take 256 MB more than it has; ``"read"``, or its error."""

    def call(function: Callable[[], object]) -> str:
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on, about threads; none runs here
            child = os.fork()
        if child == 0:
            outcome = "read"
            try:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**28,) * 2)
                signal.alarm(30)  # a reader that waits is killed, and tells nothing
                function()
            except Exception as error:  # noqa: BLE001 - told to the parent
                outcome = f"{type(error).__name__}: {error}"
            finally:
                os.write(write, outcome.encode())
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as told:
            outcome = told.read()
        os.waitpid(child, 0)
        return outcome

    return call


@pytest.fixture(scope="session")
def colours() -> np.ndarray:
    """The colour of each class of ``colour_data``: uint8 (4, 3)."""
    return np.array(COLOURS, np.uint8)


def _colour_images(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Plain pictures in a class's colour, each a little darker or lighter than the next."""
    labels = np.arange(count) % len(COLOURS)
    shade = np.random.default_rng(0).integers(-12, 13, (count, 1, 1, 1))
    plain = np.array(COLOURS)[labels][:, None, None, :] + shade
    return np.broadcast_to(plain, (count, side, side, 3)).clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def _gradient_images(count: int, side: int) -> np.ndarray:
    """Grey pictures, lighter from left to right by differing amounts, so that a flip shows."""
    generator = np.random.default_rng(1)
    ramp = np.linspace(0, 1, side)[None, None, :]
    start, slope = generator.integers(0, 120, (2, count, 1, 1))
    return np.broadcast_to(start + slope * ramp, (count, side, side)).astype(np.uint8)


@pytest.fixture(scope="session")
def colour_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data: 80 plain RGB pictures of 4 classes (red, green, blue, yellow) at 4, 8, 16 and 32 pixels."""
    root = tmp_path_factory.mktemp("colours")
    images, labels = _colour_images(80, 32)
    np.savez(root / "colours.npz", arr_0=images, arr_1=labels)
    prepare(str(root / "colours.npz"), root / "data", resolutions=[4, 8, 16, 32], val=0.2, workers=0)
    return root / "data"


@pytest.fixture(scope="session")
def colour_data(colour_folder: Path) -> PreparedData:
    """``colour_folder``, opened."""
    return PreparedData.open(colour_folder)


@pytest.fixture(scope="session")
def grey_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data: 40 grey gradients without classes at 8 and 16 pixels, all for training."""
    root = tmp_path_factory.mktemp("grey")
    np.savez(root / "grey.npz", arr_0=_gradient_images(40, 16))
    prepare(str(root / "grey.npz"), root / "data", resolutions=[8, 16], workers=0)
    return root / "data"


@pytest.fixture(scope="session")
def grey_data(grey_folder: Path) -> PreparedData:
    """``grey_folder``, opened."""
    return PreparedData.open(grey_folder)


def _merge(target: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


_SHARED: dict[str, Any] = {
    "network": {"channels": 32, "multipliers": [1], "blocks": 1, "heads": 1, "middle_attention": False},
    "diffusion": {"noise_schedule": {"kind": "cosine", "timesteps": 40}, "prediction": "v"},
    "training": {
        "images": 64,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "ema_half_lives": [16, 64],
        "ema_rampup": None,
        "class_dropout": 0.2,
        "precision": "fp32",
        "log_every": 16,
        "preview_every": None,
        "checkpoint_every": 32,
    },
    "sampling": {"sampler": "ddim", "steps": 4},
    "channels": 3,
    "classes": 4,
}


@pytest.fixture(scope="session")
def base_config() -> Configure:
    """``base_config(8, training={"seed": 1}, ...)``: a tiny base stage for ``colour_data``, with changes merged in."""

    def make(resolution: int = 8, **changes: Any) -> StageConfig:
        raw: dict[str, Any] = {"name": f"base{resolution}", "resolution": resolution}
        _merge(raw, _copied(_SHARED))
        _merge(raw, changes)
        return StageConfig.model_validate(raw)

    return make


@pytest.fixture(scope="session")
def sr_config() -> Configure:
    """``sr_config(16, low=8, ...)``: a tiny SR stage that fits ``base_config``'s below it, with changes merged in."""

    def make(resolution: int = 16, low: int = 8, **changes: Any) -> StageConfig:
        raw: dict[str, Any] = {"name": f"sr{resolution}", "resolution": resolution}
        _merge(raw, _copied(_SHARED))
        raw["network"]["patch"] = 2
        raw["conditioning"] = {
            "augmentation": "gaussian",
            "s_max": 0.5,
            "low_resolution": low,
            "low_schedule": {"kind": "cosine", "timesteps": 40},
        }
        raw["sampling"] = {"sampler": "ddim", "steps": 4, "augmentation": "nontruncated", "s": 0.1}
        _merge(raw, changes)
        if raw["conditioning"]["augmentation"] != "gaussian":
            raw["conditioning"]["low_schedule"] = None
            raw["sampling"] |= {"augmentation": "none", "s": 0.0}
        return StageConfig.model_validate(raw)

    return make


def _copied(value: Any) -> Any:
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


@pytest.fixture(scope="session")
def random_stage() -> Callable[..., Stage]:
    """``random_stage(config, seed=0)``: a stage of weights that were drawn, not trained; every input matters to it."""

    def make(config: StageConfig, seed: int = 0) -> Stage:
        network = build_network(config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                # A fresh network answers exactly 0; that hides every input.
                fan = parameter[0].numel() if parameter.dim() > 1 else 4
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
        return Stage(config, network)

    return make


@pytest.fixture(scope="session")
def tiny_runs(
    tmp_path_factory: pytest.TempPathFactory, colour_data: PreparedData, base_config: Configure, sr_config: Configure
) -> dict[str, Path]:
    """Run folders ``base8`` and ``sr16``, trained on ``colour_data`` for a few steps."""
    root = tmp_path_factory.mktemp("runs")
    for config in (base_config(8), sr_config(16, low=8)):
        train(config, colour_data, root / config.name, device=CPU)
    return {name: root / name for name in ("base8", "sr16")}


@pytest.fixture(scope="session")
def tiny_cascade_folder(tmp_path_factory: pytest.TempPathFactory, tiny_runs: Mapping[str, Path]) -> Path:
    """The cascade folder assembled from ``tiny_runs``."""
    folder = tmp_path_factory.mktemp("cascade") / "tiny"
    parts = {name: stage_from_run(run) for name, run in tiny_runs.items()}
    cascade = Cascade(
        [stage for stage, _ in parts.values()], provenance={name: origin for name, (_, origin) in parts.items()}
    )
    cascade.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_cascade(tiny_cascade_folder: Path) -> Cascade:
    """``tiny_cascade_folder``, opened anew for every test."""
    return Cascade.from_pretrained(tiny_cascade_folder)


class ColourEye:
    """A feature extractor without a network: mean colours of the quarters, and which of COLOURS an image is nearest to.

    Attributes:
        seen: how many images it was shown.
    """

    name = "eye"
    content_hash = "e" * 64
    resize = "quarters, averaged"
    dtype = "fp32"

    def __init__(self, class_names: tuple[str, ...] | None = ("0", "1", "2", "3"), *, logits: bool = True) -> None:
        self.class_names = class_names
        self.seen = 0
        self._logits = logits

    def __call__(self, images: np.ndarray, /) -> Features:
        self.seen += len(images)
        pixels = torch.from_numpy(np.array(images)).float().permute(0, 3, 1, 2)
        pixels = pixels if pixels.shape[1] == 3 else pixels.repeat(1, 3, 1, 1)
        quarters = torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)
        distances = torch.cdist(pixels.mean(dim=(2, 3)), torch.tensor(COLOURS, dtype=torch.float32))
        return Features(quarters / 255, -distances / 20 if self._logits else None)


@pytest.fixture
def colour_eye() -> ColourEye:
    """A new :class:`ColourEye`."""
    return ColourEye()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A stand-in for the Hugging Face hub on loopback, which is the hub for the test, with an empty cache.

    ``tests/interop/stand_in.py`` tells what it plays; the test is logged in as ``user``.
    """
    constants = pytest.importorskip("huggingface_hub.constants")
    place = Path(__file__).parent / "interop/stand_in.py"
    spec = importlib.util.spec_from_file_location("hub_stand_in", place)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault("hub_stand_in", importlib.util.module_from_spec(spec))
    if not hasattr(module, "StandIn"):
        spec.loader.exec_module(module)
    server = module.StandIn()
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", module.GOOD_TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # Whatever hub it talks to, the client asks the public one for names to put into its User-Agent; here it knows them.
    names = "huggingface_hub.utils._detect_agent._registry"
    monkeypatch.setattr(names, {"standardEnvVars": [], "harnesses": {}}, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    importlib.import_module("huggingface_hub.utils").disable_progress_bars()
    yield server
    server.close()
