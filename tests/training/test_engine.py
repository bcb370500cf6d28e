"""What a process does alone, and how many images of its share it works on at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.training.batches import Batch
from cascaded_diffusion.training.engine import Engine
from cascaded_diffusion.training.trainer import Trainer
from cascaded_diffusion.training.window import Window

Configure = Callable[..., StageConfig]
CPU = torch.device("cpu")


def test_one_process_needs_no_engine() -> None:
    network = torch.nn.Linear(3, 2)
    engine = Engine(network, torch.device("cpu"))
    assert engine.call is network
    assert not engine.sharded
    assert not engine.sorts_buckets
    for last in (False, True):
        with engine.accumulating(last=last):
            network(torch.ones(1, 3)).sum().backward()
    # Twice a gradient of ones, for 6 weights and 2 biases.
    assert float(engine.clip(math.inf)) == pytest.approx(2 * math.sqrt(8))
    assert float(engine.clip(1.0)) == pytest.approx(2 * math.sqrt(8))
    assert float(engine.clip(1.0)) == pytest.approx(1, rel=1e-5)
    engine.close()
    assert engine.call is network


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """``tight(3)``: memory for 3 images at once; the list gets the number of images of every try."""

    def limit(most: int) -> list[int]:
        tried: list[int] = []
        honest = Trainer.losses

        def losses(trainer: Trainer, batch: Batch) -> Tensor:
            tried.append(len(batch.x0))
            if len(batch.x0) > most:
                raise torch.OutOfMemoryError("out of memory")
            return honest(trainer, batch)

        monkeypatch.setattr(Trainer, "losses", losses)
        return tried

    return limit


def _trained(trainer: Trainer) -> dict[str, Tensor]:
    trainer.warm_up()
    with trainer.feed(16, 0) as feed:
        for _ in range(2):
            trainer.step(feed, Window(CPU))
    return trainer.state.network.state_dict()


def test_auto_finds_what_fits(
    tight: Callable[[int], list[int]], base_config: Configure, colour_data: PreparedData
) -> None:
    """And the passes of the search leave no trace in the result."""
    wanted = _trained(Trainer(base_config(training={"batch_size": 8, "micro_batch": 2}), colour_data, CPU))
    tried = tight(3)
    trainer = Trainer(base_config(training={"batch_size": 8, "micro_batch": "auto"}), colour_data, CPU)
    found = _trained(trainer)
    assert tried == [8, 4, 2, *[2] * 8]
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_auto_takes_all_that_fits(
    tight: Callable[[int], list[int]], sr_config: Configure, colour_data: PreparedData
) -> None:
    tried = tight(100)
    _trained(Trainer(sr_config(training={"batch_size": 8, "micro_batch": "auto"}), colour_data, CPU))
    assert tried == [8, 8, 8]


def test_auto_gives_up_at_one_image(
    tight: Callable[[int], list[int]], base_config: Configure, colour_data: PreparedData
) -> None:
    tried = tight(0)
    trainer = Trainer(base_config(training={"batch_size": 6, "micro_batch": "auto"}), colour_data, CPU)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.warm_up()
    assert tried == [6, 3, 2, 1]
