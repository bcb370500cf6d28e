"""Do the scores tell good images from bad ones? Real against real, noise, and shuffled labels on Fashion-MNIST.

    python benchmarks/score_sanity.py --data DATA --out OUT

Four sets of equally many 32x32 images are scored against the training images: real ones other than those that the score
trains its own comparison on, the same with their labels shuffled, and noise. A score can be trusted if real images have
a distance near 0 and a classification accuracy (CAS) like other real ones, noise is at chance and far away, and
shuffled labels are warned about.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from measuring import hardware

from cascaded_diffusion import CasConfig, PreparedData
from cascaded_diffusion.evaluation.evaluate import evaluate_images
from cascaded_diffusion.evaluation.features import load_extractor
from cascaded_diffusion.evaluation.scores import Origin, table, warnings_of, write_scores
from cascaded_diffusion.precision import pick_device


def sets(data: PreparedData, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of every set."""
    train, generator = data.split("train"), np.random.default_rng(0)
    # CAS compares with the first images of each class, so these are the last.
    share = count // (data.classes or 1)
    chosen = np.sort(np.concatenate([np.flatnonzero(train.labels == c)[-share:] for c in range(data.classes or 1)]))
    real, labels = np.asarray(train.images(32)[chosen]), train.labels[chosen]
    noise = generator.integers(0, 256, real.shape, dtype=np.uint8)
    return {"real": (real, labels), "shuffled": (real, generator.permutation(labels)), "noise": (noise, labels)}


def main() -> None:
    """Score every set and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder made by cdm prepare fashion-mnist")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    parser.add_argument("--num", type=int, default=20_000, help="images of each set (default 20,000)")
    parser.add_argument("--epochs", type=float, default=5, help="of each CAS classifier (default 5; cdm evaluate: 15)")
    parser.add_argument("--device")
    args = parser.parse_args()
    data, device = PreparedData.open(args.data), pick_device(args.device)
    extractor = load_extractor("fashion-mnist", device=device)
    print(hardware(device), flush=True)
    for name, (images, labels) in sets(data, args.num).items():
        scores = evaluate_images(
            images,
            labels,
            data,
            splits=["train"],
            metrics=["fd", "kid", "pr", "recognition", "cas"],
            extractor=extractor,
            provenance=Origin(source={"name": name}),
            cas=CasConfig(epochs=args.epochs),
            device=device,
        )
        write_scores(args.out / f"{name}.json", scores)
        print(f"\n{name}\n{table(scores)}", *warnings_of(scores), sep="\n", flush=True)


if __name__ == "__main__":
    main()
