"""Hub ids against a hub of our own, which cuts, stalls, truncates and lies; and checkpoints in shards."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import clip_reference
import open_clip
import pytest
import reference
import torch
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from safetensors.torch import load_file, save_file
from test_checkpoints import fails, folder, same, tensors_of  # noqa: F401 (a fixture)
from test_text import BPE, FROZEN
from transformers import AutoTokenizer, GPT2LMHeadModel

import scratchformers as sf
from scratchformers.checkpoints import download, files, hub, openai
from scratchformers.text import characters

DTYPE = torch.float64
LARGE = (".safetensors", ".bin")  # what the hub keeps by sha256 and hands out from another address


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """Commits of one repository, served as huggingface.co serves them. `faults` say how a file goes wrong."""

    def __init__(self, server):
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.repo, self.commits, self.branches = "some/model", {}, {}
        self.log, self.tokens = [], set()
        self.faults: dict = {}  # file: fault
        self.refusal = None  # (status, headers) of every answer
        self.after: dict = {}  # file: what happens once its GET was answered
        self.resumed = False  # whether the rest of a file was ever asked for
        self.release = threading.Event()

    def commit(self, contents, branch="main"):
        name = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        self.commits[name], self.branches[branch] = dict(contents), name
        return name

    def asked(self):
        """What was asked since the last time, as (method, file)."""
        log, self.log = self.log, []
        return log

    def etag(self, file, content):
        if self.faults.get(file) == "wrong digest":
            content += b"!"
        return sha256(content) if file.endswith(LARGE) else git_sha1(content)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, str(value))
        self.end_headers()

    def do_HEAD(self):
        self.serve("HEAD")

    def do_GET(self):
        self.serve("GET")

    def serve(self, method):
        state = self.server.hub
        if self.path.startswith("/old-name/"):
            return self.answer(
                307, {"Location": self.path.replace("/old-name/", f"/{state.repo}/"), "Content-Length": 0}
            )
        kind, commit, file = re.fullmatch(rf"/(?:{state.repo}/resolve|(cdn))/([^/]+)/(.+)", self.path).groups()
        state.log.append((method, file))
        state.tokens.add(self.headers.get("Authorization"))
        if state.refusal:
            return self.answer(*state.refusal)
        commit = state.branches.get(commit, commit)
        if commit not in state.commits:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if file not in state.commits[commit]:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = state.commits[commit][file]
        etag = f'"{state.etag(file, content)}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag, "Content-Length": len(content)}
        if file.endswith(LARGE) and not kind:
            linked = {
                "X-Linked-Etag": etag,
                "X-Linked-Size": len(content),
                "Location": f"{state.url}/cdn/{commit}/{file}",
            }
            return self.answer(302, {"X-Repo-Commit": commit, **linked, "Content-Length": 0})
        if method == "HEAD":
            return self.answer(200, headers)
        self.body(state.faults.get(file), content, headers)
        state.after.pop(file, lambda: None)()

    def body(self, fault, content, headers):
        state, half = self.server.hub, len(content) // 2
        if fault == "lies":
            content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        if fault == "truncated":
            content, headers["Content-Length"] = content[:half], half
        if fault == "fails":
            return self.answer(500)
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if start:
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            headers["Content-Length"] = len(content) - start
            state.resumed = True
        self.answer(206 if start else 200, headers)
        if fault == "slow":
            for i in range(0, len(content), len(content) // 40):
                self.wfile.write(content[i : i + len(content) // 40])
                time.sleep(0.02)
        elif fault in ("cut", "stalls"):
            state.faults = {}  # once: whole when asked for again, or for the rest
            self.wfile.write(content[:half])
            self.wfile.flush()
            if fault == "stalls":
                state.release.wait(60)
        else:
            self.wfile.write(content[start:])


class NoWaiting:
    """`time` for huggingface_hub, which waits up to eight seconds between two tries."""

    sleep = staticmethod(lambda _: None)

    def __getattr__(self, name):
        return getattr(time, name)


@pytest.fixture
def server():
    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):  # a client that hangs up is what some tests are about
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        server.hub = Hub(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.hub.release.set()
        server.shutdown()


@pytest.fixture
def contents(published):
    """What stands in the repository: the published folder, a tokeniser, and much that we have no use for."""
    named = {path.name: path.read_bytes() for path in published[1].iterdir()}
    tokens = {name: (FROZEN / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    return {**named, **tokens, "README.md": b"#", "tf_model.h5": b"x", "pytorch_model.bin": b"x"}


@pytest.fixture
def fake(server, contents, tmp_path, monkeypatch):
    """The hub, with one commit, and huggingface_hub turned to it with an empty cache."""
    fake = server.hub
    fake.commit(contents)
    for name, value in {
        "ENDPOINT": fake.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": fake.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DOWNLOAD_TIMEOUT": 5,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", NoWaiting())
    monkeypatch.chdir(tmp_path)
    return fake


def load(fake, **options):
    return sf.load(fake.repo, dtype=DTYPE, **options)


def refused(*said, kind=OSError, **options):
    with pytest.raises(kind) as caught:
        sf.load("some/model", **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message, message


def test_a_repository_with_open_clips_files_alone_is_loaded(fake, tmp_path):
    theirs, cfg = clip_reference.open_clip()
    place = clip_reference.save_open_clip(theirs, cfg, tmp_path / "theirs", safe=True, interpolation="bilinear")
    fake.commit({path.name: path.read_bytes() for path in place.iterdir()})
    found, expected = load(fake).state_dict(), sf.load(place, dtype=DTYPE).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert sf.load_preprocess(fake.repo).interpolation == "bilinear"


# --- what is asked for, and how often


def test_a_hub_id_is_its_folder(published, fake, contents):
    model = load(fake)
    same(published, model)
    assert model.generation.end == (reference.END,)
    assert model.assets["vocab.json"] == contents["vocab.json"]
    got = {file for method, file in fake.asked() if method == "GET"}
    assert got == {"config.json", "generation_config.json", "model.safetensors", "vocab.json", "merges.txt"}


def test_the_second_time_one_request_is_enough_and_offline_none(published, fake, monkeypatch):
    load(fake)
    fake.asked()
    same(published, load(fake))
    assert fake.asked() == [("HEAD", "config.json")]
    same(published, load(fake, local_files_only=True))
    same(published, load(fake, revision=fake.branches["main"]))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    same(published, load(fake))
    assert sf.load_tokenizer(fake.repo).encode("it's") == BPE.encode("it's")
    assert fake.asked() == []


def test_a_tokeniser_is_fetched_without_weights(fake):
    assert sf.load_tokenizer(fake.repo).encode("it's") == BPE.encode("it's")
    assert not any(file.endswith(LARGE) for _, file in fake.asked())
    sf.load_tokenizer(fake.repo)
    assert fake.asked() == [("HEAD", "config.json")]
    assert sf.load_tokenizer(fake.repo, local_files_only=True).encode("it's") == BPE.encode("it's")
    refused("its weights (model.safetensors or pytorch_model.bin) is not in the cache", local_files_only=True)


def test_a_repository_without_what_was_asked_for(fake, contents):
    fake.commit({"config.json": contents["config.json"]})
    refused("some/model on the hub holds no weights (model.safetensors or pytorch_model.bin)", kind=FileNotFoundError)
    fake.commit({"README.md": b"#"})
    with pytest.raises(FileNotFoundError, match="some/model on the hub holds no tokeniser"):
        sf.load_tokenizer("some/model")


def test_weights_without_a_config(published, fake, contents):
    fake.commit({"model.safetensors": contents["model.safetensors"]})
    config = sf.GPT2Config(vocab=97, length=53, dim=39, depth=5, heads=3)
    same(published, load(fake, config=config))
    fake.asked()
    same(published, load(fake, config=config, local_files_only=True))
    assert fake.asked() == []
    refused("no config.json", kind=ValueError)


@pytest.mark.parametrize("form", ["bin", "safetensors in shards", "bin in shards"])
def test_every_form_of_weights(published, fake, contents, tmp_path, form):
    del contents["model.safetensors"], contents["pytorch_model.bin"]
    write_form(published[0], tmp_path / "form", form)
    weights = {path.name: path.read_bytes() for path in (tmp_path / "form").iterdir() if path.name != "config.json"}
    fake.commit({**contents, **weights})
    same(published, load(fake))
    got = {file for method, file in fake.asked() if method == "GET"}
    assert weights.keys() <= got | {"generation_config.json"}
    same(published, load(fake))
    same(published, load(fake, local_files_only=True))
    assert fake.asked() == [("HEAD", "config.json")]


def test_branches_tags_and_commits(published, fake, contents):
    other = {**contents, "model.safetensors": zeros(contents)}
    commit = fake.commit(other, branch="refs/pr/1") and fake.commit(other, branch="v1.0")
    for revision in ("v1.0", commit):
        assert not load(fake, revision=revision).norm.weight.any()
    assert not load(fake, revision="v1.0", local_files_only=True).norm.weight.any()
    same(published, load(fake))


def zeros(contents, tmp="zeros.safetensors"):
    Path(tmp).write_bytes(contents["model.safetensors"])
    save_file({name: torch.zeros_like(value) for name, value in load_file(tmp).items()}, tmp)
    return Path(tmp).read_bytes()


def test_a_name_that_was_changed_still_loads(published, fake):
    same(published, sf.load("old-name", dtype=DTYPE))
    same(published, sf.load("old-name", dtype=DTYPE, local_files_only=True))


def test_a_cache_that_cannot_be_written_is_read(published, fake, monkeypatch):
    load(fake)
    shutil.rmtree("hub/models--some--model/refs")

    def read_only(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "write_bytes", read_only)
    same(published, load(fake))


# --- one load, one commit


def test_a_branch_that_moves_during_a_load_does_not_mix_two_commits(published, fake, contents):
    newer = {**contents, "model.safetensors": zeros(contents)}
    fake.after["config.json"] = lambda: fake.commit(newer)
    same(published, load(fake))
    assert not load(fake).norm.weight.any(), "and the next load has the newer one"


def test_a_branch_that_moves_between_model_and_tokeniser_mixes_neither(fake, contents):
    for name in ("vocab.json", "merges.txt"):
        del contents[name]
    first, second = ({**contents, **characters([text]).files} for text in ("abc", "xyz"))
    fake.commit(first)
    fake.after["model.safetensors"] = lambda: fake.commit(second)
    assert sf.Completer.from_pretrained(fake.repo).tokenizer.decode([0]) == "a"
    assert sf.Completer.from_pretrained(fake.repo, local_files_only=True).tokenizer.decode([0]) == "a"
    assert sf.Completer.from_pretrained(fake.repo, revision="main").tokenizer.decode([0]) == "x"


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_newer_commit_that_does_not_arrive_leaves_the_older_one_loadable(published, fake, contents, file):
    load(fake)
    config = json.loads(contents["config.json"]) | {"new": True}
    fake.commit({**contents, "config.json": json.dumps(config).encode(), "model.safetensors": zeros(contents)})
    fake.faults[file] = "lies"
    refused("arrived damaged")
    same(published, load(fake, local_files_only=True))
    fake.faults = {}
    assert not load(fake).norm.weight.any()


def test_a_tokeniser_of_a_newer_commit_does_not_hide_the_older_model(published, fake, contents):
    load(fake)
    fake.commit({**contents, "model.safetensors": zeros(contents)})
    sf.load_tokenizer(fake.repo)
    same(published, load(fake, local_files_only=True))


# --- what the line and the server do


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_slow_line_is_waited_for(published, fake, file):
    fake.faults[file] = "slow"
    same(published, load(fake))
    assert fake.asked().count(("GET", file)) == 1


@pytest.mark.parametrize("chunk", [100, constants.DOWNLOAD_CHUNK_SIZE])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_cut_download_goes_on(published, fake, monkeypatch, file, chunk):
    """From where it was cut, if huggingface_hub had written a chunk of it; else anew."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", chunk)
    fake.faults[file] = "cut"
    same(published, load(fake))
    assert fake.asked().count(("GET", file)) == 2
    assert fake.resumed == (chunk == 100)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("file", ["config.json", "merges.txt", "model.safetensors"])
