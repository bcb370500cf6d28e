from __future__ import annotations

import gzip
import json
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascaded_diffusion.data import shards
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.data.shards import open_shards
from cascaded_diffusion.errors import UserError

Members = list[tuple[str, bytes]]
WriteTar = Callable[..., Path]
Contents = Callable[[Path], list[tuple[str, str, bytes]]]


def run(pattern: object, out: Path, notes: list[str] | None = None, **options: Any) -> PreparedData:
    note = (lambda _: None) if notes is None else notes.append
    prepare(f"wds:{pattern}", out, **{"resolutions": [4, 16], "workers": 0, "note": note, **options})
    return PreparedData.open(out)


def samples(images: list[tuple[str, str, bytes]]) -> Members:
    """Members of a shard whose ``cls`` is the class's name."""
    members: Members = []
    for i, (label, name, content) in enumerate(images):
        ending = {"jpeg": "jpg"}.get(kind := name.rpartition(".")[2], kind)
        members += [(f"x/{i:05}.{ending}", content), (f"x/{i:05}.cls", label.encode())]
    return members


def test_the_same_pictures_as_a_folder(
    class_folder: Path, contents: Contents, write_tar: WriteTar, same_arrays: Callable[..., bool], tmp_path: Path
) -> None:
    images = contents(class_folder)
    (tmp_path / "s").mkdir()
    for number, chosen in enumerate([images[:4], images[4:]]):
        write_tar(tmp_path / f"s/a-{number:03}.tar", samples(chosen))
    for i, options in enumerate([{}, {"val": 0.4}, {"limit": 5}, {"val": 0.4, "limit": 2}, {"workers": 2}]):
        prepare(str(class_folder), tmp_path / f"folder{i}", **{"resolutions": [4, 16], "workers": 0, **options})
        data = run(tmp_path / "s/a-{000..001}.tar", tmp_path / f"out{i}", **options)
        assert same_arrays(tmp_path / f"out{i}", tmp_path / f"folder{i}"), options
        folder = PreparedData.open(tmp_path / f"folder{i}").manifest
        same = {"source": folder.source, "request": folder.request}
        assert data.manifest.model_copy(update=same) == folder
    assert same_arrays(tmp_path / "out0", tmp_path / "folder0")
    assert not same_arrays(tmp_path / "out0", tmp_path / "folder1")


def test_packed_shards_and_globs(class_folder: Path, contents: Contents, write_tar: WriteTar, tmp_path: Path) -> None:
    members = samples(contents(class_folder))
    write_tar(tmp_path / "b-1.tar.gz", members, "w:gz")
    write_tar(tmp_path / "b-2.tar.gz", members[:4], "w:gz")
    data = run(tmp_path / "b-*.tar.gz", tmp_path / "out")
    assert data.manifest.counts.train == 11
    assert data.class_names == ["ant", "bee", "cat"]


def test_grey_pictures_stay_grey_until_one_is_not(
    picture: Callable[..., np.ndarray], write_tar: WriteTar, same_arrays: Callable[..., bool], tmp_path: Path
) -> None:
    (tmp_path / "grey").mkdir()
    for i in range(4):
        Image.fromarray(picture(i, channels=1)).save(tmp_path / f"grey/{i}.png")
    members = [(path.name, path.read_bytes()) for path in sorted((tmp_path / "grey").iterdir())]
    write_tar(tmp_path / "grey.tar", members)
    assert run(tmp_path / "grey.tar", tmp_path / "out").channels == 1
    prepare(str(tmp_path / "grey"), tmp_path / "folder", resolutions=[4, 16], workers=0)
    assert same_arrays(tmp_path / "out", tmp_path / "folder")

    Image.fromarray(picture(9)).save(tmp_path / "grey/9.png")
    write_tar(tmp_path / "mixed.tar", [*members, ("9.png", (tmp_path / "grey/9.png").read_bytes())])
    data = run(tmp_path / "mixed.tar", tmp_path / "mixed")
    assert (data.channels, data.class_names) == (3, None)
    prepare(str(tmp_path / "grey"), tmp_path / "mixed-folder", resolutions=[4, 16], workers=0)
    assert same_arrays(tmp_path / "mixed", tmp_path / "mixed-folder")


