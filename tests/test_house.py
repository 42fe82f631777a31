"""The rules of the house: import layers, what the planner may load, module names, packaging."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("schemas", "encoders", "curation", "planner", "training")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "encoders": {"encoders", "schemas"},
    "curation": {"curation", "encoders", "schemas"},
    "planner": {"planner", "schemas"},
    "training": {"training", "encoders", "schemas"},
}
HEAVY = {"torch", "ray", "nemo_curator", "transformers", "diffusers", "webdataset", "cv2", "onnxruntime", "av"}


def modules_of(part: str) -> list[Path]:
    found = sorted((ROOT / part).rglob("*.py"))
    assert found, f"part {part} has no modules"
    return found


def imported_packages(path: Path) -> Iterator[str]:
    """Top-level packages that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("part", PARTS)
def test_layers(part: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {package}"
        for path in modules_of(part)
        for package in imported_packages(path)
        if package in PARTS and package not in MAY_IMPORT[part]
    }
    assert not wrong


@pytest.mark.parametrize("part", PARTS)
def test_no_module_bears_a_standard_library_name(part: str) -> None:
    taken = [
        str(path.relative_to(ROOT))
        for path in [*modules_of(part), *(folder for folder in (ROOT / part).rglob("*") if folder.is_dir())]
        if path.stem in sys.stdlib_module_names and path.stem != "__init__"
    ]
    assert not taken


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def all_imports(part: str) -> str:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in modules_of(part)
    ]
    return "\n".join(f"import {name}" for name in names)


@pytest.mark.parametrize("part", ["planner", "schemas"])
def test_importing_every_module_pulls_in_nothing_heavy(part: str) -> None:
    assert not loaded_after(all_imports(part)) & HEAVY


@pytest.mark.parametrize("part", ["curation", "planner", "training"])
def test_command_lines_start_light(part: str) -> None:
    assert not loaded_after(f"import {part}.cli") & {"torch", "ray", "nemo_curator", "transformers", "diffusers"}


@pytest.mark.parametrize("script", ["curation/run.py", "training/train.py"])
def test_launcher_scripts_run_from_elsewhere(script: str, tmp_path: Path) -> None:
    """As a script, its own folder must not stay on the path, and --help needs no heavy import."""
    done = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout


def test_packaging_ships_the_parts_and_never_the_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["project"]["scripts"]) == {"reelyard-curate", "reelyard-plan", "reelyard-train"}
    assert set(project["project"]["optional-dependencies"]) == {
        "curation",
        "s3",
        "gs",
        "ray",
        "planner",
        "training",
        "optimizers",
        "dev",
    }
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(pattern.rstrip("*") for pattern in patterns) == sorted(PARTS)


def test_no_address_was_written_as_a_folder() -> None:
    """A path with a colon is an address that was taken for a local folder, and cannot be checked out on every system."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    if listed.returncode:
        pytest.skip("not a git checkout; tracked paths are not known here")
    assert listed.stdout
    assert not [path for path in listed.stdout.split("\0") if ":" in path]


UNSAFE = {("allow_pickle", True), ("weights_only", False), ("shell", True)}


def unsafe_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and argument of each call that would unpickle, run a shell, or load a state dict with keys missing."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        loads_state = isinstance(call.func, ast.Attribute) and call.func.attr == "load_state_dict"
        for keyword in call.keywords:
            if isinstance(keyword.value, ast.Constant):
                argument = (keyword.arg or "", keyword.value.value)
                if argument in UNSAFE or (loads_state and argument == ("strict", False)):
                    yield call.lineno, f"{argument[0]}={argument[1]}"


def test_unsafe_calls_are_seen() -> None:
    code = "np.load(f, allow_pickle=True)\nnet.load_state_dict(x, strict=False)\nzip(a, b, strict=False)\nrun(c, shell=True)"
    assert [line for line, _ in unsafe_calls(ast.parse(code))] == [1, 2, 4]


def test_no_pickles_or_unsafe_loads_in_the_source() -> None:
    bad = []
    for path in [*(path for part in PARTS for path in modules_of(part)), *sorted((ROOT / "examples").glob("*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        bad += [f"{path.relative_to(ROOT)}:{line} {argument}" for line, argument in unsafe_calls(tree)]
        if {"pickle", "dill", "cloudpickle"} & set(imported_packages(path)):
            bad.append(f"{path.relative_to(ROOT)} imports a pickle module")
    assert not bad