@pytest.mark.parametrize("fault", ["truncated", "lies", "wrong digest", "fails"])
def test_a_file_that_is_not_what_the_hub_says_is_never_loaded(published, fake, monkeypatch, file, fault, links):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not links)
    fake.faults[file] = fault
    said = {"truncated": "arrived cut short", "fails": "failed with status 500"}
    refused("some/model", said.get(fault, f"{file} of some/model arrived damaged"))
    refused("not in the cache", local_files_only=True)
    assert file not in [path.name for path in Path("hub").rglob("*")], "nor a link to it"
    refused("some/model", said.get(fault, "arrived damaged"))
    fake.faults = {}
    same(published, load(fake))


def test_later_loads_hash_nothing(fake, monkeypatch):
    load(fake)
    monkeypatch.setattr(hub, "_digest", None)
    load(fake)
    load(fake, local_files_only=True)


GATED = (403, {"X-Error-Code": "GatedRepo"})
ABSENT = [(404, {"X-Error-Code": "RepoNotFound"}), (401, {"X-Error-Code": "RepoNotFound"})]


@pytest.mark.parametrize("refusal", ABSENT)
def test_a_name_that_does_not_exist(fake, refusal):
    fake.refusal = refusal
    here = "There is no folder or file 'some/model' here, and http://127.0.0.1"
    refused(here, "shows no model of this name either", "if it is private, log in", kind=FileNotFoundError)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (GATED, "some/model is gated: ask for access at"),
        (
            (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
            "refuses access to some/model (401)",
        ),
        ((401, {}), "There is no folder or file 'some/model' here, and http://127.0.0.1"),
        ((403, {}), "refuses access to some/model (403): log in with `hf auth login` or set HF_TOKEN"),
    ],
)
def test_what_one_may_not_read(fake, refusal, said):
    fake.refusal = refusal
    refused(said, kind=PermissionError)
    refused(said, kind=PermissionError, revision="v1")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_fails(published, fake, status):
    fake.refusal = (status, {})
    refused(f"failed with status {status} when asked for some/model: try again later")
    fake.refusal = None
    load(fake)
    fake.refusal = (status, {})
    same(published, load(fake))


