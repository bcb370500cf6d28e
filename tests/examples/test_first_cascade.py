"""The example notebook runs as it stands, and is stored without outputs."""

from __future__ import annotations

import os
import sys
import warnings
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


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of this interpreter, whatever kernels the user has, over Unix sockets: no port is opened."""
    source = str(Path(cascaded_diffusion.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the jupyter packages say of one another is not ours to mend
        notebook = _execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    words = [output.text for output in outputs if output.output_type == "stream"]
    assert words == []  # no warning reaches the reader
    shown = [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]
    assert "<th>parameters</th>" in shown[0]["text/html"]
    assert "16x16x1" in shown[0]["text/plain"]
    assert sum("image/png" in data for data in shown) == 7
    assert any("'images': 640" in data["text/plain"] for data in shown)
    assert not list(tmp_path.glob("tmp*/base8"))  # it clears up after itself


def _execute() -> Any:
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    specs = KernelSpecManager(ensure_native_kernel=True, kernel_dirs=[])
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs, transport="ipc", ip="kernel")
    assert kernel.kernel_spec is not None
    kernel.kernel_spec.argv[0] = sys.executable
    notebook = _read()
    NotebookClient(notebook, km=kernel, timeout=600).execute()
    return notebook
