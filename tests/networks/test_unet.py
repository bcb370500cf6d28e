"""The U-Net: every option, its inputs, its errors, and the sizes of the paper's networks."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.networks.cost import cost
from cascaded_diffusion.networks.unet import NetworkConfig, UNet

SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "heads": 2}


def build(config: dict[str, Any] | None = None, **arguments: Any) -> UNet:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"resolution": 8, "image_channels": 3, "out_channels": 6} | arguments
    return UNet(NetworkConfig(**(SMALL | (config or {}))), **settings)


M = TypeVar("M", bound=nn.Module)


def woken(network: M) -> M:
    """``network`` with its zero-initialised layers filled, so that everything acts on the answer."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def inputs(network: UNet, n: int = 2) -> dict[str, Tensor]:
    """Random inputs of the shapes that ``network`` wants, in channels_last."""
    torch.manual_seed(1)
    side = network.resolution
    values = {
        "x": torch.randn(n, network.image_channels, side, side).to(memory_format=torch.channels_last),
        "time": torch.rand(n) * 1000,
    }
    if network.classes is not None:
        values["labels"] = torch.arange(n) % network.classes
    if network.low_res_channels:
        values["low_res"] = torch.randn(n, network.low_res_channels, side // 2, side // 2)
    if network.has_s:
        values["s"] = torch.rand(n)
    return values


FULL = {"classes": 5, "low_res_channels": 3, "s_embedding": True}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"multipliers": (1, 2, 3), "attention": (8, 2), "blocks": (1, 2, 1)},
        {"multipliers": (1.5, 1), "heads": 1},
        {"channels": 20, "heads": 4},
        {"channels": 48, "head_channels": 16},
        {"channels": 7, "heads": 1},
        {"attention_order": "heads-first", "decoder_heads": 4},
        {"scale_shift": False, "dropout": 0.1},
        {"resample": "block"},
        {"resample": "plain"},
        {"patch": 2, "attention": (2,)},
        {"patch": 4, "multipliers": (1,), "attention": ()},
        {"attention": (), "middle_attention": False},
    ],
    ids=str,
)
def test_every_option_runs_and_every_parameter_learns(config: dict[str, Any]) -> None:
    network = woken(build(config, **FULL))
    out = network(**inputs(network))
    assert out.shape == (2, 6, 8, 8)
    out.square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_a_new_network_answers_exactly_zero() -> None:
    network = build(**FULL)
    assert not network(**inputs(network)).any()


def test_bfloat16_autocast() -> None:
    network = woken(build({"attention": (8, 4)}, **FULL)).eval()
    values = inputs(network)
    exact = network(**values)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(**values)
    rough.float().square().mean().backward()
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_all_of_it_is_traced_as_one_graph() -> None:
    network = woken(build({"patch": 2, "attention": (2,), "dropout": 0.1}, **FULL)).eval()
    values = inputs(network)
    traced = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(**values), network(**values))


@pytest.mark.parametrize("patch", [1, 2])
def test_channels_last_is_kept_from_end_to_end(patch: int) -> None:
    network = woken(build({"resample": "block", "attention": (4,), "multipliers": (1, 2), "patch": patch}, **FULL))
    others: list[str] = []

    def look(module: nn.Module, _inputs: object, out: object) -> None:
        if isinstance(out, Tensor) and out.ndim == 4 and not out.is_contiguous(memory_format=torch.channels_last):
            others.append(type(module).__name__)

    for module in network.modules():
        module.register_forward_hook(look)
    network(**inputs(network))
    assert others == []


def test_each_input_changes_the_answer_of_its_own_image_only() -> None:
    network = woken(build(**FULL)).eval()
    values = inputs(network)
    before = network(**values)
    changed = {
        "time": values["time"] + torch.tensor([0.0, 1.0]),
        "labels": torch.tensor([0, 4]),
        "s": values["s"] * torch.tensor([1.0, 0.5]),
        "low_res": values["low_res"] * torch.tensor([1.0, 0.5])[:, None, None, None],
    }
    for name, value in changed.items():
        after = network(**(values | {name: value}))
        torch.testing.assert_close(after[0], before[0])
        assert (after[1] - before[1]).abs().max() > 1e-4, name


def test_no_class_is_a_zero_embedding() -> None:
    network = woken(build(classes=5)).eval()
    values = inputs(network)
    null = network(**(values | {"labels": torch.tensor([-1, -1])}))
    nn.init.zeros_(network.get_parameter("class_embedding.table.weight"))
    torch.testing.assert_close(null, network(**values))


def test_patches_fold_neighbouring_pixels_and_back() -> None:
    network = build({"patch": 2, "attention": ()})
    assert network.stem.weight.shape[1] == 3 * 4
    # A head that only adds its bias shows where each of its channels lands: (out_channels, 2, 2) in this order.
    bias = network.get_parameter("head.conv.bias")
    with torch.no_grad():
        bias.copy_(torch.arange(24.0))
    out = network(**inputs(network))
    assert out[0, 0, :2, :2].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert out[0, 5, :2, :2].tolist() == [[20.0, 21.0], [22.0, 23.0]]