def test_an_unknown_revision(fake):
    refused("some/model has no revision 'v9': expected a branch, a tag or a commit", revision="v9")
    load(fake)
    refused("has no revision 'v9'", revision="v9")
    refused("has no revision '" + "0" * 40, revision="0" * 40)
    fake.branches["v1"] = fake.branches["main"]
    load(fake, revision="v1")
    del fake.branches["v1"]
    refused("has no revision 'v1'", revision="v1")
    refused("not in the cache", revision="v9", local_files_only=True)


@pytest.mark.parametrize("revision", ["", "../../main", "a/../../b", "/main", "a b", "~1"])
def test_what_cannot_be_a_revision(fake, revision):
    refused(f"revision={revision!r} is none", kind=ValueError, revision=revision)
    assert fake.asked() == []


def test_offline_without_a_cache(fake, monkeypatch):
    said = ["There is no folder or file 'some/model' here", "not asked for on the hub", "not in the cache"]
    refused(*said, kind=FileNotFoundError, local_files_only=True)
    refused(*said, kind=FileNotFoundError, local_files_only=True, revision="0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(*said, kind=FileNotFoundError)
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        sf.load_tokenizer("some/model")
    assert fake.asked() == []


def test_a_server_that_is_gone(published, fake, server):
    load(fake)
    server.shutdown()
    server.server_close()
    same(published, load(fake))
    same(published, load(fake, revision=fake.branches["main"]))
    shutil.rmtree("hub")
    refused("There is no folder or file 'some/model' here", "could not be reached (ConnectError", kind=ConnectionError)


def test_a_server_that_goes_in_the_middle(published, fake, server):
    fake.after["config.json"] = server.server_close
    refused("could not be reached (", "check the connection", kind=ConnectionError)
    refused("not in the cache", local_files_only=True)


def test_a_server_that_is_no_hub(fake, contents):
    fake.refusal = (200, {"ETag": '"x"', "Content-Length": "3"})
    refused("some/model")


def test_a_full_disk(fake, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    refused("The disk of", "is full: make room for some/model")


def test_an_index_that_leads_out_of_the_folder_fetches_nothing_of_it(fake, contents):
    del contents["model.safetensors"]
    index = json.dumps({"weight_map": {"wte.weight": "../../../evil.safetensors"}}).encode()
    fake.commit({**contents, "model.safetensors.index.json": index})
    refused("names '../../../evil.safetensors' as a shard", kind=ValueError)
    assert not any("evil" in file for _, file in fake.asked())


def test_a_shard_that_the_hub_has_not(fake, contents):
    del contents["model.safetensors"]
    index = json.dumps({"weight_map": {"wte.weight": "model-1.safetensors"}}).encode()
    fake.commit({**contents, "model.safetensors.index.json": index})
    refused("names model-1.safetensors, which is not beside it", kind=FileNotFoundError)
    refused("not in the cache", local_files_only=True)


# --- in a process of its own: what comes from the environment, and what a kill leaves


def child(code, fake, **environment):
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "XDG_"))}
    settings = {"HF_ENDPOINT": fake.url, "HF_HOME": "home", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    code = f"import scratchformers as sf\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**ours, **settings, **environment}, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.unhooked
def test_the_environment_says_where_and_how(fake):
    code = "print(sf.load('some/model').config); sf.load_tokenizer('some/model')"
    first = child(code, fake, HF_TOKEN="hf_secret")
    assert first.communicate(timeout=120) is not None
    assert first.returncode == 0
    assert fake.tokens == {"Bearer hf_secret"}
    assert [*Path("home/hub").rglob("model.safetensors")]
    assert not Path("hub").exists()
    fake.asked()
    again = child(code, fake, HF_HUB_OFFLINE="1")
    _, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert fake.asked() == []


@pytest.mark.unhooked
def test_a_killed_download_leaves_nothing_that_loads(published, fake, monkeypatch):
    fake.faults["model.safetensors"] = "stalls"
    process = child("sf.load('some/model')", fake)
    deadline = time.monotonic() + 100
    while not any(path.stat().st_size for path in Path("home").rglob("*.incomplete")) and time.monotonic() < deadline:
        if Path("home").exists() and ("GET", "model.safetensors") in fake.log:
            time.sleep(0.3)
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    process.communicate(timeout=60)
    assert ("GET", "model.safetensors") in fake.asked(), "killed in the middle of it"
    fake.release.set()
    fake.faults = {}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path("home/hub").absolute()))
    refused("not in the cache", local_files_only=True)
    same(published, load(fake))


