"""Loss curves with every speed option, alone and together, against none, and against other seeds.

    python benchmarks/loss_parity.py                       # a small network on this CPU
    python benchmarks/loss_parity.py --device cuda --width 128 --steps 2000 --options fast_path compile bf16 all

An option passes if its losses differ from those without by no more than two seeds differ from each other. The data
are blurred noise, made here: what matters is that all runs see the same.
"""

from __future__ import annotations

import argparse
import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor

from cascaded_diffusion.diffusion.denoiser import Diffusion, DiffusionConfig
from cascaded_diffusion.networks.compiling import compiled
from cascaded_diffusion.networks.unet import NetworkConfig, UNet

OPTIONS = ("fast_path", "blocks", "levels", "compile", "bf16", "all")


def images(n: int, side: int) -> Tensor:
    """Smooth images in [-1, 1], always the same."""
    noise = torch.randn(n, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, side, mode="bilinear").tanh()


def losses(args: argparse.Namespace, option: str | None, seed: int) -> Tensor:
    """The loss of every step, (steps,)."""
    device = torch.device(args.device)
    torch.manual_seed(seed)
    config = NetworkConfig(
        channels=args.width, multipliers=(1, 1), blocks=1, attention=(args.side // 2,), head_channels=args.width // 2
    )
    network = UNet(config, resolution=args.side, image_channels=3, out_channels=3).to(device)
    network = network.to(memory_format=torch.channels_last)
    network.use_fast_path(option in ("fast_path", "all"))
    network.recompute(option if option in ("blocks", "levels") else "blocks" if option == "all" else "none")
    call = compiled(network, "on" if option == "compile" or (option == "all" and args.compile) else "off", device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=option == "all")
    diffusion, data = Diffusion(DiffusionConfig()), images(256, args.side).to(device)
    draw = torch.Generator().manual_seed(seed)
    curve = []
    for _ in range(args.steps):
        x0 = data[torch.randint(len(data), (args.batch,), generator=draw)]
        noise = torch.randn(x0.shape, generator=draw).to(device)
        times = diffusion.draw_times(torch.rand(args.batch, generator=draw))
        bf16 = option == "bf16" or (option == "all" and args.bf16)
        with torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = diffusion.training_loss(call, x0, noise, times).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        curve.append(loss.detach().float().cpu())
    return torch.stack(curve)


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--options", nargs="+", default=["fast_path", "blocks", "levels", "all"], choices=OPTIONS)
    parser.add_argument("--compile", action="store_true", help="compile in 'all' too")
    parser.add_argument("--bf16", action="store_true", help="bf16 in 'all' too")
    args = parser.parse_args()
    tail = max(args.steps // 4, 1)
    plain = losses(args, None, seed=0)
    reference = plain[-tail:].mean()
    seeds = [losses(args, None, seed)[-tail:].mean() for seed in (1, 2)]
    noise = max(abs(float(other - reference)) for other in seeds)
    print(f"Without options: mean loss of the last {tail} of {args.steps} steps {reference:.5f}.")
    print(f"Two other seeds differ from it by up to {noise:.5f}.\n")
    print("| option | mean loss | difference | largest difference of one step | within seed noise |")
    print("| --- | --- | --- | --- | --- |")
    for option in args.options:
        curve = losses(args, option, seed=0)
        mean = curve[-tail:].mean()
        apart = abs(float(mean - reference))
        print(
            f"| {option} | {mean:.5f} | {apart:.6f} | {(curve - plain).abs().max():.6f} "
            f"| {'yes' if apart <= noise else 'NO'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
