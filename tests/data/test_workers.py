import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cascaded_diffusion.data.workers import WorkerPool
from cascaded_diffusion.errors import UserError


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_map_keeps_the_order(workers: int) -> None:
    with WorkerPool(workers) as pool:
        assert list(pool.map(abs, [-3, 2, -1, 0, *range(50)])) == [3, 2, 1, 0, *range(50)]
        assert list(pool.map(abs, [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_through_in_the_order_of_the_tasks(workers: int) -> None:
    done = []
    with WorkerPool(workers) as pool, pytest.raises(ValueError, match="'x'"):
        done.extend(pool.map(int, ["1", "2", "x", "3", "y"]))
    assert done == [1, 2]


def test_a_dead_worker_is_told_plainly() -> None:
    with WorkerPool(2) as pool, pytest.raises(RuntimeError, match="fewer workers"):
        list(pool.map(os._exit, [1, 1, 1]))


def test_numbers_of_workers() -> None:
    assert WorkerPool(None).workers == os.cpu_count()
    with pytest.raises(UserError, match=r"workers: -1; give 0 or more"):
        WorkerPool(-1)


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from cascaded_diffusion.data.workers import WorkerPool\n"
        "def pid(task):\n"
        "    time.sleep(0.1)\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    with WorkerPool(2) as pool:\n"
        "        print(*pool.map(pid, range(8)), flush=True)\n"
        "        time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = {int(pid) for pid in parent.stdout.readline().split()}
        assert workers
        assert os.getpid() not in workers
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
