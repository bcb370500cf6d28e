"""Pick the real images that the package ships for ``cdm demo``: the first 400 of each class of Fashion-MNIST.

cdm prepare fashion-mnist DATA --resolutions 32
python tools/make_demo_images.py DATA
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.demo.run import IMAGES

PER_CLASS = 400


def main() -> None:
    """Write the file into the package."""
    split = PreparedData.open(Path(sys.argv[1])).split("train")
    labels = split.labels
    first = np.stack([np.flatnonzero(labels == label)[:PER_CLASS] for label in range(10)], axis=1).reshape(-1)
    np.savez_compressed(IMAGES, np.ascontiguousarray(split.images(32)[first]), labels[first])
    sys.stdout.write(f"{IMAGES}: {len(first)} images, {IMAGES.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
