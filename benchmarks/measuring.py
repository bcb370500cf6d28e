"""What the benchmarks share: the machine in words, and ways of one computation timed in turns."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

__all__ = ["hardware", "medians", "micro_arguments"]


def hardware(device: torch.device | str = "cpu") -> str:
    """The processor or GPU, threads and torch's version, in one line."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def medians(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Milliseconds that each way takes, the median of ``repeats``.

    The ways take turns, so that what else the machine does hits all alike. A first round warms up and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def micro_arguments(description: str | None, words: Sequence[str] | None, repeats: int) -> argparse.Namespace:
    """The command line of a benchmark of single operations on the CPU; sets the threads that it asks for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=repeats, help=f"of which the median is taken ({repeats})")
    parser.add_argument("--tiny", action="store_true", help="two pixels a side: shows that it runs")
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    return args
