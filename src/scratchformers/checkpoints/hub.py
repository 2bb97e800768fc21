"""A hub id, or OpenAI's name of a CLIP, turned into a local folder, through huggingface_hub and its cache.

All files of a load are of one commit, whatever happens to a branch meanwhile. What has once been fetched costs one
request (which commit is it?), and none offline. huggingface_hub is imported when an id is first met; it reads HF_HOME,
HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. OpenAI's files (openai.py) are fetched from where OpenAI has them, or from the
address in SCRATCHFORMERS_MIRROR, into HF_ASSETS_CACHE, by default `assets` beside the hub's cache.
"""

import contextlib
import errno
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratchformers.checkpoints import download, files, openai

COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = r"\w(?:[\w.-]*\w)?"
ID = re.compile(rf"(?!.*(?:--|\.\.))(?:{NAME}/)?{NAME}", re.ASCII)
# What ends like a file is a path, also where there is none.
FILES = (".safetensors", ".bin", ".json", ".txt", ".bpe", ".pt", ".pth", ".git")
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def is_id(source: str | Path) -> bool:
    """Whether this can be the name of a model on the hub: `name` or `owner/name`. A `Path` never is."""
    return isinstance(source, str) and len(source) <= 96 and bool(ID.fullmatch(source)) and not source.endswith(FILES)


def find(
    source: str | Path, *, revision: str | None = None, local_files_only: bool = False, weights: bool = True
) -> Path:
    """The file or folder that `source` stands for; of a hub id the folder of its commit in the cache, of OpenAI's name
    of a CLIP (`openai/ViT-B/32`) a folder with its file and the vocabulary.

    What exists here is meant before an id of the same name. Without `weights` only what makes a tokeniser is fetched.
    Raises OSError (FileNotFoundError, PermissionError, ConnectionError) with one sentence.
    """
    here = Path(source).exists()
    published = not here and isinstance(source, str) and openai.is_name(source)
    if published and revision is None:
        return _find_published(str(source), local_files_only, weights)
    if here or published or not is_id(source):
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} was given, and {source} is not of the hub: only a hub id has revisions."
            )
        return Path(source)
    revision = "main" if revision is None else revision
    if not re.fullmatch(r"(?!.*\.\.)\w[\w./+@=-]*", revision):
        raise ValueError(f"revision={revision!r} is none: expected a branch, a tag or a commit.")
    repo = _resolve(str(source), revision, local_files_only)
    config, of_open_clip = files.CONFIGS
    found = [
        repo.get(config) or repo.get(of_open_clip),
        *(repo.get(name) for name in (files.GENERATION, *files.ASSETS)),
    ]
    if not all(repo.get(name) for name in files.VOCABULARIES[0]):
        found += [repo.get(name) for name in files.VOCABULARIES[1]]
    if weights and (modules := repo.get(files.MODULES)):
        for name in files.sentence_files(modules.parent):
            repo.get(name)
    if weights and not _fetch_weights(repo):
        raise FileNotFoundError(repo.lacks(f"weights ({' or '.join(files.SINGLE)})"))
    if not (weights or any(found)):
        raise FileNotFoundError(repo.lacks("tokeniser"))
    repo.remember(moved=weights)
    return repo.folder / "snapshots" / repo.commit


