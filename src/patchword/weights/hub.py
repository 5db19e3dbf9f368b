"""Where weights are published → files on this machine, kept and checked."""

import base64
import contextlib
import hashlib
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from patchword.core import files
from patchword.core.errors import DataError, PatchwordError, UsageError, brief, nearest
from patchword.core.progress import Progress, say, size
from patchword.weights import folder, shipped

GOOGLE = "https://storage.googleapis.com"
"""Where the public buckets of Google's researchers answer without an account."""
BUCKETS = ("vit_models", "big_vision", "bit_models")

# The names that the READMEs of google-research/vision_transformer and google-research/big_transfer give.
_VIT, _TUNED, _BIT = "gs://vit_models/imagenet21k", "gs://vit_models/imagenet21k+imagenet2012", "gs://bit_models"
_BIT_SIZES = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x4")
OFFICIAL: dict[str, str] = {
    **{f"ViT-{size}.npz": f"{_VIT}/ViT-{size}.npz" for size in ("B_16", "B_32", "L_16", "L_32", "H_14")},
    **{f"ViT-{size}-224.npz": f"{_TUNED}/ViT-{size}-224.npz" for size in ("B_16", "L_16")},
    **{f"BiT-{data}-{size}.npz": f"{_BIT}/BiT-{data}-{size}.npz" for data in "SM" for size in _BIT_SIZES},
    **{f"BiT-M-{size}-ILSVRC2012.npz": f"{_BIT}/BiT-M-{size}-ILSVRC2012.npz" for size in _BIT_SIZES},
}
"""The name of an official file → its address. A plain name is the ImageNet-21k model; -224 and -ILSVRC2012 are fine-tuned."""

_MOST_BYTES = 16 * 2**30
"""The largest of the official files has 4 GB."""
_SECONDS = 30.0
"""Without a byte for so long, a server is given up."""
_CHUNK = 2**20
# No handler for plain http: a redirect off https has nobody to follow it.
_HANDLERS: tuple[type[urllib.request.BaseHandler], ...] = (
    urllib.request.ProxyHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.UnknownHandler,
)

PUBLISHED: dict[str, str] = {
    "ViT-Ti/16": "hf://timm/vit_tiny_patch16_224.augreg_in21k",
    "ViT-S/32": "hf://timm/vit_small_patch32_224.augreg_in21k",
    "ViT-S/16": "hf://timm/vit_small_patch16_224.augreg_in21k",
    "ViT-B/32": "hf://timm/vit_base_patch32_224.augreg_in21k",
    "ViT-B/16": "hf://timm/vit_base_patch16_224.augreg_in21k",
    "ViT-B/8": "hf://timm/vit_base_patch8_224.augreg_in21k",
    "ViT-L/32": "hf://timm/vit_large_patch32_224.orig_in21k",
    "ViT-L/16": "hf://timm/vit_large_patch16_224.augreg_in21k",
    "ViT-H/14": "hf://timm/vit_huge_patch14_224.orig_in21k",
    "R26+ViT-S/32": "hf://timm/vit_small_r26_s32_224.augreg_in21k",
    "R50+ViT-B/16": "hf://timm/vit_base_r50_s16_224.orig_in21k",
    "R50+ViT-L/32": "hf://timm/vit_large_r50_s32_224.augreg_in21k",
    "BiT-R50x1": "hf://timm/resnetv2_50x1_bit.goog_in21k",
    "BiT-R50x3": "hf://timm/resnetv2_50x3_bit.goog_in21k",
    "BiT-R101x1": "hf://timm/resnetv2_101x1_bit.goog_in21k",
    "BiT-R101x3": "hf://timm/resnetv2_101x3_bit.goog_in21k",
    "BiT-R152x2": "hf://timm/resnetv2_152x2_bit.goog_in21k",
    "BiT-R152x4": "hf://timm/resnetv2_152x4_bit.goog_in21k",
}
"""Our name of an architecture → the hub's weights of it that learned from ImageNet-21k: what `init=auto` looks for."""
_PATIENCE = 3.0
"""Seconds that a hub which nobody asked for has for an answer."""

