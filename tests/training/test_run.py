from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.data.prepare import prepare
from cascaded_diffusion.data.prepared import PreparedData
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training.run import MetricsLog, RunLock, differences, open_run, refuse_changed, take_over

Configure = Callable[..., StageConfig]


_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(UserError, match=r"another process is training"), RunLock(tmp_path):
        pass
    command = [sys.executable, "-c", _HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"another process is training in this run folder"), RunLock(tmp_path):
            pass
        other.kill()  # the lock must not outlive a process that could not let go of it
    with RunLock(tmp_path):
        pass


def test_a_place_without_locks_is_trained_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("cascaded_diffusion.files.fcntl.flock", refuse)
    with RunLock(tmp_path) as lock:
        (tmp_path / "config.json").touch()
        lock.check()


def test_a_new_run_records_its_settings(tmp_path: Path, base_config: Configure) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert open_run(run, base_config(), allow_changes=False).whole is None
    assert StageConfig.load(run / "config.json") == base_config()
    assert open_run(run, base_config(), allow_changes=False).whole is None


def test_changed_settings_are_refused_showing_each(tmp_path: Path, base_config: Configure) -> None:
    open_run(tmp_path, base_config(), allow_changes=False)
    changed = base_config(training={"learning_rate": 0.5, "seed": 3}, flip=True)
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, changed, allow_changes=False)
    line = str(caught.value)
    for words in ("training.learning_rate: 0.001 -> 0.5", "training.seed: 0 -> 3", "flip: false -> true"):
        assert words in line
    assert "--allow-changes" in line
    assert StageConfig.load(tmp_path / "config.json") == base_config()


def test_allowed_changes_are_recorded_once_they_are_taken_up(tmp_path: Path, base_config: Configure) -> None:
    open_run(tmp_path, base_config(), allow_changes=False)
    changed = base_config(training={"learning_rate": 0.5})
    opened = open_run(tmp_path, changed, allow_changes=True)
    assert StageConfig.load(tmp_path / "config.json") == base_config()
    take_over(tmp_path, changed, opened)
    assert StageConfig.load(tmp_path / "config.json") == changed
    open_run(tmp_path, changed, allow_changes=False)


def test_differences_reach_into_groups_and_both_ways() -> None:
    old = {"a": {"b": 1, "gone": True}, "c": [1, 2]}
    new = {"a": {"b": 2, "new": "x"}, "c": [1, 2]}
    assert differences(old, new) == ["a.b: 1 -> 2", "a.gone: true -> null", 'a.new: null -> "x"']


def _names(count: int, **changes: str) -> list[str]:
    names = [f"class {i}" for i in range(count)]
    for place, name in changes.items():
        names[int(place[1:])] = name
    return names


@pytest.mark.parametrize(
    "old, new, line",
    [
        ({"c": [1, 2]}, {"c": [1, 2, 4]}, "c: [1, 2] -> [1, 2, 4]"),
        ({"a": {"c": [[1, 2], [3]]}}, {"a": {"c": [[1, 2], [4]]}}, "a.c: [[1, 2], [3]] -> [[1, 2], [4]]"),
        ({"n": _names(900)}, {"n": _names(900, _7="cat")}, 'n.7: "class 7" -> "cat"'),
        ({"n": _names(9)}, {"n": _names(9, _7="a", _8="b")}, 'n.7: "class 7" -> "a" (and 1 more entries)'),
        ({"n": _names(900)}, {"n": _names(901)}, "n: 900 entries -> 901 entries"),
        ({"n": None}, {"n": _names(2)}, 'n: null -> ["class 0", "class 1"]'),
        ({"n": "x" * 500}, {"n": "y"}, 'n: "' + "x" * 76 + '... -> "y"'),
        ({"a": None}, {"a": {"b": 1, "c": None}}, "a.b: null -> 1"),
        ({"a": {"b": 1}}, {"a": None}, "a.b: 1 -> null"),
        ({"a": {}}, {"a": None}, "a: {} -> null"),
        ({"a": "Größe"}, {"a": "b"}, 'a: "Größe" -> "b"'),
        ({"a": True}, {"a": "true"}, 'a: true -> "true"'),
    ],
)
def test_a_difference_of_any_kind_is_told_in_one_short_line(old: Any, new: Any, line: str) -> None:
    assert differences(old, new) == [line]
    assert differences(old, old) == differences(new, new) == []
    assert len(line) < 200


def test_no_setting_of_a_stage_is_overlooked(base_config: Configure) -> None:
    """Every leaf of the recorded configuration, changed alone, is one difference that names it."""
    recorded = base_config(class_names=["a", "b", "c", "d"]).model_dump(mode="json")

    def leaves(value: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        if isinstance(value, dict):
            return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
        return [path]

    paths = leaves(recorded, ())
    assert len(paths) > 50
    for path in paths:
        changed = json.loads(json.dumps(recorded))
        group = changed
        for key in path[:-1]:
            group = group[key]
        group[path[-1]] = "another"
        (line,) = differences(recorded, changed)
        assert line.startswith(f"{'.'.join(path)}: ")
        assert line.endswith('-> "another"')


def test_many_differences_are_told_up_to_a_dozen(tmp_path: Path, base_config: Configure, sr_config: Configure) -> None:
    open_run(tmp_path, base_config(), allow_changes=False)
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, sr_config(), allow_changes=False)
    line = str(caught.value)
    assert 'name: "base8" -> "sr16"; resolution: 8 -> 16' in line
    assert "; and 6 more); pass --allow-changes" in line
    assert line.count(" -> ") == 12