def _find_published(name: str, local_files_only: bool, weights: bool) -> Path:
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import WeakFileLock, tqdm

    model = openai.published(name)
    folder = Path(constants.HF_ASSETS_CACHE) / "scratchformers" / "openai" / Path(model.name).stem
    for wanted in (model, openai.VOCABULARY) if weights else (openai.VOCABULARY,):
        if (folder / wanted.name).is_file():
            continue
        if local_files_only or constants.HF_HUB_OFFLINE:
            missing = f"its {wanted.name} is not in the cache at {folder}"
            raise FileNotFoundError(f"{_nothing_here(name)}, and offline {missing}: fetch it once, or name a file.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(folder / f"{wanted.name}.lock"):
                download.fetch(wanted, folder, client=get_session(), bar=tqdm)
        except OSError as error:
            if error.errno is None:  # a sentence already
                raise
            raise OSError(f"{wanted.name} could not be stored in {folder}: {error.strerror}.") from None
    return folder


def _fetch_weights(repo: "_Repo") -> bool:
    """One form of the weights, and all its shards. One that the hub has not is found missing when they are read."""
    for name in files.WEIGHTS:
        if path := repo.get(name):
            if name in files.OPEN_CLIP:
                repo.get(files.CONFIGS[1])
            shards = sorted(set(files.read_index(path).values())) if name.endswith(files.INDEX) else []
            missing = [shard for shard in shards if repo.get(shard) is None]
            return repo.online or not missing
    return False


@dataclass
class _Repo:
    """One commit of a repository, of which the cache holds a part and the hub, if it may be asked, the rest."""

    name: str
    revision: str
    commit: str
    online: bool

    @property
    def folder(self) -> Path:
        return _folder(self.name)

    def get(self, file: str) -> Path | None:
        """The file, fetched if need be. None: this commit has none, or it is not in the cache and we are offline."""
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import RemoteEntryNotFoundError

        known = try_to_load_from_cache(self.name, file, revision=self.commit)
        if isinstance(known, str):
            return Path(known)
        if known is not None or not self.online:  # not None: the cache knows that the commit has no such file
            return None
        try:
            path = Path(_asked(self, hf_hub_download, self.name, file, revision=self.commit))
        except RemoteEntryNotFoundError:
            return None
        self._check(file, path)
        return path

    def _check(self, file: str, path: Path) -> None:
        """huggingface_hub compares sizes only. A file whose bytes are not those the hub states is taken away again."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        blob = path.parent / path.readlink() if path.is_symlink() else path
        if path.is_symlink():  # the cache names its blobs by their ETags
            etag = blob.name
        else:  # and where links are not possible, as on many a Windows, it forgets them
            etag = _asked(self, get_hf_file_metadata, hf_hub_url(self.name, file, revision=self.commit)).etag
        if _digest(blob, etag) != etag:
            path.unlink()
            blob.unlink(missing_ok=True)
            raise OSError(
                f"{file} of {self.name} arrived damaged (its bytes have not the digest the hub states): retry."
            )

    def lacks(self, what: str) -> str:
        if self.online:
            return f"{self.name} on the hub holds no {what} that this reads."
        offline = f"{self.name} was not asked for on the hub (offline, or it could not be reached)"
        missing = f"its {what} is not in the cache at {self.folder.parent}"
        return f"{_nothing_here(self.name)}, {offline}, and {missing}: fetch it once, or name a folder."

    def remember(self, *, moved: bool) -> None:
        """Notes, once all is there, which commit the revision is, for the time when the hub cannot be asked.

        Not before: else a download cut short would hide the older commit that is complete.
        """
        note = self.folder / "refs" / self.revision
        known = note.read_text(encoding="utf-8") if note.is_file() else None
        if self.online and self.revision != self.commit and (known is None or (moved and known != self.commit)):
            with contextlib.suppress(OSError):  # a cache that many share may be read-only
                files.write_bytes(note, self.commit.encode())


def _folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("models--" + name.replace("/", "--"))


def _nothing_here(name: str) -> str:
    return f"There is no folder or file {name!r} here"


def _resolve(name: str, revision: str, local_files_only: bool) -> _Repo:
    """Asks which commit a revision is; where nobody answers, what it was the last time."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    repo = _Repo(name, revision, revision, online=not (local_files_only or constants.HF_HUB_OFFLINE))
    if COMMIT.fullmatch(revision):
        return repo
    note, commit, reason = repo.folder / "refs" / revision, None, None
    if repo.online:
        try:
            commit = get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision)).commit_hash
        except RemoteEntryNotFoundError as error:  # the answer to the question is there all the same
            commit = error.response.headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
        except RevisionNotFoundError as error:
            raise _sentence(error, repo) from None
        except Exception as error:  # the HTTP library's own errors have no common class with the rest
            reason = error
        if commit is None:
            repo.online = False
    if commit is None and note.is_file():
        commit = note.read_text(encoding="utf-8").strip()
    if commit is None and reason is not None:
        raise _sentence(reason, repo) from None
    if commit is None or not COMMIT.fullmatch(commit):
        raise FileNotFoundError(repo.lacks(f"commit for {revision!r}"))
    repo.commit = commit
    return repo


