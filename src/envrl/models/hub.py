"""Models of the Hugging Face hub, with `huggingface_hub`: downloads resume, and its cache works without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envrl.errors import UserError
from envrl.files import check_room
from envrl.progress import Reporter, now_and_then

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model")
_LEFT_OUT = ("*/*", "consolidated*", "*.gguf")
"""Copies of the weights for other programs, beside those for transformers."""
_SECONDS = 10.0
"""Timeout of the hub's answer about a name."""


def config_file(identifier: str, revision: str = "") -> Path:
    """Return a model's config.json in the hub's cache, of a revision (empty: the newest), in a folder named by commit.

    The hub is asked unless the revision is a cached commit. Raises `UserError` if there is no such model, or the hub is
    out of reach and the cache has no copy.
    """
    there = cached_folder(identifier, revision)
    if there is not None and there.name == revision:
        return there / "config.json"
    hub = _hub()
    try:  # first a call that fails at once: a download is retried for half a minute
        hub.HfApi().model_info(identifier, revision=revision or None, timeout=_SECONDS)
        return Path(hub.hf_hub_download(identifier, "config.json", revision=revision or None, etag_timeout=_SECONDS))
    except _failures() as error:
        if there is None or _is_refused(error):
            raise _refusal(identifier, revision, error) from error
        return there / "config.json"


def hub_folder(identifier: str, revision: str) -> Path:
    """Return the folder of a model in the hub's cache, downloaded first if necessary; its name is the commit.

    Raises `UserError` if there is no such model, or the hub is out of reach and the cache is incomplete; `RunError` if
    the disk is full. An interrupted download is kept, and the same call resumes it.
    """
    commit, reporter = config_file(identifier, revision).parent.name, Reporter()
    there = cached_folder(identifier, commit)
    missing = missing_parts(there) if there else ["config.json"]
    if there is not None and not missing:
        return there
    try:
        _hub().HfApi().model_info(identifier, revision=commit, timeout=_SECONDS)  # see config_file
        folder = _snapshot(identifier, commit, _TEXTS, reporter)  # weights last: a folder with them is complete
        folder = _snapshot(identifier, commit, ("*.safetensors",), reporter)
        if not any(folder.glob("*.safetensors")):
            folder = _snapshot(identifier, commit, ("*.bin",), reporter)
    except _failures() as error:
        raise _refusal(identifier, revision, error, f"its copy in the cache lacks {missing[0]}") from error
    if missing := missing_parts(folder):
        raise UserError(
            f"'{identifier}' on the hub has no {missing[0]}: it is no causal language model in the form that "
            "transformers loads"
        )
    return folder


def cached_folder(identifier: str, revision: str = "") -> Path | None:
    """Return the folder of a model in the hub's cache, complete or not, or None if it is not there."""
    hub = _hub()
    try:
        path = hub.try_to_load_from_cache(identifier, "config.json", revision=revision or None)
    except (ValueError, OSError):  # not an id of the hub
        return None
    return Path(path).parent if isinstance(path, str) else None


def missing_parts(folder: Path) -> list[str]:
    """Return the files that `from_pretrained` needs and a folder lacks: configuration, weights, tokenizer."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    indices = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")][:1]
    if indices:
        try:
            parts = set(json.loads(indices[0].read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return [*missing, f"readable {indices[0].name}"]
        missing += sorted(name for name in parts if not (folder / name).is_file())
    elif not any(path.is_file() for kind in ("*.safetensors", "*.bin") for path in folder.glob(kind)):
        missing.append("model.safetensors")
    known = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
    return missing if any((folder / name).is_file() for name in known) else [*missing, "tokenizer.json"]


def _snapshot(identifier: str, commit: str, patterns: Sequence[str], reporter: Reporter) -> Path:
    hub = _hub()
    arguments = {
        "revision": commit,
        "allow_patterns": list(patterns),
        "ignore_patterns": list(_LEFT_OUT),
        "etag_timeout": _SECONDS,
    }
    plan = hub.snapshot_download(identifier, dry_run=True, **arguments)
    total = sum(file.file_size for file in plan if file.will_download)
    cache = Path(hub.constants.HF_HUB_CACHE)
    check_room(f"'{identifier}'", total, cache)
    blobs = cache / f"models--{identifier.replace('/', '--')}" / "blobs"
    with _quiet(hub), watched(identifier, blobs, total, reporter):
        return Path(hub.snapshot_download(identifier, **arguments))


@contextmanager
def watched(name: str, folder: Path, total: int, reporter: Reporter) -> Iterator[None]:
    """Show how the files of a folder grow by `total` bytes, while the block writes them."""
    before = _size(folder)
    with (
        reporter.phase(name, total / 1e6, unit="MB") as phase,
        now_and_then(lambda: phase.show(min(max(_size(folder) - before, 0), total) / 1e6)),
    ):
        yield
    if total >= 1e6:
        reporter.say(f"{name}: got {total / 1e6:,.1f} MB")


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # renamed in the meantime
            continue
    return total


@contextmanager
def _quiet(hub: Any) -> Iterator[None]:
    """Hide the hub's own progress bars, in favour of our progress line."""
    off = hub.utils.are_progress_bars_disabled()
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        if not off:
            hub.utils.enable_progress_bars()


def _hub() -> Any:
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.utils

    return huggingface_hub


def _failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of `huggingface_hub` for failed requests; its HTTP library's base is not an OSError."""
    from huggingface_hub import errors

    named = [getattr(errors, name, OSError) for name in ("HTTPError", "XetDownloadError", "RevisionResolutionError")]
    return (OSError, ValueError, *named)


def _is_refused(error: Exception) -> bool:
    """Return whether the hub answered that there is no such model or revision for this user."""
    from huggingface_hub import errors

    refusals = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
    return isinstance(_cause(error), refusals)


def _refusal(identifier: str, revision: str, error: Exception, cached: str = "the cache has no copy") -> Exception:
    from huggingface_hub import errors

    error = _cause(error)
    named = f"'{identifier}'" + (f" at revision '{revision}'" if revision else "")
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{named} is gated on the hub: accept its conditions on its page there, then run 'hf auth login' or set "
            "HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"'{identifier}' has no revision '{revision}' on the hub: name a commit, a tag or a branch")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"there is no folder {named} here, and no such model on the hub: mind the spelling; a private one needs "
            "'hf auth login' or HF_TOKEN"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return UserError(f"{named} on the hub has no config.json: it is no model that transformers loads")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{named} is no id of the hub: {' '.join(str(error).split())}")
    return UserError(
        f"there is no folder {named} here, {cached}, and the hub cannot be reached ({_reason(error)}): run "
        f"'envrl models get {identifier}' once with a network, or name a folder that holds the model"
    )


def _cause(error: Exception) -> Exception:
    """Return the original error behind `huggingface_hub`'s error that it cannot continue without the hub."""
    cause = error.__cause__
    return cause if isinstance(cause, Exception) and not getattr(error, "response", None) else error


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    error = _cause(error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    answer = getattr(error, "response", None)
    if answer is not None:
        return f"it answers {answer.status_code} {answer.reason_phrase}"
    message = " ".join(str(error).split())
    return (message or type(error).__name__)[:120]
