"""The example notebook runs as it stands, and is stored without outputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cascaded_diffusion

NOTEBOOK = Path(__file__).parents[2] / "examples/first_cascade.ipynb"


def _read() -> Any:
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def _code() -> list[Any]:
    return [cell for cell in _read().cells if cell.cell_type == "code"]


def test_no_output_is_stored() -> None:
    assert len(_code()) >= 8
    assert all(cell.outputs == [] and cell.execution_count is None for cell in _code())
    assert NOTEBOOK.stat().st_size < 20_000


# In a process of its own, so that what the jupyter packages warn of and leave open is not the test's; in a kernel of
# this interpreter, whatever kernels the user has; over Unix sockets, so that no port is opened.
_EXECUTE = """
import sys
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

source, made = sys.argv[1:]
specs = KernelSpecManager(ensure_native_kernel=True, kernel_dirs=[])
kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs, transport="ipc", ip="kernel")
kernel.kernel_spec.argv[0] = sys.executable
notebook = nbformat.read(source, as_version=4)
NotebookClient(notebook, km=kernel, timeout=600).execute()
nbformat.write(notebook, made)
"""


@pytest.fixture
def executed(tmp_path: Path) -> Any:
    """The notebook with its outputs."""
    import nbformat

    package = str(Path(cascaded_diffusion.__file__).parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "TMPDIR": str(tmp_path),
        **{f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
    }
    command = [sys.executable, "-W", "ignore", "-c", _EXECUTE, str(NOTEBOOK), str(tmp_path / "made.ipynb")]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return nbformat.read(tmp_path / "made.ipynb", as_version=4)


@pytest.mark.slow
def test_it_runs(executed: Any, tmp_path: Path) -> None:
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if output.output_type == "stream"] == []  # no warning reaches the reader
    shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    assert "<th>parameters</th>" in shown[0]["text/html"]
    assert "16x16x1" in shown[0]["text/plain"]
    assert sum("image/png" in data for data in shown) == 7
    assert any("'images': 640" in data["text/plain"] for data in shown)
    assert not list(tmp_path.glob("tmp*/base8"))  # it clears up after itself