@pytest.mark.unhooked
def test_huggingface_hub_is_not_imported_before_an_id_is_met(published):
    code = "import scratchformers.tasks, sys; scratchformers.load(sys.argv[1])\n"
    code += "assert not {'huggingface_hub', 'httpx2', 'httpx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(published[1])], check=True, timeout=120)


# --- ids and paths


@pytest.mark.parametrize("source", ["gpt2", "openai-community/gpt2", "a/b.c_d-1", "0x", "_a/b"])
def test_an_id(source):
    assert hub.is_id(source)
    assert not hub.is_id(Path(source))


@pytest.mark.parametrize(
    "source",
    [
        "", ".", "..", "./gpt2", "/gpt2", "~/gpt2", "a/b/c", "a/", "/a/b", "../a", "a\\b", "C:a", "a b", "a--b", "a..b",
        "-a", "a/.b", "é", "x" * 97, "model.safetensors", "runs/model.bin", "gpt2.pt", "a/vocab.json", "a.git",
    ],
)  # fmt: skip
def test_a_path(source):
    assert not hub.is_id(source)


def test_what_is_no_id_is_never_asked_for(fake):
    for source in ("./some/model", "a/b/c", "some/model.safetensors", Path("some/model")):
        with pytest.raises(FileNotFoundError, match=r"does not exist \(a path: nothing is downloaded\)"):
            sf.load(source)
    assert fake.asked() == []


def test_a_folder_is_meant_before_an_id_of_its_name(published, fake, contents):
    fake.commit({**contents, "model.safetensors": zeros(contents)})
    shutil.copytree(published[1], "some/model")
    same(published, load(fake))
    refused("only a hub id has revisions", kind=ValueError, revision="main")
    assert fake.asked() == []


# --- shards


def write_form(model, path, form):
    """As savers of this form leave a checkpoint: transformers for safetensors, its older versions for bin."""
    if form == "safetensors in shards":
        model.save_pretrained(path, max_shard_size="100KB")
        return
    path.mkdir()
    (path / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
    tensors = model.state_dict()
    if form == "bin":
        torch.save(tensors, path / "pytorch_model.bin")
        return
    names = sorted(tensors)
    halves = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for shard, held in halves.items():
        torch.save({name: tensors[name] for name in held}, path / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: shard for shard in halves for name in halves[shard]}}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture
