"""The fast path, recomputed activations and compiling: the same answers and gradients as without."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._functorch.compilers import nop

from cascaded_diffusion.cache import cache_folder
from cascaded_diffusion.diffusion.denoiser import Diffusion, DiffusionConfig
from cascaded_diffusion.networks import compiling
from cascaded_diffusion.networks.compiling import compiled, cuda_graphs, wants_compiling
from cascaded_diffusion.networks.unet import NetworkConfig, UNet

CPU = torch.device("cpu")


def build(resolution: int = 32, **changes: Any) -> UNet:
    """A network wide enough for every fast layer, with no layer at zero."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"channels": 64, "multipliers": (1, 1), "blocks": 1, "attention": (), "heads": 2}
    network = UNet(
        NetworkConfig(**(settings | changes)),
        resolution=resolution,
        image_channels=3,
        out_channels=3,
        classes=4,
        low_res_channels=3,
        s_embedding=True,
    )
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def inputs(network: UNet, n: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    side = network.resolution
    return {
        "x": torch.randn(n, 3, side, side).to(memory_format=torch.channels_last),
        "time": torch.rand(n) * 1000,
        "labels": torch.arange(n) % 4,
        "low_res": torch.randn(n, 3, side // 2, side // 2),
        "s": torch.rand(n),
    }


def gradients(network: UNet, values: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    out = network(**values)
    out.square().mean().backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, grad in found.items() if grad is None or not grad.any()] == []
    return out.detach(), {name: grad.clone() for name, grad in found.items() if grad is not None}


def relative(found: Tensor, wanted: Tensor) -> float:
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scale_shift": False, "resample": "block"},
        {"attention": (16,), "attention_order": "heads-first", "resample": "plain"},
        {"patch": 2, "resolution": 64, "multipliers": (1,)},
        {"resolution": 36, "attention": (18,)},
        {"resolution": 42, "multipliers": (1, 1.5)},
    ],
    ids=str,
)
def test_the_fast_path_gives_the_same_answers_and_gradients(changes: dict[str, Any]) -> None:
    network = build(**changes)
    values = inputs(network)
    fast, fast_gradients = gradients(network, values)
    network.use_fast_path(False)
    plain, plain_gradients = gradients(network, values)
    assert relative(fast, plain) < 1e-4
    assert {name: grad for name, grad in fast_gradients.items() if relative(grad, plain_gradients[name]) > 1e-4} == {}


def test_in_bf16_the_fast_path_is_as_near_to_float32_as_the_plain_one() -> None:
    network = build(resolution=8, channels=96, attention=(8,))
    values = inputs(network, 4)

    def error(fast: bool) -> tuple[float, float]:
        network.use_fast_path(fast)
        with torch.autocast("cpu", torch.bfloat16):
            out, found = gradients(network, values)
        off = [relative(grad, wanted[name]) for name, grad in found.items()]
        return relative(out, exact), sum(off) / len(off)

    network.use_fast_path(False)
    exact, wanted = gradients(network, values)
    fast, plain = error(True), error(False)
    assert all(one < 1.2 * other for one, other in zip(fast, plain, strict=True))
    assert max(plain) < 0.1


@pytest.mark.parametrize("parts", ["blocks", "levels"])
def test_recomputed_activations_give_the_same_gradients_and_take_less_memory(parts: Any) -> None:
    network = build(resolution=16, channels=16, blocks=2, attention=(8,), dropout=0.3).train()
    values = inputs(network)

    def kept() -> tuple[int, Tensor, dict[str, Tensor]]:
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.manual_seed(2)
            network(**values)
        return sum(sizes.values()), *gradients(network, values)

    whole, out, wanted = kept()
    network.recompute(parts)
    less, again, found = kept()
    assert torch.equal(out, again)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert less < 0.6 * whole


def small() -> UNet:
    return build(resolution=4, channels=8, multipliers=(1,), attention=())


