"""Promises about the tree itself."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for top in ("src", "flows", "tasks", "blocks", "deployments") for path in (ROOT / top).rglob("*.py")
)
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "src").rglob("*.py")
    if "migrations" not in path.parts and path.stem != "__main__"
)


@pytest.mark.slow
def test_importing_the_whole_library_does_nothing(tmp_path):
    code = (
        "import importlib, json, os, sys, threading; before = set(os.listdir('.'));"
        f"[importlib.import_module(m) for m in {MODULES!r}];"
        "import logging; print(json.dumps({'new': sorted(set(os.listdir('.')) - before),"
        "'threads': threading.active_count(), 'handlers': len(logging.getLogger().handlers),"
        "'loaded': [m for m in ('prefect', 'casatools', 'casatasks', 'ray', 'torch') if m in sys.modules]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"new": [], "threads": 1, "handlers": 0, "loaded": []}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_swallows_every_error_or_evaluates_text(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id.endswith("BaseException"))
            silent = all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
            assert not (broad and silent), f"{path}:{node.lineno} swallows everything"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}, f"{path}:{node.lineno} evaluates text"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("pickle", "load"), ("pickle", "loads"), ("yaml", "load")}


def test_rooms_have_no_vague_names():
    vague = {"utils", "helpers", "common", "manager", "misc", "util"}
    assert not [path for path in SOURCES if path.stem in vague or path.parent.name in vague]


def test_every_version_is_pinned_and_prefect_gets_what_it_bears():
    pins = dict(
        re.fullmatch(r"([^=]+)==(\S+)", line).groups()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    pins = {name.lower(): tuple(int(n) for n in re.findall(r"\d+", version)[:3]) for name, version in pins.items()}
    assert pins["prefect"] >= (3, 8, 8)
    assert (0, 139) <= pins["fastapi"] < (0, 150)
    assert (2, 0) <= pins["sqlalchemy"] < (2, 1)
    assert pins["torch"] == (2, 13, 0)


def test_ci_runs_what_the_readme_promises():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


def test_the_customers_packages_are_all_pinned():
    systems = ("prefect", "prefect-shell", "requests", "requests-kerberos", "sqlalchemy", "alembic", "ray")
    science = ("numpy", "scipy", "h5py", "torch", "pyuvdata", "casatasks", "zarr", "pytest")
    pinned = (ROOT / "constraints.txt").read_text().lower()
    assert not [name for name in systems + science if not re.search(rf"^{name}==", pinned, re.MULTILINE)]


@pytest.mark.parametrize("page", sorted((ROOT / "docs/explanations/decisions").glob("[0-9]*.md")), ids=lambda p: p.stem)
def test_a_decision_has_a_number_context_decision_and_consequences(page):
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+", page.stem)
    text = page.read_text().lower()
    assert all(f"## {part}" in text for part in ("context", "decision", "consequences"))


def test_news_fragments_are_named_by_their_kind():
    names = [p.name for p in (ROOT / "changes").iterdir() if p.name != "README.md"]
    assert not [n for n in names if not re.fullmatch(r"[a-z0-9-]+\.(added|changed|fixed|removed|datamodel)\.md", n)]


def test_yaml_of_the_platform_is_yaml():
    for path in [ROOT / "prefect.yaml", *(ROOT / "deployments").rglob("*.yaml")]:
        assert yaml.safe_load(path.read_text()) is not None, path


def test_a_benchmark_named_like_a_module_of_python_is_not_taken_for_it():
    benchmarks = ROOT / "benchmarks"
    code = "import sys, uuid, platform; sys.exit('benchmarks' in platform.__file__)"
    asked = f"import sys; sys.path.insert(0, {str(benchmarks)!r}); {code}"
    assert (benchmarks / "platform.py").is_file()
    subprocess.run([sys.executable, "-c", asked], check=True, timeout=60)
