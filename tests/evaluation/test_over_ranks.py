"""Every metric is the same whether one process has all the samples or two have a part each."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json, sys
from functools import partial
import numpy as np
import torch
from torch import distributed
from cascaded_diffusion.evaluation.cas import _Outcome, _shared, measure_accuracy
from cascaded_diffusion.evaluation.frechet import frechet_bootstrap, frechet_distance
from cascaded_diffusion.evaluation.inception_score import inception_score
from cascaded_diffusion.evaluation.kernel import kernel_distance
from cascaded_diffusion.evaluation.neighbours import memorisation
from cascaded_diffusion.evaluation.precision_recall import precision_recall
from cascaded_diffusion.evaluation.statistics import FeatureStatistics
from cascaded_diffusion.ranks import gather_rows, launched_ranks

torch.set_num_threads(1)
make = torch.Generator().manual_seed(0)
real, fake = torch.randn(301, 12, generator=make) + 5, torch.randn(203, 12, generator=make) * 1.2 + 5.3
labels = np.arange(203) % 7
held_out, logits = torch.randn(100, 12, generator=make) + 5, torch.randn(203, 7, generator=make)

folder, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if world > 1:
    # A file to meet at needs no free port.
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)

with launched_ranks(torch.device("cpu")) as ranks:
    assert ranks == (rank, world)
    share = slice(ranks.share(len(fake)).start, ranks.share(len(fake)).stop)
    mine = FeatureStatistics.empty(12)
    for batch in fake[share].split(32):
        mine = mine.add(batch)
    everybodys = mine.over_ranks()
    # A rank without any image must not disturb the others.
    lonely = (FeatureStatistics.of(fake) if ranks.is_main else FeatureStatistics.empty(12)).over_ranks()
    gathered, answers = gather_rows(fake[share]), gather_rows(logits[share])
    reference = FeatureStatistics.of(real)
    # Five classifiers' worth of work, in turn; each answers with its number.
    jobs = [partial(_Outcome, measure_accuracy(logits, labels), float(job)) for job in range(5)]
    scores = {
        "cas": [outcome.recognition for outcome in _shared(jobs)],
        "count": everybodys.count,
        "mean": everybodys.mean.tolist(),
        "variances": everybodys.covariance.diagonal().tolist(),
        "fd": frechet_distance(everybodys, reference),
        "fd of lonely": frechet_distance(lonely, reference),
        "fd error": frechet_bootstrap(gathered, reference, rounds=3, seed=0),
        "kid": kernel_distance(gathered, real, subsets=4, subset_size=50),
        "is": inception_score(answers),
        "pr": precision_recall(real, gathered),
        "nn": [value for value in memorisation(gathered, real, held_out) if not isinstance(value, str)],
    }
    with open(f"{folder}/{world}-{rank}.json", "w") as file:
        json.dump(scores, file)

if world > 1:
    distributed.destroy_process_group()
"""


def test_two_ranks_agree_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pair = [
        subprocess.Popen([sys.executable, str(script), str(tmp_path), str(rank), "2"], env=environment)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=300) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
            process.wait()
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path), "0", "1"])
    runpy.run_path(str(script))
    alone, *together = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert alone["count"] == 203
    assert alone["cas"] == [0, 1, 2, 3, 4]
    assert alone["fd of lonely"] == pytest.approx(alone["fd"], rel=1e-9)
    for scores in together:
        assert scores.keys() == alone.keys()
        for name, value in alone.items():
            assert scores[name] == pytest.approx(value, rel=1e-6), name
    assert together[0] == together[1]
