"""Tables of what ``throughput.py`` measured, in markdown."""

from __future__ import annotations

from typing import Any

_REFERENCE = "diffusers fp32"


def table(report: dict[str, Any]) -> str:
    """The results, and the roofline: what the limit is and how far off each variant is."""
    limits = report["limits"]
    lines = [
        f"Hardware: {report['hardware']}. Command: `{report['command']}`",
        "",
        f"Measured in the same run: matrix product {limits['matmul_fp32'] / 1e9:.0f} GFLOP/s in fp32, "
        f"{limits['matmul_bf16'] / 1e9:.0f} in bf16; memory {limits['bandwidth'] / 1e9:.1f} GB/s.",
        "",
        "| shape | task | variant | batch | parameters | images/s | of diffusers fp32 | share of matrix rate "
        "| first step | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    references = {
        (each["shape"], each["task"]): each["seconds"] for each in report["results"] if each["variant"] == _REFERENCE
    }
    for each in report["results"]:
        rate = each["batch"] / each["seconds"]
        reference = references.get((each["shape"], each["task"]))
        ratio = "-" if reference is None else f"{reference / each['seconds']:.2f}x"
        share = _flops(report, each) / each["seconds"] / _peak(limits, each["variant"])
        memory = "-" if each["peak_bytes"] is None else f"{each['peak_bytes'] / 2**30:.1f} GiB"
        lines.append(
            f"| {each['shape']} | {each['task']} | {each['variant']} | {each['batch']} "
            f"| {each['parameters'] / 1e6:.2f} M | {rate:.1f} | {ratio} | {share:.0%} | {each['first_step']:.1f} s "
            f"| {memory} |"
        )
    return "\n".join([*lines, "", *_roofline(report)])


def _flops(report: dict[str, Any], result: dict[str, Any]) -> float:
    """Of one step; the backward pass counts as two forward passes."""
    return report["flops"][result["shape"]] * result["batch"] * (3 if result["task"] == "train" else 1)


def _peak(limits: dict[str, float], variant: str) -> float:
    is_bf16 = "bf16" in variant or "compiled" in variant
    return limits["matmul_bf16" if is_bf16 else "matmul_fp32"]


def _roofline(report: dict[str, Any]) -> list[str]:
    """Of each shape: arithmetic per byte if nothing is fused, which limit that meets, and the time at both limits."""
    limits = report["limits"]
    lines = [
        "| shape | GFLOP an image | MB an image, unfused | FLOP a byte | machine's FLOP a byte | limit "
        "| images/s at it | fastest denoising |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, flops in report["flops"].items():
        moved = report["bytes"][name]
        arithmetic, memory = flops / limits["matmul_fp32"], moved / limits["bandwidth"]
        rates = [
            each["batch"] / each["seconds"]
            for each in report["results"]
            if each["shape"] == name
            and each["task"] == "denoise"
            and _peak(limits, each["variant"]) == limits["matmul_fp32"]
        ]
        bound = 1 / max(arithmetic, memory)
        lines.append(
            f"| {name} | {flops / 1e9:.2f} | {moved / 1e6:.0f} | {flops / moved:.0f} "
            f"| {limits['matmul_fp32'] / limits['bandwidth']:.0f} "
            f"| {'arithmetic' if arithmetic > memory else 'memory'} "
            f"| {bound:.1f} | {f'{max(rates) / bound:.0%} of it' if rates else 'not measured'} |"
        )
    lines += ["", "The roofline is for fp32. Winograd's convolutions do fewer multiplications than are counted."]
    return lines