_HUB = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@/]+))?(?:/(?P<inside>[^@]+?))?/?")
_INDEX = f"{folder.WEIGHTS}.index.json"
_WANTED = ("config.json", "preprocessor_config.json", folder.DESCRIPTION, _INDEX, folder.WEIGHTS, "model-*.safetensors")


def locate(source: str | Path) -> Path:
    """The path of `source`; what is published elsewhere is downloaded first, once.

    A string may be an address: `hf://org/name[@revision][/folder]`, `gs://bucket/path.npz` of Google's public buckets, or the
    name of an official file (`OFFICIAL`) that does not lie here; `shipped:NAME` are weights that come with the package.
    Raises `UsageError` for an address that leads nowhere and `DataError` where it cannot be reached.
    """
    path = files.at_home(source)
    if isinstance(source, Path) or path.exists():
        return path
    if source.startswith(shipped.PREFIX):
        return shipped.locate(source.removeprefix(shipped.PREFIX))
    address = OFFICIAL.get(source, source)
    if address.startswith(f"{GOOGLE}/"):
        address = f"gs://{urllib.parse.unquote(address.removeprefix(f'{GOOGLE}/'))}"
    if address.startswith("hf://"):
        return _from_hub(address)
    if address.startswith("gs://"):
        return _from_google(address)
    if "://" in address:
        raise UsageError(
            f"{address} is no address of weights that is known; hf://ORG/NAME or gs://BUCKET/PATH.npz is right"
        )
    return path


def at_hand(name: str) -> str | None:
    """The address of `PUBLISHED` weights that are now in the hub's cache: they were, or it answers within `_PATIENCE` and gives
    them. Else None: this never fails."""
    if (address := PUBLISHED.get(name)) is None:
        return None
    import huggingface_hub
    from huggingface_hub import constants

    repository, answers = address.removeprefix("hf://"), threading.Event()
    if isinstance(huggingface_hub.try_to_load_from_cache(repository, folder.WEIGHTS), str):
        return address
    if constants.HF_HUB_OFFLINE:
        return None

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever it is, it is no answer
            huggingface_hub.HfApi().model_info(repository, timeout=_PATIENCE)
            answers.set()

    # Looking up a name may take longer than any time-out of a connection.
    threading.Thread(target=ask, daemon=True).start()
    if not answers.wait(_PATIENCE):
        return None
    try:
        locate(address)
    except PatchwordError as error:
        say(f"note: {error}")
        return None
    return address


def kept_in() -> Path:
    """Where downloaded weights are kept: `$XDG_CACHE_HOME/patchword/weights`, by default in `~/.cache`."""
    return files.cache("weights")


