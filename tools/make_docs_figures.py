"""Draw the figures of docs/method.md from the packaged cascade and the packaged images.

python tools/make_docs_figures.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from docs_site.figures import FIGURES, Material

FOLDER = Path(__file__).parents[1] / "docs" / "images" / "method"


def main() -> None:
    """Write every figure into the documentation, or into the folder named."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    material = Material()
    for name, draw in FIGURES.items():
        draw(material).save(folder / name)
        sys.stdout.write(f"{folder / name}: {(folder / name).stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
