"""Training and denoising throughput of the networks here and of diffusers' of the same shape, in one run.

    python benchmarks/throughput.py --shape cpu64 --json out.json          # on a CPU
    python benchmarks/throughput.py --device cuda --shape base64 sr256     # on a GPU

Variants take turns, one step each, so that what else the machine does hits all alike; the medians are reported. Without
diffusers installed the networks here are measured alone. ``benchmarks/speed_gpu.sh`` does the whole GPU table.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import hardware
from throughput_models import SHAPES, Shape, build_ours, build_theirs, forward_flops
from throughput_show import table
from torch import Tensor, nn

from cascaded_diffusion.memory import keep_freed
from cascaded_diffusion.networks.compiling import compiled, cuda_graphs
from cascaded_diffusion.training.ema import Averages

TRAINING = {
    "diffusers fp32": ("theirs", "fp32", False),
    "diffusers bf16 autocast": ("theirs", "bf16", False),
    "diffusers compiled": ("theirs", "bf16", True),
    "ours plain": ("plain", "fp32", False),
    "ours fast": ("fast", "fp32", False),
    "ours fast bf16": ("fast", "bf16", False),
    "ours compiled": ("fast", "bf16", True),
}
"""Variant to (network, precision, whether it is compiled)."""


def wanted(variant: str, args: argparse.Namespace) -> bool:
    """Whether a variant is measured on this device in these precisions."""
    network, precision, is_compiled = TRAINING[variant]
    if args.variants and variant not in args.variants:
        return False
    if is_compiled and args.device == "cpu" and not args.compile_on_cpu:
        return False
    if not is_compiled and precision not in args.dtype:
        return False
    return network != "theirs" or args.theirs


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes on the device."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def limits(device: torch.device, tiny: bool) -> dict[str, float]:
    """The machine's own rates in this run: matrix products in FLOP/s for each type, and memory in bytes/s."""
    side = 128 if tiny else (8192 if device.type == "cuda" else 1024)
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        one = torch.randn(side, side, device=device, dtype=dtype)
        out = one @ one
        times = [timed(lambda one=one, out=out: torch.mm(one, one, out=out), device) for _ in range(10)]
        found[f"matmul_{name}"] = 2 * side**3 / min(times)
    one = torch.randn(2**18 if tiny else 2**26, device=device)
    out = torch.empty_like(one)
    times = [timed(lambda: out.copy_(one), device) for _ in range(10)]
    found["bandwidth"] = 2 * one.numel() * one.element_size() / min(times)
    return found


