"""The house's rules: who may import whom, and what may not be imported where."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "mlsecd"
FILES = sorted(ROOT.rglob("*.py"))

# Room -> the rooms and modules of the house that it may import. `app` and what stands around it see all.
MAY = {
    "records": {"records"},
    "errors": set(),
    "meters": set(),
    "kernels": {"errors", "kernels"},
    "windows": {"errors", "records", "kernels", "windows"},
    "detectors": {"errors", "records", "kernels", "windows", "detectors"},
    "jsonlines": {"errors", "records", "meters", "columns"},
    "columns": {"errors", "records", "meters"},
    "adapters": {"errors", "records", "adapters"},
    "taps": {"taps"},
    "sources": {"errors", "records", "meters", "jsonlines", "adapters", "sources", "taps"},
    "findings": {"errors", "records", "windows", "findings"},
    "sinks": {"errors", "records", "meters", "sinks", "version"},
    "engines": {"errors", "records", "meters", "jsonlines", "windows", "detectors", "findings", "engines", "sources"},
    "web": {"errors", "records", "meters", "sinks", "web"},
}
TAPS_MAY_USE = {"numpy", "re2"}  # where they are importable; what they speed up is the same without them
DETECTORS_MAY_NOT = {"time", "random", "subprocess", "structlog", "prometheus_client", "numba", "os", "socket"}
HEAVY = {"numba", "sklearn", "scipy", "pynvml", "prometheus_client"}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, imported at the top) of every import in a file."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    allowed = MAY.get(room(path))
    if allowed is None:
        return  # the wiring sees all
    for module, _ in imports(path):
        if module.startswith("mlsecd."):
            target = module.split(".")[1]
            assert target in allowed, f"{room(path)} must not import {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_detectors_are_pure(path: Path) -> None:
    if room(path) != "detectors":
        return
    for module, top in imports(path):
        name = module.split(".")[0]
        assert name not in DETECTORS_MAY_NOT, f"{path.name} imports {module}"
        assert name not in {"sklearn", "scipy"} or not top, f"{path.name} imports {module} at the top"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_things_are_imported_where_they_are_used(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    for module, top in imports(path):
        name = module.split(".")[0]
        if module.startswith(("numba.cuda", "numba_cuda")) or module == "numba.cuda":
            assert where == "kernels/cuda.py"
        if name == "numba":
            assert where.startswith("kernels/")
        if name in {"sklearn", "scipy"}:
            assert not top
        if name == "pynvml":
            assert where.startswith("sources/nvml")


def test_the_package_itself_imports_nothing() -> None:
    assert (ROOT / "__init__.py").read_text().strip() == ""


def test_taps_need_only_the_standard_library() -> None:
    import sys  # noqa: PLC0415

    for path in (ROOT / "taps").rglob("*.py"):
        for module, top in imports(path):
            name = module.split(".")[0]
            if name in TAPS_MAY_USE and not top:  # in a try
                continue
            assert name in sys.stdlib_module_names or module.startswith("mlsecd.taps"), f"{path.name}: {module}"


def test_taps_do_without_what_they_may_use() -> None:
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    modules = [f"mlsecd.taps.{path.stem}" for path in (ROOT / "taps").glob("*.py") if path.stem != "__init__"]
    without = f"import sys; sys.modules.update(dict.fromkeys({sorted(TAPS_MAY_USE)}))"
    script = f"{without}; import {', '.join(modules)}"
    subprocess.run([sys.executable, "-S", "-c", script], check=True, cwd=ROOT.parent, timeout=60)


def test_no_pickle_anywhere() -> None:
    for path in FILES:
        for module, _ in imports(path):
            assert module.split(".")[0] not in {"pickle", "shelve", "marshal", "dill", "joblib"}, path