def _asked(repo: _Repo, question: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return question(*arguments, **options)
    except RemoteEntryNotFoundError:
        raise
    except Exception as error:  # the HTTP library's own errors have no common class with the rest
        raise _sentence(error, repo) from None


def _sentence(error: BaseException, repo: _Repo) -> OSError:
    """What a person can do about an answer of the hub, or about none."""
    from huggingface_hub import constants, errors

    hub, name = constants.ENDPOINT, repo.name
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(f"{name} is gated: ask for access at {hub}/{name}, then {LOG_IN}.")
    if isinstance(error, errors.RepositoryNotFoundError):
        unknown = f"{hub} shows no model of this name either"
        return FileNotFoundError(f"{_nothing_here(name)}, and {unknown}: check it or, if it is private, {LOG_IN}.")
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(f"{name} has no revision {repo.revision!r}: expected a branch, a tag or a commit.")
    if status in (401, 403):
        refuses = f"{hub} refuses access to {name} ({status})"
        return PermissionError(f"{_nothing_here(name)}, and {refuses}: {LOG_IN}, with a token that may read it.")
    if status is not None:
        return OSError(f"{hub} failed with status {status} when asked for {name}: try again later.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OSError(f"The disk of {repo.folder.parent} is full: make room for {name}, or set HF_HOME to another.")
    if isinstance(error, OSError) and "Consistency check failed" in said:
        return OSError(f"A file of {name} arrived cut short, and was not kept: try again.")
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(f"{name} could not be stored in {repo.folder.parent}: {said}")
    reached = f"{hub} could not be reached ({type(error).__name__}: {said})"
    cached = "pass local_files_only=True (or set HF_HUB_OFFLINE=1) to take what the cache has of it"
    return ConnectionError(f"{_nothing_here(name)}, and to fetch {name} {reached}: check the connection, or {cached}.")


def _digest(path: Path, etag: str | None) -> str | None:
    """The digest of the kind that this ETag is: sha256 for large files, git's sha1 for small; else the ETag itself."""
    if etag is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag):
        return etag
    start = hashlib.sha256() if len(etag) == 64 else hashlib.sha1(usedforsecurity=False)
    if len(etag) == 40:
        start.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: start).hexdigest()


def model_card(body: str, *, model_name: str, results: dict[str, Any] | None = None, **data: Any) -> str:
    """A card as the hub reads it: YAML, then the body. `results`: the data set's name under "dataset", what it is of
    under "type", and by the name of each metric its kind and value."""
    from huggingface_hub import EvalResult, ModelCardData

    found = dict(results or {})
    dataset, of = found.pop("dataset", None), found.pop("type", "text")
    evaluated = [
        EvalResult(
            task_type=data["pipeline_tag"], dataset_type=of, dataset_name=f"{dataset}, held out",
            metric_type=kind, metric_name=name, metric_value=round(value, 6),
        )
        for name, (kind, value) in found.items()
    ]  # fmt: skip
    named: dict[str, Any] = {"model_name": model_name, "eval_results": evaluated} if evaluated else {}
    head = ModelCardData(**data, **named)
    return f"---\n{head.to_yaml()}\n---\n\n{body}"
