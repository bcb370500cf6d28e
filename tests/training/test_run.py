from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cascaded_diffusion.cascade.stage import StageConfig
from cascaded_diffusion.errors import UserError
from cascaded_diffusion.training.run import MetricsLog, differences, open_run, run_lock

Configure = Callable[..., StageConfig]


_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(UserError, match=r"another process is training"), run_lock(tmp_path):
        pass
    command = [sys.executable, "-c", _HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"another process is training in this run folder"), run_lock(tmp_path):
            pass
        other.kill()  # the lock must not outlive a process that could not let go of it
    with run_lock(tmp_path):
        pass


def test_a_new_run_records_its_settings(tmp_path: Path, base_config: Configure) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert open_run(run, base_config(), allow_changes=False) is None
    assert StageConfig.load(run / "config.json") == base_config()
    assert open_run(run, base_config(), allow_changes=False) is None


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


def test_allowed_changes_are_recorded(tmp_path: Path, base_config: Configure) -> None:
    open_run(tmp_path, base_config(), allow_changes=False)
    changed = base_config(training={"learning_rate": 0.5})
    open_run(tmp_path, changed, allow_changes=True)
    assert StageConfig.load(tmp_path / "config.json") == changed
    open_run(tmp_path, changed, allow_changes=False)


def test_differences_reach_into_groups_and_both_ways() -> None:
    old = {"a": {"b": 1, "gone": True}, "c": [1, 2]}
    new = {"a": {"b": 2, "new": "x"}, "c": [1, 2]}
    assert differences(old, new) == ["a.b: 1 -> 2", "a.gone: true -> null", 'a.new: null -> "x"']


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
    assert open_run(tmp_path, base_config(), allow_changes=False) is None


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
    with pytest.raises(UserError, match=r"\.lock: a link or folder"), run_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "content"


def test_a_lock_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"\.lock: a link or folder"), run_lock(tmp_path):
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
