"""The set-up: what the lock pins, what the Makefile installs, and in which order."""

import os
import re
import shutil
import subprocess
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
ACCELERATOR = re.compile(r"nvidia-|cuda-|triton|pytorch-triton")

DIRECT = [
    Requirement(text)
    for text in (
        *PROJECT["dependencies"],
        *(text for extra in PROJECT["optional-dependencies"].values() for text in extra),
        *PYPROJECT["build-system"]["requires"],
        "editables",  # hatchling asks for it when it builds an editable install
    )
    if Requirement(text).name != PROJECT["name"]  # an extra that contains another
]


def lock_lines() -> list[str]:
    """The lock's lines without comments and blank lines."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def torch_version() -> str:
    """The version of torch that the Makefile installs."""
    [found] = re.findall(r"^TORCH\s*:=\s*(\S+)$", MAKEFILE, flags=re.MULTILINE)
    return str(found)


def machine(python: str, system: str = "linux", processor: str = "x86_64") -> dict[str, str]:
    """What markers are judged by on one kind of machine, without extras."""
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": system,
        "platform_system": system.capitalize(),
        "platform_machine": processor,
        "os_name": "posix",
        "extra": "",
    }


def pins(environment: dict[str, str]) -> dict[str, Version]:
    """What the lock installs on one kind of machine, with torch as the Makefile adds it."""
    found = {"torch": Version(torch_version())}
    for requirement in map(Requirement, lock_lines()):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice for {environment}"
            [specifier] = requirement.specifier
            found[name] = Version(specifier.version)
    return found


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")


def dry_run(targets: str, tmp_path: Path) -> list[str]:
    """The commands that make would run for `targets` with no environment there yet."""
    command = ["make", "--dry-run", "--always-make", *targets.split(), f"VENV={tmp_path / 'venv'}"]
    # Only the path: a make above this one hands its own flags and variables down by the environment.
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_every_line_of_the_lock_is_one_exact_pin() -> None:
    # No index, link, path, URL, editable or hash: the lock has to install from whatever index there is.
    for line in lock_lines():
        assert re.fullmatch(r"[a-z0-9.-]+==[A-Za-z0-9.]+( ; .+)?", line), line


def test_the_lock_names_no_place_of_the_machine_that_made_it() -> None:
    text = LOCK.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.findall(r"(?<![\w.])/(?:\w+/)+", text)


def test_the_lock_leaves_torch_and_its_accelerator_libraries_out() -> None:
    names = [canonicalize_name(Requirement(line).name) for line in lock_lines()]
    assert [name for name in names if name == "torch" or ACCELERATOR.match(name)] == []


@pytest.mark.parametrize(("system", "processor"), SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_direct_dependency_is_pinned_within_its_range(python: str, system: str, processor: str) -> None:
    pinned = pins(machine(python, system, processor))
    for requirement in DIRECT:
        pin = pinned.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is not pinned; run `make lock`"
        assert pin in requirement.specifier, f"{requirement} excludes the pin {pin}; run `make lock`"


@cache
def requirements_of(name: str, pin: Version) -> tuple[Requirement, ...]:
    """What the pinned version of a package asks for; nothing where that version is not the installed one."""
    try:
        installed = Version(version(name))
    except PackageNotFoundError:
        return ()
    if installed.public != pin.public:
        return ()
    return tuple(map(Requirement, requires(name) or []))


@pytest.mark.parametrize("python", PYTHONS)
def test_the_pins_are_complete_and_agree_with_each_other(python: str) -> None:
    environment = machine(python)
    pinned = pins(environment)
    wrong = []
    for name, pin in pinned.items():
        for requirement in requirements_of(name, pin):
            if requirement.marker is not None and not requirement.marker.evaluate(environment):
                continue
            other = canonicalize_name(requirement.name)
            if ACCELERATOR.match(other):
                continue  # whichever this build of torch asks for
            if other not in pinned or pinned[other] not in requirement.specifier:
                wrong.append(f"{name} wants {requirement}; pinned: {pinned.get(other)}")
    assert wrong == []


def test_the_supported_pythons_are_those_of_the_makefile() -> None:
    candidates = (f"3.{minor}" for minor in range(9, 16))
    assert tuple(SpecifierSet(PROJECT["requires-python"]).filter(candidates)) == PYTHONS
    supported = re.search(r"not \((.+?)\) <= sys\.version_info\[:2\] <= \((.+?)\)", MAKEFILE)
    assert supported is not None
    assert [bound.replace(", ", ".") for bound in supported.groups()] == [PYTHONS[0], PYTHONS[-1]]


@needs_make
@pytest.mark.parametrize("target", ["demo", "test"])
def test_torch_is_installed_first_and_alone(target: str, tmp_path: Path) -> None:
    installs = [
        line.split("--no-input install", 1)[1].split()
        for line in dry_run(target, tmp_path)
        if "--no-input install" in line
    ]
    assert installs == [
        [f"torch=={torch_version()}"],
        ["--quiet", "-r", "requirements.lock"],
        ["--quiet", "--no-deps", "--no-build-isolation", "-e", "."],
    ]


@needs_make
def test_check_beside_test_runs_each_tool_once(tmp_path: Path) -> None:
    tools = [
        line.split("/venv/bin/", 1)[1].strip()
        for line in dry_run("check test", tmp_path)
        if "/venv/bin/" in line and "-m pip" not in line and not line.startswith("touch")
    ]
    assert tools == [
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "python -m pytest -n auto --dist loadfile",
    ]


def test_ci_runs_both_targets_in_one_make() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make check test\b", script.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_documented_version_of_torch_is_the_installed_one() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = [
        (document.name, found)
        for document in documents
        for found in re.findall(r"torch==([\w.]+)", document.read_text(encoding="utf-8"))
    ]
    assert [entry for entry in named if entry[1] != torch_version()] == []