class _Seen(nn.Module):
    """Stands in for the stem and keeps what it was given."""

    def __init__(self, stem: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.x = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        out: Tensor = self.stem(x)
        return out


# A row 0 1 enlarged to four pixels, whose centres lie at -1/4, 1/4, 3/4 and 5/4 of the old grid; ends are repeated.
# The cubic with a = -3/4 has weights 225, 67, -27, -9 of 256 at the distances 1/4, 3/4, 5/4, 7/4.
ENLARGED = {
    "bilinear": [0.0, 0.25, 0.75, 1.0],
    "bicubic": [-27 / 256, (67 - 9) / 256, (225 - 27) / 256, 1 + 27 / 256],
}


@pytest.mark.parametrize("upsample", ["bilinear", "bicubic"])
def test_low_res_is_enlarged_about_pixel_centres_and_put_behind_x(upsample: str) -> None:
    network = build(
        {"multipliers": (1,), "attention": ()}, resolution=4, image_channels=1, low_res_channels=1, upsample=upsample
    )
    seen = _Seen(network.stem)
    network.stem = seen  # type: ignore[assignment]
    x = torch.randn(1, 1, 4, 4)
    network(x, torch.zeros(1), low_res=torch.tensor([[0.0, 1.0], [0.0, 1.0]])[None, None])
    assert torch.equal(seen.x[:, :1], x)
    torch.testing.assert_close(seen.x[0, 1], torch.tensor([ENLARGED[upsample]]).expand(4, 4))


def test_low_res_of_full_size_is_taken_as_it_is() -> None:
    network = build(low_res_channels=3)
    seen = _Seen(network.stem)
    network.stem = seen  # type: ignore[assignment]
    low_res = torch.randn(2, 3, 8, 8)
    network(**(inputs(network) | {"low_res": low_res}))
    torch.testing.assert_close(seen.x[:, 3:], low_res)


def test_attributes_that_callers_read() -> None:
    network = build(**FULL)
    read = (network.resolution, network.classes, network.low_res_channels, network.has_s, network.config.channels)
    assert read == (8, 5, 3, True, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "labels is missing: this network needs it (-1 means no class)"),
        ({"low_res": None}, "low_res is missing"),
        ({"s": None}, "s is missing"),
        ({"x": torch.zeros(2, 3, 8, 4)}, "x has shape (2, 3, 8, 4), expected (N, 3, 8, 8)"),
        ({"x": torch.zeros(2, 1, 8, 8)}, "x has shape"),
        ({"time": torch.zeros(3)}, "time has shape (3,), expected (2,)"),
        ({"time": torch.tensor(1.0)}, "time has shape (), expected (2,)"),
        ({"labels": torch.zeros(2, 1, dtype=torch.int64)}, "labels has shape"),
        ({"labels": torch.zeros(2)}, "labels are torch.float32, expected torch.int64"),
        ({"s": torch.zeros(1)}, "s has shape"),
        ({"low_res": torch.zeros(1, 3, 4, 4)}, "low_res has shape (1, 3, 4, 4), expected (2, 3, r, r) with r <= 8"),
        ({"low_res": torch.zeros(2, 3, 4, 2)}, "low_res has shape"),
        ({"low_res": torch.zeros(2, 3, 16, 16)}, "low_res has shape"),
        ({"low_res": torch.zeros(2, 1, 4, 4)}, "low_res has shape"),
    ],
)
def test_wrong_inputs_are_named(changes: dict[str, Any], message: str) -> None:
    network = build(**FULL)
    with pytest.raises(ValueError) as caught:
        network(**(inputs(network) | changes))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("labels", torch.zeros(2, dtype=torch.int64)), ("low_res", torch.zeros(2, 3, 4, 4)), ("s", torch.zeros(2))],
)
def test_inputs_the_network_was_built_without_are_refused(name: str, value: Tensor) -> None:
    network = build()
    with pytest.raises(ValueError, match=f"{name} was given, but this network was built without it"):
        network(**inputs(network), **{name: value})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"multipliers": (1, 1, 1, 1, 1)},
            "resolution: 8 cannot be halved into 5 levels .* multiples of 16 are allowed",
        ),
        ({"patch": 3}, "multiples of 6 are allowed"),
        ({"attention": (4, 16)}, r"network.attention: 16 is not the resolution of a level; \[8, 4\] are allowed"),
        ({"attention": (8,), "patch": 2}, r"network.attention: 8 .* \[4, 2\] are allowed"),
        ({"heads": 3}, "network.heads: 3 does not divide a level's 16 channels"),
        ({"decoder_heads": 3}, "network.decoder_heads: 3 does not divide"),
        ({"head_channels": 5}, "network.head_channels: 5 does not divide a level's 16 channels"),
        ({"blocks": (1, 2, 3)}, r"network.blocks: \[1, 2, 3\] has 3 entries"),
        ({"multipliers": (1, 0.1)}, "network.multipliers: .* leaves a level without channels"),
        (
            {"multipliers": (1, 64), "channels": 8192},
            "network.multipliers: .* a level of 524288 channels; at most 16384",
        ),
    ],
)
def test_shapes_that_cannot_be_built_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(config)