def inputs(shape: Shape, batch: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of noise with the conditions that the shape has, for networks of either kind."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, shape.channels + shape.low_res, shape.side, shape.side, generator=generator)
    found = {"x": x, "time": torch.rand(batch, generator=generator) * 1000}
    if shape.classes:
        found["labels"] = torch.randint(shape.classes, (batch,), generator=generator)
    return {key: value.to(device) for key, value in found.items()}


def caller(network: nn.Module, call: Callable[..., Any], shape: Shape, kind: str) -> Callable[..., Tensor]:
    """``call`` of a network of either kind as a function of :func:`inputs`."""
    if kind == "theirs":
        fold = shape.patch
        return lambda x, time, labels=None: call(
            F.pixel_unshuffle(x, fold) if fold > 1 else x, time, class_labels=labels, return_dict=False
        )[0]

    def ours(x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        low_res = x[:, shape.channels :] if shape.low_res else None
        s = torch.full_like(time, 0.1) if network.has_s else None
        return call(x[:, : shape.channels], time, labels=labels, low_res=low_res, s=s)

    return ours


class Contestant:
    """One network in one variant, ready to take steps."""

    def __init__(self, variant: str, shape: Shape, batch: int, device: torch.device, *, trains: bool) -> None:
        self.kind, self.precision, is_compiled = TRAINING[variant]
        self.device = device
        torch.manual_seed(0)
        network = build_theirs(shape) if self.kind == "theirs" else build_ours(shape)
        self.network = network.to(device)
        self.data = inputs(shape, batch, device)
        if self.kind != "theirs" or is_compiled:
            self.network = self.network.to(memory_format=torch.channels_last)
            self.data["x"] = self.data["x"].contiguous(memory_format=torch.channels_last)
        if self.kind != "theirs":
            self.network.use_fast_path(self.kind == "fast")
        self.network.train(trains).requires_grad_(trains)
        call: Callable[..., Any] = self.network
        if is_compiled:
            call = self._compiled(trains)
        self.call = caller(self.network, call, shape, self.kind)
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())
        if trains:
            fused = device.type in ("cpu", "cuda")
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4, fused=fused)
            self.averages = Averages(self.network, [1_000_000], None)

    def _compiled(self, trains: bool) -> Callable[..., Any]:
        if trains:
            return compiled(self.network, "on", self.device)
        # Weights in bf16 and CUDA graphs for both.
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
        if self.kind != "theirs":
            return cuda_graphs(self.network, "on", self.device)
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        return torch.compile(self.network, mode=mode, fullgraph=True)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def train(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            out = self.call(**self.data)
        out.float().square().mean().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.averages.update(len(self.data["x"]), 10**6)

    def denoise(self) -> None:
        with torch.no_grad(), self._autocast():
            self.call(**self.data)


def measured(shape: Shape, task: str, batch: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One result for every variant, all of them timed in turns. On CUDA one after the other: memory holds one."""
    device = torch.device(args.device)
    names = [variant for variant in TRAINING if wanted(variant, args)]
    groups = [[name] for name in names] if device.type == "cuda" else [names]
    for group in groups:
        ready: dict[str, tuple[Contestant, Callable[[], None]]] = {}
        starts: dict[str, float] = {}
        for name in group:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            contestant = Contestant(name, shape, batch, device, trains=task == "train")
            step = contestant.train if task == "train" else contestant.denoise
            ready[name] = contestant, step
            starts[name] = timed(step, device)
            # Compiling and recording go on into the second and third step.
            for _ in range(2 if device.type == "cuda" else 0):
                step()
        times: dict[str, list[float]] = {name: [] for name in group}
        for _ in range(args.steps):
            for name in group:
                times[name].append(timed(ready[name][1], device))
        for name in group:
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
            yield {
                "shape": shape.name,
                "task": task,
                "variant": name,
                "batch": batch,
                "parameters": ready[name][0].parameters,
                "seconds": statistics.median(times[name]),
                "fastest": min(times[name]),
                "first_step": starts[name],
                "peak_bytes": peak,
            }
        ready.clear()
        gc.collect()
        if device.type == "cuda":
            torch._dynamo.reset()
            torch.cuda.empty_cache()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", nargs="+", default=["cpu64"], choices=sorted(SHAPES))
    parser.add_argument("--task", nargs="+", default=["train", "denoise"], choices=["train", "denoise"])
    parser.add_argument("--variants", nargs="+", choices=list(TRAINING), help="default: all that fit")
    parser.add_argument("--batch", type=int, help="default: the shape's own")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--json", type=Path, help="written anew after every variant")
    parser.add_argument("--tiny", action="store_true", help="small images and networks: a check that all of it runs")
    parser.add_argument(
        "--keep-freed", action="store_true", help="on a CPU: memory as in cdm train, for every variant alike"
    )
    parser.add_argument("--compile-on-cpu", action="store_true")
    args = parser.parse_args()
    args.theirs = True
    try:
        import diffusers  # noqa: F401
    except ImportError:
        args.theirs = False
        print("diffusers is not installed: only the networks here are measured", file=sys.stderr)
    return args


def main() -> None:
    """Measure, and print the tables."""
    args = arguments()
    device = torch.device(args.device)
    if args.keep_freed and not keep_freed():
        sys.exit("--keep-freed: not with this C library")
    report: dict[str, Any] = {
        "command": " ".join(["benchmarks/throughput.py", *sys.argv[1:]]),
        "hardware": hardware(device),
        "limits": limits(device, args.tiny),
        "flops": {},
        "bytes": {},
        "results": [],
    }
    for name in args.shape:
        shape = SHAPES[name].tiny() if args.tiny else SHAPES[name]
        report["flops"][shape.name], report["bytes"][shape.name] = forward_flops(shape)
        for task in args.task:
            batch = args.batch or (shape.batch if task == "train" else shape.denoise_batch)
            for result in measured(shape, task, batch, args):
                report["results"].append(result)
                print(
                    f"{shape.name} {task}: {result['variant']}: {batch / result['seconds']:.1f} images/s, "
                    f"first step {result['first_step']:.1f} s",
                    file=sys.stderr,
                )
                if args.json:
                    args.json.write_text(json.dumps(report, indent=1))
    print(table(report))


if __name__ == "__main__":
    main()
