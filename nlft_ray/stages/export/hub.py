"""The exported folder on the Hugging Face hub, for `push_to_hub`: through the hub's own client, in one commit."""

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import MANIFEST, PLAN

_OWN_RECORD = {MANIFEST, PLAN}
"""Files that stay here: they name folders of this machine, and a model does without them."""


def push(folder: Folder, name: str, *, private: bool, message: str) -> str:
    """Upload a model's folder, its card included; what the hub has already is not sent again.

    Args:
        folder: complete, in a store or on this machine.
        name: of the repository, as `person/model`; without a person, the token's own.
        private: whether the repository is to be private, if it has to be made; one that is there stays what it is.
        message: of the commit.

    Returns:
        The address of the model's page.

    Raises:
        UserError: the hub refuses, or cannot be reached. The folder is as it was.
    """
    api, files = HfApi(), [file for file in folder.files("") if file not in _OWN_RECORD]
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        with folder.local_files(files) as local:
            api.upload_folder(
                repo_id=repository.repo_id, folder_path=local, allow_patterns=files, commit_message=message
            )
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # RuntimeError: a large file that did not arrive
        raise UserError(
            f"push_to_hub: {_why_not(name, error)} The model is complete in {folder}; the same command sends it again."
        ) from error
    return str(repository)


def _why_not(name: str, error: BaseException) -> str:
    """One line about an upload that failed, with what to do."""
    if isinstance(error, OfflineModeIsEnabled):
        return f"{name} cannot be sent while HF_HUB_OFFLINE is set: unset it."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return (
            f"the hub takes {name} from nobody unknown ({status or 'no token'}): set HF_TOKEN to a token that may "
            f"write, from {constants.ENDPOINT}/settings/tokens."
        )
    if status == 403:
        return (
            f"the hub refuses {name} (403): HF_TOKEN has no right to write there. Take a token that may write, or a "
            "name of your own."
        )
    reason = " ".join(str(error).split())[:200]
    if status is None and isinstance(error, HTTPError):
        return f"there is no way to {constants.ENDPOINT} ({reason}): mend the network."
    return f"the hub failed over {name}: {reason}"
