"""Files: names for folders; atomic writing, beside its place and then renamed, never half there; tensors."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tunestack.errors import Problem, UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds.

    `path` may not be there yet, or be an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        mask = _umask()
        for inner in (temporary, *temporary.rglob("*")):  # some libraries write for the owner alone
            inner.chmod((0o777 if inner.is_dir() else 0o666) & ~mask)
        if path.is_dir():
            path.rmdir()
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


LONGEST_SLUG = 60
"""Characters of a folder's name; beyond, a digest stands for the rest."""


def slug(name: str) -> str:
    """A name as a folder's name: letters, digits, `_=.-`. May be empty; different names may have the same.

    >>> slug("lora r=8 target_modules=query,value")
    'lora-r=8-target_modules=query-value'
    """
    plain = re.sub(r"[^\w=.-]+", "-", name).strip("-.")
    if len(plain) <= LONGEST_SLUG:
        return plain
    return f"{plain[: LONGEST_SLUG - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be written in a folder (which need not exist yet), or None. Leaves nothing behind."""
    created: list[Path] = []
    try:
        places = [folder, *folder.parents]
        existing = next(path for path in places if path.exists())
        if not existing.is_dir():
            return f"{existing} is a file"
        created = places[: places.index(existing)]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
    finally:
        for path in created:
            with suppress(OSError):
                path.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_tensors(path: Path, framework: Literal["pt", "np"] = "pt") -> dict[str, Any]:
    """The tensors of a safetensors file, as torch's or NumPy's, by name.

    Raises UserError for a missing, damaged or pickled file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        pickled = sorted(file.name for kind in _PICKLED for file in path.parent.glob(kind))
        found = f"{pickled[0]} (pickle, which can run code)" if pickled else "no such file"
        fix = "Save it again as safetensors" + (", where you trust that file." if pickled else ".")
        raise UserError(Problem(str(path), "a safetensors file", found, fix))
    try:
        with safe_open(path, framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        fix = "The file is damaged: copy it again."
        raise UserError(Problem(str(path), "a whole safetensors file", str(error), fix)) from error


_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