def test_classes_in_numbers_and_in_json(
    class_folder: Path, contents: Contents, write_tar: WriteTar, tmp_path: Path
) -> None:
    images = [content for _, _, content in contents(class_folder)][:4]
    kinds: dict[str, list[bytes]] = {
        "cls": [b"2\n", b"0", b"2", b"0"],
        "json": [json.dumps({"label": number, "height": 9}).encode() for number in (2, 0, 2, 0)],
    }
    for ending, labels in kinds.items():
        members = [
            (f"{i}.{kind}", content)
            for i, (image, label) in enumerate(zip(images, labels))
            for kind, content in (("PNG", image), (ending, label), ("txt", b"a caption"), ("seg.png", b"x"))
        ]
        write_tar(tmp_path / f"{ending}.tar", members)
        data = run(tmp_path / f"{ending}.tar", tmp_path / ending)
        assert data.class_names == ["0", "1", "2"]
        assert data.split("train").labels.tolist() == [2, 0, 2, 0]
    hidden = [
        (f"{i}.{kind}", content) for i, image in enumerate(images) for kind, content in (("png", image), ("cls", b"-1"))
    ]
    write_tar(tmp_path / "hidden.tar", hidden)
    assert run(tmp_path / "hidden.tar", tmp_path / "hidden").class_names is None


def test_shards_called_train_and_val_are_splits(
    class_folder: Path, contents: Contents, write_tar: WriteTar, tmp_path: Path
) -> None:
    images = contents(class_folder)
    for name, chosen in [("my-train-0", images[:3]), ("my-train-1", images[3:6]), ("my-val-0", images[6:])]:
        write_tar(tmp_path / f"{name}.tar", samples(chosen))
    notes: list[str] = []
    data = run(tmp_path / "my-*.tar", tmp_path / "out", notes)
    counts = data.manifest.counts
    assert (counts.train, counts.val) == (6, 3)
    assert data.class_names == ["ant", "bee", "cat"]
    assert "2 of train and 1 of val" in notes[0]
    with pytest.raises(UserError, match=r"val: 0.5; not for my-\*.tar, whose splits are the shards' own"):
        run(tmp_path / "my-*.tar", tmp_path / "other", val=0.5)
    assert run(tmp_path / "my-train-*.tar", tmp_path / "train").manifest.counts.val == 0
    assert run(tmp_path / "my-train-*.tar", tmp_path / "halves", val=0.5).manifest.counts.val > 0


def spoilt(images: list[tuple[str, str, bytes]]) -> Members:
    """Of nine samples, the second, fourth and sixth are not whole."""
    members = samples(images)
    members[2] = ("x/00001.png", members[2][1][:-300])
    members[6] = ("x/00003.txt", b"no image")
    members[11] = ("x/00005.json", b"{")
    return members


def test_bad_samples_are_named_or_left_out(
    class_folder: Path, contents: Contents, write_tar: WriteTar, tmp_path: Path
) -> None:
    images = contents(class_folder)
    shard = write_tar(tmp_path / "a.tar", spoilt(images))
    for workers in (0, 2):
        with pytest.raises(UserError) as error:
            run(shard, tmp_path / "out", workers=workers)
        assert f"{shard}: x/00001: unreadable image (" in str(error.value)
        assert "--skip-bad" in str(error.value)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".*"))
    notes: list[str] = []
    data = run(shard, tmp_path / "out", notes, skip_bad=True)
    assert [line.partition(": unread")[0].split(": ")[1] for line in data.manifest.skipped_files] == [
        "x/00001",
        "x/00003",
        "x/00005",
    ]
    assert "no image in it" in data.manifest.skipped_files[1]
    assert "its class cannot be read" in data.manifest.skipped_files[2]
    assert notes[0].startswith(f"skipped {shard}: x/00001: ")
    write_tar(tmp_path / "good.tar", [m for i in (0, 2, 4, 6, 7, 8) for m in samples(images)[2 * i : 2 * i + 2]])
    good = run(tmp_path / "good.tar", tmp_path / "good")
    np.testing.assert_array_equal(data.split("train").images(16), good.split("train").images(16))
    assert data.split("train").labels.tolist() == good.split("train").labels.tolist()
    limited = run(shard, tmp_path / "limited", skip_bad=True, limit=5)
    assert np.bincount(limited.split("train").labels).tolist() == [2, 2, 1]