def sharded(published, tmp_path):
    write_form(published[0], tmp_path / "sharded", "safetensors in shards")
    assert len([*(tmp_path / "sharded").glob("model-*.safetensors")]) > 3
    return tmp_path / "sharded"


@pytest.mark.parametrize("form", ["safetensors in shards", "bin in shards"])
def test_shards_load(published, tmp_path, form):
    write_form(published[0], tmp_path / "form", form)
    same(published, sf.load(tmp_path / "form", dtype=DTYPE))
    (index,) = (tmp_path / "form").glob("*.index.json")
    config = sf.GPT2Config(vocab=97, length=53, dim=39, depth=5, heads=3)
    same(published, sf.load(index, config=config, dtype=DTYPE))


def test_shards_are_mapped(sharded):
    model = sf.load(sharded, dtype=DTYPE)
    if os.path.exists("/proc/self/maps"):  # Linux says so
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        assert all(str(path) in maps for path in sharded.glob("model-*.safetensors"))
    assert model.config.depth == 5


def test_a_whole_file_is_read_before_shards(published, sharded):
    for shard in sharded.glob("model-*.safetensors"):
        shard.write_bytes(b"")
    shutil.copy(published[1] / "model.safetensors", sharded)
    same(published, sf.load(sharded, dtype=DTYPE))


@pytest.mark.parametrize("form", ["safetensors in shards", "bin in shards"])
def test_saving_over_shards_leaves_none(published, tmp_path, form):
    path = tmp_path / "form"
    write_form(published[0], path, form)
    (path / "model-of-mine.safetensors").write_bytes(b"what no index names is not ours to remove")
    sf.load(path, dtype=DTYPE).save_pretrained(path)
    weights = sorted(file.name for file in path.iterdir() if "model" in file.name)
    assert weights == ["model-of-mine.safetensors", "model.safetensors"]
    same(published, sf.load(path, dtype=DTYPE))
    theirs = GPT2LMHeadModel.from_pretrained(path).state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in published[0].state_dict().items())


def test_saving_over_a_broken_index_removes_it_and_nothing_else(published, folder):  # noqa: F811
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "../outside.bin"}}', encoding="utf-8")
    outside = folder.parent / "outside.bin"
    outside.write_bytes(b"")
    sf.load(folder, dtype=DTYPE).save_pretrained(folder)
    assert outside.exists()
    assert not (folder / "pytorch_model.bin.index.json").exists()


def test_an_index_that_names_the_whole_file_does_not_take_it_along(published, folder):  # noqa: F811
    index = {"weight_map": dict.fromkeys(tensors_of(folder), "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    sf.load(folder, dtype=DTYPE).save_pretrained(folder)
    same(published, sf.load(folder, dtype=DTYPE))


def change_index(path, change):
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text(encoding="utf-8"))
    change(index["weight_map"])
    file.write_text(json.dumps(index), encoding="utf-8")


def test_a_missing_shard(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    fails(sharded, [f"names {shard.name}, which is not beside it: fetch it again"])


def test_a_tensor_that_the_index_promises_and_no_shard_holds(sharded):
    change_index(sharded, lambda places: places.update(surprise=places["transformer.wpe.weight"]))
    fails(sharded, ["do not belong together", "lacks surprise"])


def test_a_tensor_that_the_index_does_not_name(sharded):
    change_index(sharded, lambda places: places.pop("transformer.wpe.weight"))
    fails(sharded, ["holds transformer.wpe.weight, which the index places in no shard"])


def test_a_tensor_in_two_shards(sharded):
    places = json.loads((sharded / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    first, other = places["transformer.wpe.weight"], places["transformer.h.4.mlp.c_fc.weight"]
    assert first != other
    extra = {"transformer.wpe.weight": torch.zeros(53, 39, dtype=DTYPE)}
    save_file({**{name: value.clone() for name, value in load_file(sharded / other).items()}, **extra}, sharded / other)
    fails(sharded, [f"{other} holds transformer.wpe.weight, which the index places in {first}"])


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 3}', "{"])
def test_an_index_that_is_none(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    fails(sharded, ["model.safetensors.index.json"])


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/model.bin", "a/b.bin", "a\\b.bin", "C:a.bin", "x.index.json", "", "x", 3, None]
)
def test_a_shard_outside_the_folder_is_refused(sharded, shard):
    change_index(sharded, lambda places: places.update({"transformer.wpe.weight": shard}))
    fails(sharded, [f"names {shard!r} as a shard: expected a .safetensors or .bin file beside it"])


def test_a_truncated_shard(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-9])
    fails(sharded, [shard.name, "fetch it again"])


# --- OpenAI's names of a tokeniser's files


def test_openais_names_are_read_and_saved_as_transformers_reads_them(published, folder, tmp_path):  # noqa: F811
    shutil.copy(FROZEN / "vocab.json", folder / "encoder.json")
    shutil.copy(FROZEN / "merges.txt", folder / "vocab.bpe")
    for source in (folder, folder / "encoder.json", folder / "vocab.bpe", folder / "model.safetensors"):
        assert sf.load_tokenizer(source).encode("it's") == BPE.encode("it's")
    sf.load(folder).save_pretrained(tmp_path / "saved")
    assert sf.load_tokenizer(tmp_path / "saved").encode("it's") == BPE.encode("it's")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("it's")["input_ids"] == BPE.encode("it's")
    assert not (tmp_path / "saved" / "encoder.json").exists()
    sf.load(folder).save_pretrained(folder)
    assert not (folder / "encoder.json").exists(), "one pair of names in one folder"


def test_the_pair_that_was_named_is_read(tmp_path):
    other = {"a": 0, "b": 1}
    for vocab, merges in files.VOCABULARIES[:2]:
        (tmp_path / merges).write_text("#version: 0.2\n", encoding="utf-8")
        (tmp_path / vocab).write_text(json.dumps(other), encoding="utf-8")
        other = {"b": 0, "a": 1}
    assert sf.load_tokenizer(tmp_path).encode("a") == sf.load_tokenizer(tmp_path / "vocab.json").encode("a") == [0]
    assert sf.load_tokenizer(tmp_path / "encoder.json").encode("a") == [1]
    assert sf.load_tokenizer(tmp_path / "vocab.bpe").encode("a") == [1]


def test_openais_names_on_the_hub(fake, contents):
    names = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}
    fake.commit({names.get(name, name): content for name, content in contents.items()})
    assert sf.load_tokenizer(fake.repo).encode("it's") == BPE.encode("it's")


def test_the_index_is_no_tokeniser(sharded):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FROZEN / name, sharded / name)
    assert sf.load_tokenizer(sharded / "model.safetensors.index.json").encode("it's") == BPE.encode("it's")