def training_loss(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    diffusion = Diffusion(DiffusionConfig())

    def loss(values: dict[str, Tensor]) -> Tensor:
        conditions = {key: value for key, value in values.items() if key not in ("x", "time")}
        noise, times = torch.ones_like(values["x"]), torch.full((len(values["x"]),), 0.5, dtype=torch.float64)
        return diffusion.training_loss(lambda x, time: network(x, time, **conditions), values["x"], noise, times)

    return loss


def test_forward_and_training_are_one_graph_and_three_batch_sizes_compile_twice() -> None:
    torch._dynamo.reset()
    network, counter = small(), CompileCounter()
    call = compiled(network, "on", CPU, backend=counter)
    loss, plain = training_loss(call), training_loss(network)
    for n in (4, 2, 3):
        values = inputs(network, n)
        found = loss(values)
        found.sum().backward()
        torch.testing.assert_close(found, plain(values))
    assert counter.frame_count <= 2
    # fullgraph=True has refused any break; what is compiled holds the whole network.
    assert counter.op_count > 80
    torch._dynamo.reset()


def test_a_smaller_batch_is_filled_up_and_compiles_nothing() -> None:
    torch._dynamo.reset()
    network, counter = small().eval().requires_grad_(False), CompileCounter()
    call = cuda_graphs(network, "on", CPU, backend=counter)
    for n in (4, 1, 3):
        values = inputs(network, n)
        torch.testing.assert_close(call(**values), network(**values))
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_auto_compiles_for_cuda_alone() -> None:
    network = small()
    assert compiled(network, "auto", CPU) is network
    assert cuda_graphs(network, "off", torch.device("cuda")) is network
    assert [wants_compiling(choice, torch.device("cuda")) for choice in ("auto", "on", "off")] == [True, True, False]


def test_a_compiler_that_fails_is_told_once_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "wants_compiling", lambda choice, device: True)

    def broken(graph: object, examples: object) -> Callable[..., Any]:
        raise RuntimeError("no compiler here")

    network = small()
    values = inputs(network)
    call = compiled(network, "auto", CPU, backend=broken)
    with pytest.warns(UserWarning, match="no compiler here"):
        found = call(**values)
    assert torch.equal(found, network(**values))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(**values)
    with pytest.raises(Exception, match="no compiler here"):
        compiled(network, "on", CPU, backend=broken)(**values)
    torch._dynamo.reset()


def test_a_backward_graph_that_does_not_compile_is_done_without_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "wants_compiling", lambda choice, device: True)
    monkeypatch.setattr(torch._functorch.config, "force_non_lazy_backward_lowering", False)

    def broken(graph: object, examples: object) -> Callable[..., Any]:
        raise RuntimeError("no way back")

    network = small()
    call = compiled(network, "auto", CPU, backend=aot_autograd(fw_compiler=nop, bw_compiler=broken))
    with pytest.warns(UserWarning, match="no way back"):
        training_loss(call)(inputs(network)).sum().backward()
    torch._dynamo.reset()


@pytest.mark.parametrize("sizes", [(2, 4), (4, 2)])
def test_half_a_batch_is_not_filled_up(sizes: tuple[int, int]) -> None:
    """Guidance in an interval calls with one row an image outside of it, and two within."""
    seen: list[int] = []
    call = compiling._FilledUp(lambda x: seen.append(len(x)) or x)  # type: ignore[func-returns-value]
    for n in (*sizes, 1, 3, 2):
        assert len(call(torch.zeros(n, 1, 2, 2))) == n
    assert seen == [*sizes, 2, 4, 2]


def test_after_a_batch_that_did_not_fit_smaller_ones_are_tried_as_they_are() -> None:
    seen: list[int] = []

    def call(x: Tensor) -> Tensor:
        seen.append(len(x))
        if len(x) > 2:
            raise torch.OutOfMemoryError
        return x

    filled = compiling._FilledUp(call)
    for n in (8, 4, 2):
        with contextlib.suppress(torch.OutOfMemoryError):
            filled(torch.zeros(n, 1, 2, 2))
    assert seen == [8, 4, 2]


def test_the_compilers_cache_outlasts_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that what was there comes back
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    compiled(small(), "on", CPU, backend="eager")
    assert compiling.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache_folder() / "compiled")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    compiled(small(), "on", CPU, backend="eager")
    assert compiling.os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