def _from_hub(address: str) -> Path:
    """The folder of a repository of the Hugging Face hub, in the cache of its library; only what is no code is taken."""
    parts = _HUB.fullmatch(address)
    inside = (parts and parts["inside"]) or ""
    if parts is None or any(step in ("", ".", "..") for step in inside.split("/") if inside):
        raise UsageError(f"{address} is no address of the hub; hf://ORG/NAME[@REVISION][/FOLDER] is right")
    import huggingface_hub
    from huggingface_hub import constants, errors

    name, revision = parts["name"], parts["revision"] and urllib.parse.unquote(parts["revision"])
    before = f"{inside}/" if inside else ""
    try:
        snapshot = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            allow_patterns=[before + file for file in _WANTED],
            ignore_patterns=[f"{before}*/*"],  # a star stands for folders, too
        )
    except errors.GatedRepoError as error:
        raise DataError(
            f"{address} is shown only to those who accepted its terms; do so at https://huggingface.co/{name} "
            "and run 'hf auth login'"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"{address} does not exist, or is private; its name as at https://huggingface.co/models, or 'hf auth login', "
            "would be right"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(
            f"{address}: the repository has no revision {revision}; a branch, tag or commit of it is right"
        ) from error
    except errors.HFValidationError as error:
        raise UsageError(f"{address} is no name of the hub ({_said(error)})") from error
    except Exception as error:  # the library's own classes change, and those of its clients come through
        if constants.HF_HUB_OFFLINE:
            raise DataError(
                f"{address} is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it; fetch it once without that"
            ) from error
        raise DataError(
            f"{address} cannot be fetched, and is not in the hub's cache ({_said(error)}); a network that reaches "
            "https://huggingface.co would be right"
        ) from error
    found = Path(snapshot) / inside
    if not any((found / file).is_file() for file in (folder.WEIGHTS, _INDEX)):
        raise DataError(
            f"{address} holds no {folder.WEIGHTS}: what it may have instead, such as a pickle (.bin), is not fetched; "
            "another repository or revision with safetensors is right"
        )
    return found


def _from_google(address: str) -> Path:
    """A file of one of Google's public buckets, kept under the same path as there."""
    bucket, _, inside = address.removeprefix("gs://").partition("/")
    if bucket not in BUCKETS:
        raise UsageError(f"{address} is in no public bucket of weights that is known; {nearest(bucket, BUCKETS)}")
    if not inside.endswith(".npz") or any(step in ("", ".", "..") for step in inside.split("/")):
        raise UsageError(f"{address} is no address of a file of weights; gs://{bucket}/PATH.npz is right")
    target = kept_in() / bucket / inside
    if not target.exists():
        download(f"{GOOGLE}/{urllib.parse.quote(f'{bucket}/{inside}')}", target)
    return target


def download(url: str, target: Path) -> None:
    """Fetch `url` to `target`, whole or not at all, with the checksum that the server names checked.

    Raises `UsageError` where the server has no such file and `DataError` where it does not give it, with what to do by hand.
    """
    by_hand = f"fetch it by hand and put it at {target}"
    say(f"fetching {url} to {target}")
    try:
        with _opened(url) as answer, files.new_file(target) as file:
            length = int(answer.headers.get("Content-Length") or 0)
            if length > _MOST_BYTES:
                raise DataError(f"{url} has {size(length)}, more than the limit of {size(_MOST_BYTES)}; {by_hand}")
            done, digest = 0, hashlib.md5(usedforsecurity=False)
            with Progress(f"fetching {target.name} (MB)", length // 10**6) as progress:
                while chunk := answer.read(_CHUNK):
                    done += len(chunk)
                    if done > _MOST_BYTES:
                        raise DataError(f"{url} does not end before the limit of {size(_MOST_BYTES)}; {by_hand}")
                    file.write(chunk)
                    digest.update(chunk)
                    progress.update(done // 10**6)
            if length and done != length:
                raise DataError(f"{url} broke off after {done:,} of {length:,} bytes; try again, or {by_hand}")
            if (sent := _md5(answer)) is not None and sent != digest.digest():
                raise DataError(f"{url} arrived damaged: its MD5 is not what the server says; try again, or {by_hand}")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (403, 404):
            raise UsageError(f"{url} does not exist there ({error.code}); check the name of the file") from error
        raise DataError(f"{url} cannot be fetched ({error.code} {error.reason}); try again, or {by_hand}") from error
    except (HTTPException, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(f"{url} cannot be fetched ({_said(reason)}); try again, or {by_hand}") from error


@contextlib.contextmanager
def _opened(url: str) -> Iterator[HTTPResponse]:
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    with opener.open(urllib.request.Request(url, headers={"User-Agent": "patchword"}), timeout=_SECONDS) as answer:
        yield answer


def _md5(answer: HTTPResponse) -> bytes | None:
    """The checksum that Google's storage sends along (`x-goog-hash: md5=…`)."""
    for header in answer.headers.get_all("x-goog-hash") or []:
        for part in header.split(","):
            kind, _, value = part.strip().partition("=")
            if kind == "md5":
                return base64.b64decode(value)
    return None


def _said(error: object) -> str:
    """The first line alone: the hub's own advice follows it."""
    return brief(str(error).strip().partition("\n")[0] or type(error).__name__)
