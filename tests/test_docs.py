"""Documents are tested: every command line of ours exists with its options, every link leads somewhere, the README stays short."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"```(?:bash|console|sh)\n(.*?)```", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
LAUNCHED = {"curation/run.py": "reelyard-curate run", "training/train.py": "reelyard-train run"}


@cache
def application(name: str) -> object:
    """The command tree behind a console script."""
    from curation.cli import app as curate
    from planner.cli import app as plan
    from training.cli import app as train

    return get_command({"reelyard-curate": curate, "reelyard-plan": plan, "reelyard-train": train}[name])


def our_commands(page: Path) -> list[list[str]]:
    """Words of each line in a page's shell blocks that runs one of our command lines."""
    found = []
    for block in CODE.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            for launcher, command in LAUNCHED.items():
                if launcher in words:
                    words = command.split() + words[words.index(launcher) + 1 :]
            if words and words[0].startswith("reelyard-"):
                found.append(words)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in our_commands(page):
        command = application(words[0])
        rest = words[1:]
        while rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, f"{page.name}: `{' '.join(words)}`: no command {rest[0]!r}"
            command = command.commands[rest.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]
        used = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert used <= known | {"--help"}, f"{page.name}: `{' '.join(words)}`: unknown {sorted(used - known)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_in_shell_blocks(page: Path) -> None:
    """Else they would not be tested."""
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    other = [code for language, code in blocks if language not in ("bash", "console", "sh")]
    assert not [code for code in other if re.search(r"^(\$ )?(reelyard-|torchrun )", code, re.MULTILINE)]


def test_the_list_of_documents_names_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Documents")[2]
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert not pages - set(LINK.findall(text))


def test_the_page_of_training_names_every_module() -> None:
    """Modules of `training/`, and its folders."""
    table = (ROOT / "docs/training.md").read_text(encoding="utf-8").partition("## What is where")[2].partition("##")[0]
    named = set(re.findall(r"`(?:training/)?([a-z_]+(?:\.py|/))`", table))
    modules = {path.name for path in (ROOT / "training").glob("[a-z]*.py")}
    folders = {f"{path.parent.name}/" for path in (ROOT / "training").glob("*/__init__.py")}
    assert named == modules | folders


@pytest.mark.parametrize("folder", ["loading", "dit", "optimizing", "checkpoints", "control"])
def test_a_folder_of_training_names_its_modules(folder: str) -> None:
    init = (ROOT / "training" / folder / "__init__.py").read_text(encoding="utf-8")
    assert set(re.findall(r"[a-z_]+\.py", init)) == {
        path.name for path in (ROOT / "training" / folder).glob("[a-z]*.py")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not broken


def test_pages_that_the_code_names_exist() -> None:
    """In docstrings, comments, messages and configurations."""
    folders = ("schemas", "encoders", "curation", "planner", "training", "benchmarks", "examples", "configs", "tests")
    files = [path for folder in folders for kind in ("*.py", "*.yaml") for path in (ROOT / folder).rglob(kind)]
    named = {
        (path, name) for path in files for name in re.findall(r"\bdocs/[\w./-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    missing = sorted(f"{path.relative_to(ROOT)}: {name}" for path, name in named if not (ROOT / name).is_file())
    assert not missing


def test_readme_names_commands_and_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 900
    assert our_commands(ROOT / "README.md")
    for words in ("make demo", "make test", "ray job submit", "docs/flow.svg"):
        assert words in text


def test_every_document_is_linked_from_the_readme_or_a_page_it_links() -> None:
    reached = {ROOT / "README.md"}
    for _ in range(3):
        for page in list(reached):
            if page.suffix == ".md":
                links = LINK.findall(page.read_text(encoding="utf-8"))
                reached |= {(page.parent / link).resolve() for link in links if (page.parent / link).is_file()}
    assert set(PAGES) <= reached, sorted(str(page.relative_to(ROOT)) for page in set(PAGES) - reached)


def test_the_table_of_scores_is_the_schemas() -> None:
    """Name, meaning, unit and range of every score, in the order of the clips table."""
    from schemas.tables import SCORES

    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs/scores.md").read_text().splitlines()]
    told = [row[:4] for row in rows if row[0].startswith("`") and len(row) == 5]
    expected = []
    for name, facts in SCORES.items():
        span = "any" if facts.lowest is None else f"from {facts.lowest:g}"
        if facts.highest is not None:
            span = f"{facts.lowest:g} to {facts.highest:g}"
        expected.append([f"`{name}`", facts.meaning, facts.unit, span])
    assert told == expected