@pytest.mark.parametrize(
    "config",
    [{"multipliers": ()}, {"multipliers": (0,)}, {"blocks": 0}, {"dropout": 1.0}, {"resample": "nearest"}, {"head": 1}],
    ids=str,
)
def test_settings_out_of_range_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NetworkConfig(**(SMALL | config))


def test_config_survives_json() -> None:
    config = NetworkConfig(channels=48, multipliers=(1, 1.5, 2), blocks=(1, 2, 3), attention=(8,), head_channels=16)
    again = NetworkConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.widths == (48, 72, 96)


# CDM, appendix B; parameter counts of the same block worked out independently (conv resampling, resampling blocks).
PAPER = {
    "32": (792, 826, {"channels": 256, "multipliers": (1, 2, 3, 4), "blocks": 6, "attention": (8, 16), "heads": 4}, 6),
    "64": (718, 752, {"channels": 256, "multipliers": (1, 2, 3, 4), "blocks": 5, "attention": (8, 16), "heads": 4}, 6),
    "128": (
        536,
        575,
        {"channels": 128, "multipliers": (1, 2, 4, 8, 8), "blocks": 3, "attention": (16,), "heads": 1},
        3,
    ),
    "256": (
        589,
        634,
        {"channels": 128, "multipliers": (1, 2, 4, 4, 8, 8), "blocks": 3, "attention": (16,), "heads": 1},
        3,
    ),
}


@pytest.mark.parametrize("resolution", PAPER)
def test_networks_of_the_paper_have_its_sizes(resolution: str) -> None:
    conv, block, config, out_channels = PAPER[resolution]
    for resample, millions in (("conv", conv), ("block", block)):
        with torch.device("meta"):
            network = UNet(
                NetworkConfig(**config, resample=resample),
                resolution=int(resolution),
                image_channels=3,
                out_channels=out_channels,
                classes=1000,
                low_res_channels=0 if resolution == "32" else 3,
                s_embedding=resolution == "64",
            )
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)


def test_scaled_skips_shrink_what_the_decoder_sees() -> None:
    plain, scaled = woken(build()), woken(build({"scaled_skips": True}))
    scaled.load_state_dict(plain.state_dict())
    values = inputs(plain)
    assert (plain(**values) - scaled(**values)).abs().max() > 1e-3
    # Skips come last in the concatenation: their weights times 1/sqrt(2) do the same where no norm stands before them.
    seen: list[Tensor] = []
    level = scaled.decoder[0]
    level.units[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    h, skip = torch.ones(1, 16, 2, 2), 2 * torch.ones(1, 16, 2, 2)
    level(h, [skip[:, :8], skip], torch.zeros(1, 32))
    torch.testing.assert_close(seen[0][:, :16], h)
    torch.testing.assert_close(seen[0][:, 16:], skip / 2**0.5)


@pytest.mark.parametrize("resample", ["conv", "block"])
def test_up_after_conv_enlarges_last_and_costs_less(resample: str) -> None:
    late = build({"resample": resample, "up_after_conv": True})
    early = build({"resample": resample})
    assert {name: value.shape for name, value in late.state_dict().items()} == {
        name: value.shape for name, value in early.state_dict().items()
    }
    # A convolution before nearest enlargement leaves squares of 2x2 equal pixels in the branch.
    up = woken(late.decoder[0]).up
    signal = torch.zeros(1, 32)
    answer = up(torch.randn(1, 16, 4, 4), signal)
    assert answer.shape == (1, 16, 8, 8)
    if resample == "conv":
        torch.testing.assert_close(answer, answer[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3))
    flops = [cost(network).forward_flops for network in (late, early)]
    # One of 16 -> 16 channels, 3x3, at 4x4 in place of 8x8 pixels, two operations a multiply-add.
    assert flops[1] - flops[0] == 2 * 16 * 16 * 9 * (64 - 16)


def test_dropout_by_level() -> None:
    network = build({"dropout": (0.0, 0.3)})

    def rates(part: nn.Module) -> set[float]:
        return {module.p for module in part.modules() if isinstance(module, nn.Dropout)}

    assert [rates(level) for level in network.encoder] == [{0.0}, {0.3}]
    assert rates(network.middle) == {0.3}
    assert [rates(level) for level in network.decoder] == [{0.3}, {0.0}]
    with pytest.raises(UserError, match=r"network.dropout: \[0.1\] has 1 entries"):
        build({"dropout": (0.1,)})
    with pytest.raises(UserError, match=r"network.up_after_conv: true, but resample: plain"):
        build({"up_after_conv": True, "resample": "plain"})
    assert NetworkConfig.model_validate({**SMALL, "dropout": 0}).dropouts() == (0.0, 0.0)
    with pytest.raises(ValidationError):
        NetworkConfig(**SMALL, dropout=(0.1, 1.0))