def test_a_foreign_folder_is_refused(tmp_path: Path, base_config: Configure) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match=r"not a run folder and not empty \(it holds holiday\.jpg\)"):
        open_run(tmp_path, base_config(), allow_changes=True)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_stage_folder_is_not_a_run_folder(tmp_path: Path, base_config: Configure) -> None:
    (tmp_path / "config.json").write_text(json.dumps(base_config().model_dump(mode="json")))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"a stage folder \(it holds model\.safetensors\)"):
        open_run(tmp_path, base_config(), allow_changes=True)


def test_a_death_before_the_first_file_is_whole_does_not_block_the_run(tmp_path: Path, base_config: Configure) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.x1y2z3").write_text("{")
    assert open_run(tmp_path, base_config(), allow_changes=False).whole is None


@pytest.mark.parametrize("content", ["[]", "3", "{"])
def test_a_config_that_is_none_is_refused(content: str, tmp_path: Path, base_config: Configure) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        open_run(tmp_path, base_config(), allow_changes=True)


def test_a_resumed_log_drops_later_lines_and_half_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"images": images}) + "\n" for images in (10, 20, 30)]
    path.write_text("".join(lines) + '{"images": 2')
    log = MetricsLog(tmp_path, 20)
    assert path.read_text() == "".join(lines[:2])
    log.write({"images": 30, "loss": 0.5})
    assert [json.loads(line)["images"] for line in path.read_text().splitlines()] == [10, 20, 30]


def test_a_log_survives_lines_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"images": 10}\n[]\nnull\n{"loss": 1}\nxx\n{"images": 20}')
    MetricsLog(tmp_path, 50)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"images": 10}\n'


def test_a_lock_that_is_a_link_empties_nothing(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to("../precious")
    with pytest.raises(UserError, match=r"\.lock: a link or folder"), RunLock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "content"


@pytest.mark.parametrize("name", ["checkpoints", "snapshots", "previews"])
def test_folders_that_lie_elsewhere_are_neither_written_nor_emptied(
    name: str, tmp_path: Path, base_config: Configure
) -> None:
    other = tmp_path / "other/000000000008"
    other.mkdir(parents=True)
    run = tmp_path / "run"
    open_run(run, base_config(), allow_changes=False)
    (run / name).symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=rf"{name}: a link that leads out of"):
        open_run(run, base_config(), allow_changes=False)
    assert other.is_dir()


def test_a_lock_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"\.lock: a link or folder"), RunLock(tmp_path):
        pass


def test_a_log_of_anything_is_taken_up_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = b'{"images": 8}\n'
    odd = (
        b"\n",
        b"[]\n",
        b'{"images": "x"}\n',
        b'{"images": 99}\n',
        b"[" * 5000 + b"\n",
        b"\xff\n",
        b"9" * 5000 + b"\n",
    )
    path.write_bytes(good + b"".join(odd) + b"x" * 2**21 + b"\n" + good + b'{"images": 8}')
    MetricsLog(tmp_path, 16)
    assert path.read_bytes() == good + good


def test_files_elsewhere_are_neither_read_nor_changed(tmp_path: Path, base_config: Configure) -> None:
    run = tmp_path / "run"
    open_run(run, base_config(), allow_changes=False)
    for name in ("config.json", "metrics.jsonl"):
        (run / name).unlink(missing_ok=True)
        (tmp_path / "elsewhere").write_text("{}")
        (run / name).symlink_to("../elsewhere")
        with pytest.raises(UserError, match=rf"{name}: a link that leads out"):
            open_run(run, base_config(), allow_changes=True)
        assert (tmp_path / "elsewhere").read_text() == "{}"
        (run / name).unlink()
        (run / "config.json").write_text("{}")


def test_compressed_images_that_changed_are_refused_too(tmp_path: Path, base_config: Configure) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 136, 136, 3), np.uint8)
    np.savez(tmp_path / "four.npz", arr_0=pixels, arr_1=np.arange(4))
    prepare(str(tmp_path / "four.npz"), tmp_path / "data", resolutions=[8, 136], workers=0, compress=True)
    data = PreparedData.open(tmp_path / "data")
    refuse_changed(base_config(136), data)
    for name in ("images_136.pack", "images_136.offsets.npy"):
        path = tmp_path / "data/train" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{name}: not as it was prepared"):
            refuse_changed(base_config(136), data)
        refuse_changed(base_config(8), data)
        path.write_bytes(whole)
