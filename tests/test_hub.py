"""Addresses of weights: what is fetched is whole, from where it was asked, and every failure is a sentence."""

import base64
import hashlib
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from patchword.core.errors import DataError, PatchwordError, UsageError
from patchword.models.names import list_models
from patchword.weights import hub

CONTENT = bytes(range(251)) * 12_007  # three chunks, the last one not full
PATH = "/vit_models/imagenet21k%2Bimagenet2012/ViT-B_16-224.npz"
Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A local stand-in for Google's storage: answers a path as it is told, and remembers who asked for what."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if self.path in outer.answers:
                    outer.answers[self.path](self)
                else:
                    self.send_error(404)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The server in place of Google's, plain http allowed, a cache of its own, a time-out that tests can wait for."""
    it = Server()
    thread = threading.Thread(target=it.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(hub, "GOOGLE", it.address)
    monkeypatch.setattr(hub, "_HANDLERS", (*hub._HANDLERS, urllib.request.HTTPHandler))
    monkeypatch.setattr(hub, "_SECONDS", 0.3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield it
    it.released.set()
    it.http.shutdown()
    it.http.server_close()
    thread.join()


def whole(headers: dict[str, str], body: bytes = CONTENT, length: int | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def left_behind(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert hub.locate("some/where") == Path("some/where")
    assert hub.locate(Path("ViT-B_16.npz")) == Path("ViT-B_16.npz")  # a Path is never an address
    assert hub.locate("~/x") == Path.home() / "x"


def test_an_official_name_that_lies_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B_16.npz").write_bytes(b"mine")
    assert hub.locate("ViT-B_16.npz") == Path("ViT-B_16.npz")


@pytest.mark.parametrize(
    "source",
    [
        "ViT-B_16-224.npz",
        "gs://vit_models/imagenet21k+imagenet2012/ViT-B_16-224.npz",
        "GOOGLE/vit_models/imagenet21k+imagenet2012/ViT-B_16-224.npz",
        "GOOGLE/vit_models/imagenet21k%2Bimagenet2012/ViT-B_16-224.npz",
    ],
)
def test_official_files_are_fetched_once(
    source: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checksum = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
    server.answers[PATH] = whole({"x-goog-hash": f"crc32c=AAAAAA==,md5={checksum}"})
    source = source.replace("GOOGLE", server.address)
    found = hub.locate(source)
    assert found == tmp_path / "cache/patchword/weights/vit_models/imagenet21k+imagenet2012/ViT-B_16-224.npz"
    assert found.read_bytes() == CONTENT
    assert f"fetching {server.address}{PATH} to {found}" in capsys.readouterr().err
    assert hub.locate(source) == found
    assert server.asked == [PATH]
    assert left_behind(tmp_path) == [found]


def test_every_official_name_is_in_a_public_bucket() -> None:
    assert len(hub.OFFICIAL) == 5 + 2 + 10 + 5
    for name, address in hub.OFFICIAL.items():
        bucket, *_, last = address.removeprefix("gs://").split("/")
        assert bucket in hub.BUCKETS
        assert last == name
    assert hub.OFFICIAL["ViT-B_16.npz"] == "gs://vit_models/imagenet21k/ViT-B_16.npz"
    assert hub.OFFICIAL["BiT-M-R50x1.npz"] == "gs://bit_models/BiT-M-R50x1.npz"


def stalls(server: Server) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        whole({}, CONTENT[:1000], len(CONTENT))(handler)
        handler.wfile.flush()
        server.released.wait(20)

    return answer


def broken_chunks(handler: BaseHTTPRequestHandler) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"1000\r\n" + CONTENT[:0x800])


def redirect(to: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()

    return answer


def fails(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


BAD = [
    (lambda server: whole({}, CONTENT[:-7], len(CONTENT)), DataError, "broke off after 3,013,750 of 3,013,757 bytes"),
    (lambda server: broken_chunks, DataError, "cannot be fetched"),
    (lambda server: stalls(server), DataError, r"cannot be fetched \(timed out\)"),
    (lambda server: whole({"x-goog-hash": "md5=AAAA"}), DataError, "arrived damaged: its MD5"),
    (lambda server: whole({}, b"", 10**12), DataError, "has 1 TB, more than the limit of 17.2 GB"),
    (lambda server: fails(404), UsageError, r"does not exist there \(404\)"),
    (lambda server: fails(503), DataError, r"cannot be fetched \(503 "),
    (lambda server: redirect("file:///etc/hostname"), DataError, "cannot be fetched"),
    (lambda server: redirect("ftp://127.0.0.1/x"), DataError, "cannot be fetched"),
]


@pytest.mark.parametrize(("bad", "kind", "message"), BAD)
def test_nothing_half_written_is_taken_for_whole(
    bad: Callable[[Server], Answer], kind: type[PatchwordError], message: str, server: Server, tmp_path: Path
) -> None:
    server.answers[PATH] = bad(server)
    with pytest.raises(kind, match=message) as caught:
        hub.locate("ViT-B_16-224.npz")
    assert f"{server.address}{PATH}" in str(caught.value)
    if kind is DataError:
        assert f"put it at {tmp_path}/cache/patchword/weights/vit_models/imagenet21k" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == []
    server.answers[PATH] = whole({})
    assert hub.locate("ViT-B_16-224.npz").read_bytes() == CONTENT


def test_a_redirect_off_https_has_nobody_to_follow_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the handlers as they are outside this test, plain http is not spoken at all."""
    server.answers[PATH] = whole({})
    monkeypatch.setattr(hub, "_HANDLERS", hub._HANDLERS[:-1])
    with pytest.raises(DataError, match=r"cannot be fetched \(unknown url type: http\)"):
        hub.locate("ViT-B_16-224.npz")
    assert server.asked == []


def test_no_network_says_what_to_do_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(hub, "GOOGLE", f"https://127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError) as caught:
        hub.locate("BiT-M-R50x1.npz")
    assert f"https://127.0.0.1:{port}/bit_models/BiT-M-R50x1.npz cannot be fetched" in str(caught.value)
    assert f"put it at {tmp_path}/cache/patchword/weights/bit_models/BiT-M-R50x1.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://vit_modles/a.npz", "did you mean 'vit_models'"),
        ("gs://big_vision/../secret/a.npz", "is no address of a file of weights"),
        ("gs://big_vision/a.msgpack", "gs://big_vision/PATH.npz is right"),
        ("s3://bucket/a.npz", "is no address of weights that is known"),
        ("https://example.org/a.npz", "is no address of weights that is known"),
        ("hf://only-a-name", r"hf://ORG/NAME\[@REVISION\]\[/FOLDER\] is right"),
        ("hf://org/name/../../x", "is no address of the hub"),
        ("hf://org/name@a@b", "is no address of the hub"),
    ],
)
def test_addresses_that_are_none(address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hub.locate(address)


class Snapshot:
    """`snapshot_download` as tests want it: keeps what it was asked, and answers with a folder or an error."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self.folder, self.error, self.asked = folder, error, []

    def __call__(self, name: str, **options: Any) -> str:
        self.asked.append((name, options))
        if self.error is not None:
            raise self.error
        return str(self.folder)


def hub_error(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return kind.__new__(kind, "no", None)  # the constructor wants an answer of the library's own http client


def published(files: list[str], patterns: list[str], ignored: list[str]) -> set[str]:
    from huggingface_hub.utils import filter_repo_objects

    return set(filter_repo_objects(files, allow_patterns=patterns, ignore_patterns=ignored))


def test_the_hub_is_asked_for_what_is_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert hub.locate("hf://timm/vit_base.augreg") == tmp_path
    name, options = snapshot.asked[0]
    assert (name, options["revision"]) == ("timm/vit_base.augreg", None)
    wanted = {
        "config.json",
        "preprocessor_config.json",
        "model.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    }
    others = {
        "pytorch_model.bin",
        "modeling.py",
        "tf_model.h5",
        "README.md",
        "onnx/model.safetensors",
        "x/config.json",
    }
    assert published([*wanted, *others], options["allow_patterns"], options["ignore_patterns"]) == wanted

    inner = tmp_path / "small/a"
    inner.mkdir(parents=True)
    (inner / "model.safetensors.index.json").write_bytes(b"")
    assert hub.locate("hf://org/name@refs%2Fpr%2F3/small/a") == inner
    name, options = snapshot.asked[1]
    assert (name, options["revision"]) == ("org/name", "refs/pr/3")
    files = ["small/a/config.json", "small/a/deep/config.json", "config.json", "small/a/model.safetensors"]
    assert published(files, options["allow_patterns"], options["ignore_patterns"]) == {files[0], files[3]}


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (hub_error(errors.RepositoryNotFoundError), UsageError, "does not exist, or is private"),
        (hub_error(errors.GatedRepoError), DataError, "accepted its terms; do so at https://huggingface.co/org/name"),
        (hub_error(errors.RevisionNotFoundError), UsageError, "the repository has no revision v9; a branch, tag"),
        (errors.HFValidationError("too long\nor so"), UsageError, r"is no name of the hub \(too long\)"),
        (
            errors.LocalEntryNotFoundError("Got: ConnectError\nmore"),
            DataError,
            r"cannot be fetched.*\(Got: ConnectError\)",
        ),
        (TimeoutError("slow"), DataError, r"cannot be fetched, and is not in the hub's cache \(slow\)"),
        (RuntimeError("proxy"), DataError, r"cannot be fetched, and is not in the hub's cache \(proxy\)"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(
    error: Exception, kind: type[PatchwordError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Snapshot(tmp_path, error))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(kind, match=message) as caught:
        hub.locate("hf://org/name@v9")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("hf://org/name@v9")


def test_only_a_pickle_is_nothing_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Snapshot(tmp_path))
    with pytest.raises(DataError, match=r"holds no model\.safetensors: .*pickle \(\.bin\), is not fetched"):
        hub.locate("hf://org/name")


def test_offline_mode_and_cache_are_the_librarys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real `snapshot_download`: an empty cache is a sentence, a full one answers without a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="hf://org/name is not in the hub's cache, and HF_HUB_OFFLINE forbids"):
        hub.locate("hf://org/name")
    home, commit = tmp_path / "models--org--name", "0123456789abcdef0123456789abcdef01234567"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(commit)
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"x")
    assert hub.locate("hf://org/name") == snapshot
    assert hub.locate(f"hf://org/name@{commit}") == snapshot


class Asked:
    """`HfApi` as tests want it: answers, refuses or waits."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self.answer, self.questions = answer, []

    def __call__(self) -> "Asked":
        return self

    def model_info(self, repository: str, *, timeout: float) -> object:
        self.questions.append((repository, timeout))
        return self.answer()


def test_nobody_is_asked_for_what_is_not_published_is_kept_or_is_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(dict)
    monkeypatch.setattr(huggingface_hub, "HfApi", asked)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "PUBLISHED", {"ViT-Ti/16": "hf://org/name"})
    kept = tmp_path / "model.safetensors"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: str(kept))
    assert hub.at_hand("ViT-At/8") is None
    assert hub.at_hand("ViT-Ti/16") == "hf://org/name"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.at_hand("ViT-Ti/16") is None
    assert not asked.questions


def test_a_hub_that_answers_is_fetched_from_and_any_other_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repository, file: None)
    monkeypatch.setattr(hub, "PUBLISHED", {"ViT-Ti/16": "hf://org/name"})
    monkeypatch.setattr(hub, "_PATIENCE", 0.2)
    (tmp_path / "model.safetensors").write_bytes(b"")
    snapshot = Snapshot(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "HfApi", asked := Asked(dict))
    assert hub.at_hand("ViT-Ti/16") == "hf://org/name"
    assert asked.questions == [("org/name", 0.2)]
    assert [name for name, _ in snapshot.asked] == ["org/name"]
    for answer in (lambda: time.sleep(2), lambda: 1 / 0):  # one that does not come, and one that says no
        monkeypatch.setattr(huggingface_hub, "HfApi", Asked(answer))
        assert hub.at_hand("ViT-Ti/16") is None
    monkeypatch.setattr(huggingface_hub, "HfApi", Asked(dict))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Snapshot(tmp_path, RuntimeError("broken off")))
    assert hub.at_hand("ViT-Ti/16") is None
    assert "note: hf://org/name cannot be fetched" in capsys.readouterr().err


def test_every_published_name_is_one_of_ours() -> None:
    assert set(hub.PUBLISHED) <= set(list_models())
    assert hub._PATIENCE == 3.0  # what the design promises
    assert all(address.startswith("hf://timm/") for address in hub.PUBLISHED.values())


@pytest.mark.parametrize("name", hub.PUBLISHED)
def test_published_weights_are_of_the_size_and_patch_that_the_name_says(name: str) -> None:
    """timm's own grammar, read again: `ViT-S/16` and `vit_small_patch16_224`, `BiT-R50x3` and `resnetv2_50x3_bit`."""
    theirs = hub.PUBLISHED[name].removeprefix("hf://timm/")
    if name.startswith("BiT-R"):
        assert theirs == f"resnetv2_{name.removeprefix('BiT-R')}_bit.goog_in21k"
        return
    stem, _, encoder = name.rpartition("ViT-")
    size, patch = encoder.split("/")
    words = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}
    how = f"{stem[:-1].lower()}_s{patch}" if stem else f"patch{patch}"
    assert theirs.rpartition(".")[0] == f"vit_{words[size]}_{how}_224"
    assert theirs.endswith("_in21k")
