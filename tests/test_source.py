"""What the package's source must not do: run what a file says, or read one in a way that could."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cascaded_diffusion

ROOT = Path(cascaded_diffusion.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

TORCH_LOAD = {"training/checkpoint.py: load_optimizer", "reading/torch_file.py: load_foreign_weights"}
"""The two functions that may call torch.load: of our own optimizer's state, and of weights that others made."""
NAMES_FAILURES = {"reading/torch_file.py"}
"""May import pickle, for the names of its exceptions."""
PROGRAMS = {"evaluation/extractors/exported.py: _load"}
"""Opens what its documentation calls a program."""

FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "pickle.dump",
    "pickle.dumps",
    "torch.jit.load",
    "torch.hub.load",
    "torch.package.PackageImporter",
    "np.fromfile",
    "np.genfromtxt",
    "np.loadtxt",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.safe_load",
    "json.load",
    "eval",
    "exec",
    "compile",
    "__import__",
    "ast.literal_eval",
    "os.system",
    "os.popen",
    "shelve.open",
    "marshal.load",
    "marshal.loads",
    "tarfile.open",
    "zipfile.ZipFile",
    "load_file",
    "safe_open",
}
ALLOWED = {
    ("zipfile.ZipFile", "reading/archive.py"),
    ("load_file", "reading/tensors.py"),
    ("tarfile.open", "data/shards.py"),  # goes through members as a stream and unpacks none to a file
    ("zipfile.ZipFile", "ui/outcome.py"),  # writes
    ("zipfile.ZipFile", "samples.py"),  # writes
}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression, or nothing."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, str, ast.Call]]:
    """Every call as (name of the function it stands in, name of what is called, the call)."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call):
            yield inside, dotted(node.func), node
        yield from calls(node, inside)


def keyword(call: ast.Call, name: str) -> object:
    """The constant given for a keyword, or ``None``."""
    found = next((k.value for k in call.keywords if k.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else None


def faults(source: str, name: str) -> list[str]:
    """What is wrong with a module's source."""
    found = []
    tree = ast.parse(source)
    for function, called, call in calls(tree):
        place = f"{name}: {function}"
        if called == "torch.load" and (place not in TORCH_LOAD or keyword(call, "weights_only") is not True):
            found.append(f"{place}: torch.load")
        if called == "np.load" and keyword(call, "allow_pickle") is not False:
            found.append(f"{place}: np.load without allow_pickle=False")
        if called == "torch.export.load" and place not in PROGRAMS:
            found.append(f"{place}: torch.export.load")
        if called.rpartition(".")[2] in ("extractall", "extract_all", "unpack_archive"):
            found.append(f"{place}: {called}")
        if called in FORBIDDEN and (called, name) not in ALLOWED:
            found.append(f"{place}: {called}")
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & set(names) and name not in NAMES_FAILURES:
            found.append(f"{name}: imports {', '.join(names)}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_or_read_without_checks(path: Path) -> None:
    assert faults(path.read_text(), path.relative_to(ROOT).as_posix()) == []


def test_torch_load_stands_in_exactly_the_named_functions() -> None:
    found = {
        f"{path.relative_to(ROOT).as_posix()}: {function}"
        for path in FILES
        for function, called, _ in calls(ast.parse(path.read_text()))
        if called == "torch.load"
    }
    assert found == TORCH_LOAD


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "def load_optimizer(path):\n    torch.load(path)",
        "def load_optimizer(path):\n    torch.load(path, weights_only=False)",
        "import pickle",
        "from pickle import load",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "class A:\n    def f(self):\n        return [yaml.load(x, yaml.Loader) for x in y]",
        "eval(text)",
        "torch.jit.load(path)",
        "load_file(path)",
        "with tarfile.open(path) as tar:\n    tar.extractall(folder)",
        "tar.extractall(folder)",
    ],
)
def test_faults_are_found(source: str) -> None:
    assert faults(source, "training/checkpoint.py")


def test_what_is_allowed_is_no_fault() -> None:
    source = "def load_optimizer(path):\n    torch.load(path, weights_only=True)\n    np.load(path, allow_pickle=False)"
    assert faults(source, "training/checkpoint.py") == []