# --- OpenAI's names


MODEL, MERGES = "ViT-B-32.pt", files.CLIP_MERGES
NAME = "openai/ViT-B/32"


class Mirror:
    """OpenAI's addresses. `faults` say how the next answers for a file go wrong, one after the other."""

    def __init__(self, url):
        self.url, self.contents, self.log = url, {}, []
        self.faults: dict = {}  # file: list of faults
        self.release = threading.Event()

    def asked(self):
        """What was asked since the last time, as (file, first byte)."""
        log, self.log = self.log, []
        return log


class Files(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        mirror, file = self.server.mirror, self.path.rpartition("/")[2]
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        mirror.log.append((file, start))
        fault = (mirror.faults.get(file) or [None]).pop(0)
        content = mirror.contents.get(self.path, b"")
        if fault == "down":
            return self.connection.close()
        if isinstance(fault, int) or not content:
            return self.answer(fault or 404, b"an error")
        if fault == "moved":
            return self.answer(302, b"", Location=mirror.url + self.path)
        if fault == "lies":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault == "ignores":
            start = 0
        if fault == "earlier":
            start -= 1000
        if start >= len(content):
            return self.answer(416, b"")
        said = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.answer(206 if start else 200, content[start:], fault, **said)

    def answer(self, status, body, fault=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        part = len(body) * 2 // 5 if fault in ("cut", "stalls", "waits") else len(body)
        self.wfile.write(body[:part])
        self.wfile.flush()
        if fault in ("stalls", "waits"):
            self.server.mirror.release.wait(60)
        if fault == "waits":
            self.wfile.write(body[part:])


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """Files of our own at OpenAI's addresses, and an empty cache."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    with Server(("127.0.0.1", 0), Files) as server:
        server.mirror = mirror = Mirror(f"http://127.0.0.1:{server.server_port}")
        mirror.server = server
        monkeypatch.setenv("SCRATCHFORMERS_MIRROR", mirror.url + "/")
        made = {name: made_by_us(mirror, each, name.encode() * 3000) for name, each in openai.MODELS.items()}
        monkeypatch.setattr(openai, "MODELS", made)
        monkeypatch.setattr(openai, "VOCABULARY", made_by_us(mirror, openai.VOCABULARY, b"merges" * 3000))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield mirror
        mirror.release.set()
        server.shutdown()


def made_by_us(mirror, published, content):
    mirror.contents[re.sub(r"^https://[^/]+", "", published.url)] = content
    return dataclasses.replace(published, sha256=sha256(content))


WHOLE = b"ViT-B/32" * 3000


def complete(place):
    """Both files, and nothing half-written."""
    assert {path.name for path in place.iterdir() if path.suffix != ".lock"} == {MODEL, MERGES}
    assert (place / MODEL).read_bytes() == WHOLE
    assert (place / MERGES).read_bytes() == b"merges" * 3000
    return place


def unusable(*said, kind=OSError, **options):
    with pytest.raises(kind) as caught:
        hub.find(NAME, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message, message
    with pytest.raises(FileNotFoundError, match=f"There is no folder or file '{NAME}' here, and offline its"):
        hub.find(NAME, local_files_only=True)


CACHED = Path("assets/scratchformers/openai/ViT-B-32")


def part_of():
    return CACHED / f"{MODEL}.part"


def test_the_published_addresses_and_digests_are_those_that_open_clip_knows():
    for name, published in openai.MODELS.items():
        theirs = name.replace("/", "-").replace("@336px", "-336")
        assert published.url == open_clip.get_pretrained_cfg(theirs, "openai")["url"]
        assert published.sha256 == published.url.split("/")[-2]
    vocabulary = Path(open_clip.__file__).parent / openai.VOCABULARY.name
    assert sha256(vocabulary.read_bytes()) == openai.VOCABULARY.sha256


def test_openais_name_is_a_folder_in_the_cache(mirror, monkeypatch):
    place = complete(hub.find(NAME))
    assert place == CACHED.absolute()
    assert sorted(mirror.asked()) == [(MODEL, 0), (MERGES, 0)]
    assert files.find_weights(place) == place / MODEL
    assert files.find_vocabulary(place) == (place / MERGES,)
    assert hub.find(NAME) == hub.find(NAME, local_files_only=True) == place
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.find(NAME) == place
    assert mirror.asked() == []


def as_torchscript(tensors, path):
    """These tensors as OpenAI's files have them: in modules by their dotted names."""
    root = torch.nn.Module()
    for name, value in tensors.items():
        *parts, last = name.split(".")
        module = root
        for part in parts:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, value)
    torch.jit.script(root).save(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's
def test_openais_name_is_preparation_tokeniser_and_model(mirror, tmp_path):
    held = clip_reference.openai(clip_reference.open_clip(quick=True)[0])
    halves = {name: value.half() if value.is_floating_point() else value for name, value in held.items()}
    as_torchscript(halves, tmp_path / MODEL)
    torch.save(halves, tmp_path / "ViT.pt")
    openai.MODELS["ViT-B/32"] = made_by_us(mirror, openai.MODELS["ViT-B/32"], (tmp_path / MODEL).read_bytes())
    openai.VOCABULARY = made_by_us(mirror, openai.VOCABULARY, (Path(open_clip.__file__).parent / MERGES).read_bytes())
    assert sf.load_tokenizer(NAME).encode("a photo") == [49406, 320, 1125, 49407]
    assert sf.load_preprocess(NAME) == sf.load_preprocess(tmp_path / "ViT.pt")
    assert sorted(mirror.asked()) == [(MODEL, 0), (MERGES, 0)]
    found, expected = sf.load(NAME, local_files_only=True).state_dict(), sf.load(tmp_path / "ViT.pt").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_later_loads_of_openais_files_hash_nothing(mirror, monkeypatch):
    hub.find(NAME)
    monkeypatch.setattr(download, "hashlib", None)
    hub.find(NAME)


@pytest.mark.parametrize("name", ["ViT-B/16", "ViT-L/14", "ViT-L/14@336px"])
def test_every_name_has_its_file(mirror, name):
    (path,) = hub.find(f"openai/{name}").glob("*.pt")
    assert path.read_bytes() == name.encode() * 3000
    assert path.name == name.replace("/", "-").replace("@", "-") + ".pt"


def test_the_vocabulary_is_fetched_without_weights(mirror):
    place = hub.find(NAME, weights=False)
    assert mirror.asked() == [(MERGES, 0)]
    assert hub.find(NAME, weights=False, local_files_only=True) == place
    unusable(f"offline its {MODEL} is not in the cache at", local_files_only=True)
    complete(hub.find(NAME))


def test_offline_openai_is_not_asked(mirror, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    unusable(f"offline its {MODEL} is not in the cache at", kind=FileNotFoundError)
    assert mirror.asked() == []


def test_without_a_mirror_openai_is_asked(monkeypatch):
    published = openai.MODELS["ViT-B/32"]
    monkeypatch.delenv(download.MIRROR, raising=False)
    assert published.address == published.url
    monkeypatch.setenv(download.MIRROR, "http://localhost:8000/below")
    assert published.address == f"http://localhost:8000/below/clip/models/{published.sha256}/ViT-B-32.pt"


def test_a_cut_download_of_openais_goes_on_at_once(mirror):
    mirror.faults[MODEL] = ["cut", "cut", "cut"]
    complete(hub.find(NAME))
    starts = [start for file, start in mirror.asked() if file == MODEL]
    assert starts[:2] == [0, len(WHOLE) * 2 // 5]
    assert len(starts) == 4
    assert starts == sorted(starts)


def test_a_line_that_goes_down_at_40_percent_is_gone_on_from_there_by_the_next_call(mirror):
    mirror.faults[MODEL] = ["cut", "down"]
    held = len(WHOLE) * 2 // 5
    unusable(f"try again, which goes on after the {held} bytes that have arrived", kind=ConnectionError)
    assert part_of().read_bytes() == WHOLE[:held]
    mirror.asked()
    complete(hub.find(NAME))
    assert mirror.asked()[0] == (MODEL, held)


def test_a_stalled_connection_counts_as_cut(mirror, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    mirror.faults[MODEL] = ["stalls"]
    complete(hub.find(NAME))
    assert mirror.asked()[:2] == [(MODEL, 0), (MODEL, len(WHOLE) * 2 // 5)]


@pytest.mark.parametrize("fault", ["ignores", "earlier", "no length", "moved"])
def test_servers_that_answer_a_range_in_their_own_way(mirror, fault):
    mirror.faults[MODEL] = ["cut", fault]
    complete(hub.find(NAME))
    assert mirror.asked()[1] == (MODEL, len(WHOLE) * 2 // 5)


def test_a_server_that_does_not_say_how_long_a_file_is(mirror):
    mirror.faults = {MODEL: ["no length"], MERGES: ["no length"]}
    complete(hub.find(NAME))


def test_a_wrong_digest_leaves_nothing(mirror):
    mirror.faults[MODEL] = ["lies"]
    unusable(f"{MODEL} arrived damaged (its sha256 is", "try again")
    assert not part_of().exists()
    complete(hub.find(NAME))


@pytest.mark.parametrize("left", [b"?" * 100, WHOLE + b"!"])
def test_what_another_program_left_as_a_part_is_found_out(mirror, left):
    part_of().parent.mkdir(parents=True)
    part_of().write_bytes(left)
    unusable("arrived damaged")
    assert not part_of().exists()
    complete(hub.find(NAME))


def test_a_process_that_ended_just_before_the_renaming(mirror):
    part_of().parent.mkdir(parents=True)
    part_of().write_bytes(WHOLE)
    complete(hub.find(NAME))
    assert mirror.asked() == [(MODEL, len(WHOLE)), (MERGES, 0)]


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_an_answer_that_is_no_file(mirror, status):
    mirror.faults[MODEL] = [status]
    unusable(f"{MODEL} was asked for and answered with status {status}: try again later")
    mirror.faults[MODEL] = ["cut", status]
    unusable(f"status {status}")
    assert part_of().read_bytes() == WHOLE[: len(WHOLE) * 2 // 5], "what had arrived stays"
    complete(hub.find(NAME))


def test_a_mirror_that_is_gone(mirror):
    mirror.server.shutdown()
    mirror.server.server_close()
    unusable("could not be fetched (ConnectError", "check the connection and try again.", kind=ConnectionError)


def test_a_mirror_that_is_no_address(mirror, monkeypatch):
    monkeypatch.setenv(download.MIRROR, "somewhere")
    unusable("could not be fetched", kind=ConnectionError)


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "The disk of"), (errno.EACCES, f"{MODEL} could not be stored in")]
)
def test_a_disk_that_takes_no_more(mirror, monkeypatch, code, said):
    class Full(io.FileIO):
        def write(self, content):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(download, "open", lambda path, mode: Full(path, mode), raising=False)
    unusable(said)
    monkeypatch.undo()
    assert not Path(CACHED, MODEL).exists()


def test_a_cache_that_is_no_folder(mirror):
    Path("assets").write_bytes(b"")
    unusable(f"{MODEL} could not be stored in")


FIND = """
import sys
from scratchformers.checkpoints import hub, openai
from scratchformers.checkpoints.download import Download
model, vocabulary = sys.argv[1:]
openai.MODELS["ViT-B/32"] = Download(openai.MODELS["ViT-B/32"].url, model)
openai.VOCABULARY = Download(openai.VOCABULARY.url, vocabulary)
print("begins", flush=True)
print(hub.find("openai/ViT-B/32"))
"""


def another_process(**options):
    """`hub.find` of it, by itself."""
    digests = [openai.MODELS["ViT-B/32"].sha256, openai.VOCABULARY.sha256]
    settings = {**os.environ, "HF_ASSETS_CACHE": str(Path("assets").absolute()), "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen([sys.executable, "-c", FIND, *digests], env=settings, text=True, **options)


def until(condition, process):
    end = time.monotonic() + 100
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.unhooked
def test_two_processes_fetch_once(mirror):
    mirror.faults[MODEL] = ["waits"]
    both = [another_process(stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["begins\n"] * 2
    until(lambda: mirror.log, both[0])
    time.sleep(0.5)  # in which the other one would ask too
    mirror.release.set()
    folders = {process.communicate(timeout=100)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert folders == {str(complete(CACHED.absolute()))}
    assert sorted(mirror.asked()) == [(MODEL, 0), (MERGES, 0)]


@pytest.mark.unhooked
def test_a_killed_process_leaves_a_part_that_is_gone_on_with(mirror):
    mirror.faults[MODEL] = ["stalls"]
    process, held = another_process(), len(WHOLE) * 2 // 5
    until(lambda: part_of().is_file() and part_of().stat().st_size == held, process)
    process.kill()
    process.wait()
    with pytest.raises(FileNotFoundError, match="is not in the cache"):
        hub.find(NAME, local_files_only=True)
    mirror.asked()
    complete(hub.find(NAME))
    assert mirror.asked()[0] == (MODEL, held)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("openai/RN50", "openai/RN50 sees with a ResNet, which is not built here: expected one of openai/ViT-B/32, "),
        ("openai/RN50x64", "openai/RN50x64 sees with a ResNet"),
        ("openai/ViT-B/64", "openai/ViT-B/64 is no model that OpenAI published: expected one of openai/ViT-B/32, "),
        ("openai/ViT-B-32", "openai/ViT-B-32 is no model that OpenAI published"),
    ],
)
def test_names_that_openai_did_not_publish_or_that_are_not_built(mirror, fake, name, said):
    with pytest.raises(ValueError, match=said):
        sf.load(name)
    with pytest.raises(ValueError, match="only a hub id has revisions"):
        sf.load(name, revision="main")
    assert mirror.asked() == fake.asked() == []


def test_openais_ids_on_the_hub_are_asked_for_there(mirror, fake):
    fake.repo = "openai/clip-vit-base-patch32"
    assert sf.load_tokenizer(fake.repo).encode("it's") == BPE.encode("it's")
    assert ("GET", "vocab.json") in fake.asked()
    assert mirror.asked() == []


def test_a_folder_is_meant_before_openais_name(mirror):
    Path(NAME).mkdir(parents=True)
    assert hub.find(NAME) == Path(NAME)
    assert hub.find(Path("openai/ViT-B/16")) == Path("openai/ViT-B/16"), "and a Path is one"
    assert mirror.asked() == []