def test_a_shard_that_is_cut_short(class_folder: Path, contents: Contents, write_tar: WriteTar, tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", samples(contents(class_folder)))
    content = whole.read_bytes()
    cuts = {
        "plain.tar": content[: len(content) // 2],
        "header.tar": content[:700],
        "packed.tar": gzip.compress(content)[:-2000],
        "text.tar": b"no archive",
        "empty.tar": b"",
    }
    for name, part in cuts.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(UserError) as error:
            run(tmp_path / name, tmp_path / "out")
        assert f"{tmp_path / name}: after " in str(error.value), name
        assert "the rest of the shard cannot be read" in str(error.value)
    data = run(tmp_path / "{plain,whole}.tar", tmp_path / "out", skip_bad=True)
    assert data.manifest.counts.train > 9
    assert data.manifest.skipped == 1


def test_absurd_members_are_refused(
    class_folder: Path, contents: Contents, write_tar: WriteTar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = samples(contents(class_folder))
    monkeypatch.setattr(shards, "MAX_MEMBER", 5000)
    shard = write_tar(tmp_path / "large.tar", [("big.png", bytes(5001)), ("big.cls", b"ant"), *images])
    with pytest.raises(UserError, match=r"large.tar: big: .*big.png has 5001 bytes; at most 5000 are read"):
        run(shard, tmp_path / "out")
    assert run(shard, tmp_path / "out", skip_bad=True).manifest.counts.train == 9
    shard = write_tar(tmp_path / "label.tar", [*images, ("big.png", images[0][1]), ("big.json", bytes(2**20 + 1))])
    with pytest.raises(UserError, match=r"label.tar: big: .*big.json has 1048577 bytes"):
        run(shard, tmp_path / "other")
    header = tarfile.TarInfo("a" * 90)
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**33
    (tmp_path / "header.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(UserError, match="a header of 8589934592 bytes"):
        run(tmp_path / "header.tar", tmp_path / "other")


def test_an_image_of_absurd_size_is_refused(write_tar: WriteTar, tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">2I5B", 20000, 20000, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    shard = write_tar(tmp_path / "bomb.tar", [("a.png", bomb + struct.pack(">I", 0) + b"IDAT" + bytes(99))])
    with pytest.raises(UserError, match=r"bomb.tar: a: unreadable image \(.*decompression bomb"):
        run(shard, tmp_path / "out")


def test_nothing_is_written_outside(
    class_folder: Path, contents: Contents, write_tar: WriteTar, tmp_path: Path
) -> None:
    image = contents(class_folder)[0][2]
    (tmp_path / "s").mkdir()
    shard = write_tar(tmp_path / "s/a.tar", [("../../evil.png", image), ("/abs.png", image)])
    assert run(shard, tmp_path / "out").manifest.counts.train == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pictures", "s"]


@pytest.mark.parametrize(
    "members, message",
    [
        ([("a.png", b"x"), ("a.jpg", b"x")], "a.tar: a: unreadable image (images of two kinds: jpg, png)"),
        ([("a.png", b"x"), ("a.png", b"x")], "a.tar: a.png: duplicate file name"),
        ([("a.cls", b"1")], "a.tar: a: unreadable image (no image in it)"),
        (
            [("a.txt", b"1"), ("b.c.png", b"1")],
            "a.tar: unreadable image (no KEY.jpg, KEY.jpeg, KEY.png, KEY.webp in it)",
        ),
        ([("a.png", b"x"), ("a.cls", b"\xff")], "a.tar: a: unreadable image (its class cannot be read"),
        ([("a.png", b"x"), ("a.cls", b"")], "its class '' is no number and no name"),
        ([("a.png", b"x"), ("a.json", b"[1]")], "a.tar: a: unreadable image (its class cannot be read"),
        (
            [("a.png", b"x"), ("a.json", b'{"label": ' + b"1" * 5000 + b"}")],
            "a.tar: a: unreadable image (its class cannot be read",
        ),
        ([("a.png", b"x"), ("a.json", b'{"label": 1.5}')], "its class 1.5 is no number and no name"),
    ],
)
def test_odd_shards(write_tar: WriteTar, tmp_path: Path, members: Members, message: str) -> None:
    with pytest.raises(UserError) as error:
        run(write_tar(tmp_path / "a.tar", members), tmp_path / "out")
    assert message in str(error.value)


@pytest.mark.parametrize("key", ["GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.realsize"])
def test_a_header_that_makes_no_sense(tmp_path: Path, key: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.png")
        member.pax_headers = {key: "a,b"}
        tar.addfile(member)
    with pytest.raises(UserError, match=r"a\.tar: .*the rest of the shard cannot be read"):
        run(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("size, words", [(2**62, "has 4611686018427387904 bytes; at most"), (2**33, "unexpected end")])
def test_a_member_that_is_said_to_be_endless(tmp_path: Path, size: int, words: str) -> None:
    """Told at once, not when all of it has been looked for."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("a.mp4")
        member.size = size
        tar.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
    started = time.process_time()
    with pytest.raises(UserError, match=rf"a\.tar: .*the rest of the shard cannot be read .*{words}"):
        run(tmp_path / "a.tar", tmp_path / "out")
    assert time.process_time() - started < 2


def test_classes_of_two_kinds(class_folder: Path, contents: Contents, write_tar: WriteTar, tmp_path: Path) -> None:
    image = contents(class_folder)[0][2]
    shard = write_tar(tmp_path / "a.tar", [("a.png", image), ("a.cls", b"7"), ("b.png", image), ("b.cls", b"cat")])
    with pytest.raises(UserError, match=r"a.tar: b: the class name 'cat', where .*a.tar: a has the class number 7"):
        run(shard, tmp_path / "out", skip_bad=True)


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("", "no pattern"),
        ("pipe:cat a.tar", "not files on this disk"),
        ("http://localhost/a.tar", "not files on this disk"),
        ("a.tar::b.tar", "not files on this disk"),
        ("none-{0..2}.tar", "no file none-0.tar; give files on this disk, such as wds:shards/train-{000..009}.tar"),
        ("none-*.tar", "no file none-*.tar"),
        ("folder", "folder is not a file"),
        ("a-{0..999999999}.tar", "more than 100000 shards"),
        ("a-{0..3.tar", "wds:a-{0..3.tar: "),
    ],
)
def test_patterns_that_name_no_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError) as error:
        open_shards(pattern, print)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_small_pictures(class_folder: Path, contents: Contents, write_tar: WriteTar, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(contents(class_folder)))
    with pytest.raises(UserError, match=r"a.tar: x/00000: 20x16 pixels, too small for resolution 18"):
        run(shard, tmp_path / "out", resolutions=[8, 18])
    data = run(shard, tmp_path / "out", resolutions=[8, 18], allow_upscale=True)
    assert (data.manifest.upscaled, data.split("train").images(18).shape) == (6, (9, 18, 18, 3))
    assert run(shard, tmp_path / "one", resolutions=[18], allow_upscale=True, limit=1).manifest.upscaled == 1


def test_the_same_again_does_nothing(
    class_folder: Path, contents: Contents, write_tar: WriteTar, tmp_path: Path
) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(contents(class_folder)))
    run(shard, tmp_path / "out")
    notes: list[str] = []
    run(shard, tmp_path / "out", notes)
    assert notes == [f"{tmp_path / 'out'}: already prepared, nothing to do"]
    write_tar(tmp_path / "a.tar", samples(contents(class_folder))[:8])
    with pytest.raises(UserError, match="a source with other files"):
        run(shard, tmp_path / "out")


STOPPED_RUN = """
import sys, time
from pathlib import Path
from cascaded_diffusion.data.prepare import prepare

def stop(what, done, total):
    if what == "reading" and done >= 20:
        print("in the middle", flush=True)
        time.sleep(60)

if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]), resolutions=[4, 16], workers=0, progress=stop)
"""


def test_killed_in_the_middle_and_run_again(
    mixed_folder: Path,
    contents: Contents,
    write_tar: WriteTar,
    same_arrays: Callable[..., bool],
    tmp_path: Path,
) -> None:
    members = samples(contents(mixed_folder))
    shard = write_tar(
        tmp_path / "a.tar",
        [
            (name.replace(".gif", ".png").replace(".bmp", ".png").replace(".tiff", ".png"), content)
            for name, content in members
        ],
    )
    (tmp_path / "script.py").write_text(STOPPED_RUN)
    out = tmp_path / "results/out"
    arguments = [sys.executable, tmp_path / "script.py", f"wds:{shard}", out]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert (tmp_path / "results/.out.preparing/train/images_16.npy").exists()
    run(shard, out)
    prepare(str(mixed_folder), tmp_path / "folder", resolutions=[4, 16], workers=0)
    assert same_arrays(out, tmp_path / "folder")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
