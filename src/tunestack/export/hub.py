"""Uploading to the Hugging Face Hub: who is asking first, then the folder, and errors in the user's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from tunestack.errors import Problem, UserError
from tunestack.hub import quiet_hub

_NETWORK_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""What the HTTP library that the Hub's client stands on raises for lost connections and the like."""


def check_access(name: str) -> str:
    """The full id of a repository, `user/name`, once the Hub knows who is asking.

    Raises UserError for a malformed name, without a login, and where the Hub cannot be reached.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        fix = "Write it as name, user/name or organisation/name."
        raise UserError(Problem("to-hub", "the name of a repository", str(error), fix)) from error
    if get_token() is None:
        found = "no token on this machine"
        fix = "Run `hf auth login`, or set HF_TOKEN, with a token that may write."
        raise UserError(Problem("to-hub", "a login to the Hugging Face Hub", found, fix))
    with _told_to_users(name):
        user = HfApi().whoami()["name"]
    return name if "/" in name else f"{user}/{name}"


def upload(folder: Path, repo_id: str, private: bool) -> str:
    """Create the repository where there is none yet, upload the folder as one commit; returns the address.

    private: refuse to upload into a public one. Raises UserError for what the Hub refuses.
    """
    api = HfApi()
    with _told_to_users(repo_id):
        address = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            fix = "Make it private in its settings, or choose another name."
            raise UserError(Problem(repo_id, "a private repository", "a public one of this name", fix))
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload from tunestack")
    return str(address)


@contextmanager
def _told_to_users(repo_id: str) -> Iterator[None]:
    try:
        with quiet_hub():
            yield
    except OfflineModeIsEnabled as error:
        raise _unreachable("HF_HUB_OFFLINE is set", "Unset it for this command.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        found = f"{status}: {error.server_message or str(error).splitlines()[0]}"
        if status == 401:
            fix = "The token is not valid: run `hf auth login`, or set HF_TOKEN anew."
        elif status in (403, 404):
            fix = "The token may not write there: use one that may, or choose another name."
        else:
            fix = "See https://status.huggingface.co, and try again."
        raise UserError(Problem(repo_id, "the Hub to accept the upload", found, fix)) from error
    except _NETWORK_ERROR as error:
        found = str(error) or type(error).__name__
        raise _unreachable(found, "Check the network and HF_ENDPOINT, and try again.") from error
    except ValueError as error:  # the Hub does not take the card's front matter
        found = " ".join(str(error).split())
        fix = "Check --license: it is the Hub's name of a licence, such as apache-2.0."
        raise UserError(Problem(repo_id, "a model card that the Hub accepts", found, fix)) from error


def _unreachable(found: str, fix: str) -> UserError:
    return UserError(Problem("to-hub", "the Hugging Face Hub to answer", found, fix))
