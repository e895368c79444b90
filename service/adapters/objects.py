"""A bucket, or a part of one, through obstore: whole objects, conditional writes, files in parts.

Every method blocks and raises `NotReady` when the bucket does not answer or does not let us; obstore signs, and takes
the credentials from where the cloud's own tools have them in the environment.

A conditional write whose answer is lost is not known to have been refused: what is there then is compared with what was
to be written, so each writer puts something of its own (`fresh`) into a document that others write too.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, final
from urllib.parse import urlsplit

from service.core.errors import InvalidRequest, NotReady
from service.core.retry import Backoff

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")

PART_BYTES = 8 * 2**20
"""Of a file that is sent or fetched in parts; what an upload is written in."""

_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"})
_PARTS_AT_ONCE = 4
_TRIES = 4
_RETRY = Backoff(base_s=0.1, cap_s=2.0)
_CONNECT_S = 3.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tag:
    """What an object's content is told by: an etag, on some clouds a generation."""

    etag: str | None
    generation: str | None


@dataclass(frozen=True, slots=True)
class Document:
    """A small object as it was read."""

    content: bytes
    tag: Tag


@dataclass(frozen=True, slots=True)
class Entry:
    """An object in a list; `modified_at` by the bucket's clock, in seconds since the epoch."""

    key: str
    size: int
    modified_at: float
    tag: Tag


@final
class Objects:
    """Objects by key below one prefix.

    `documents` and `parts` are the same place, with the patience for small objects and for parts of large ones; neither
    tries a request again by itself.
    """

    def __init__(self, documents: ObjectStore, parts: ObjectStore) -> None:
        self._documents = documents
        self._parts = parts

    @classmethod
    def at(cls, url: str, *, document_s: float = 5.0, part_s: float = 120.0) -> Objects:
        """Those below `url`, such as `s3://bucket/prefix`; raises `InvalidRequest`.

        `document_s` and `part_s` bound a request for a small object and for a part of a large one, in seconds.
        """
        check_url(url)
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError:
            raise InvalidRequest(f"store {url!r}: expected the package obstore; install axon-server[s3]") from None

        retry: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=part_s)}
        made = []
        for seconds in (document_s, part_s):
            client: ClientConfig = {
                "timeout": timedelta(seconds=seconds),
                "connect_timeout": timedelta(seconds=_CONNECT_S),
                "allow_http": _plain_http(os.environ),
            }
            try:
                made.append(from_url(url, client_options=client, retry_config=retry))
            except (BaseError, ValueError, TypeError) as error:
                raise InvalidRequest(f"store {url!r}: {_first_line(error)}") from None
        return cls(*made)

    # Small objects

    def read(self, key: str, seen: Tag | None = None) -> Document | None:
        """An object; None when it still is the one with the tag `seen`. Raises `FileNotFoundError`."""
        from obstore import get
        from obstore.exceptions import NotModifiedError

        def ask() -> Document | None:
            options = None if seen is None or seen.etag is None else {"if_none_match": seen.etag}
            try:
                found = get(self._documents, key, options=options)  # type: ignore[arg-type]
                return Document(bytes(found.bytes()), _tag(found.meta))
            except NotModifiedError:
                return None

        return _again(ask)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object that is not there; False when it is, unless with this very content by a lost answer."""
        return self._conditional(key, content, None) is not None

    def replace(self, key: str, content: bytes, seen: Tag) -> Tag | None:
        """Write in the place of the content that has the tag `seen`; None when another is there by now."""
        return self._conditional(key, content, seen)

    def write(self, key: str, content: bytes) -> None:
        """Write whatever is there."""
        from obstore import put

        _again(lambda: put(self._documents, key, content, use_multipart=False))

    def _conditional(self, key: str, content: bytes, seen: Tag | None) -> Tag | None:
        from obstore import put
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: UpdateVersion = {}
        if seen is not None and seen.etag is not None:
            mode["e_tag"] = seen.etag
        if seen is not None and seen.generation is not None:
            mode["version"] = seen.generation
        store = self._documents if len(content) < PART_BYTES // 8 else self._parts
        lost = False
        for turn in range(1, _TRIES + 1):
            try:
                with _asking():
                    return _tag(put(store, key, content, mode=mode or "create", use_multipart=False))
            except (AlreadyExistsError, PreconditionError):
                return self._ours(key, content) if lost else None
            except FileNotFoundError:  # it was removed, or the bucket was
                if seen is None:
                    raise NotReady("the object store does not answer: there is no such bucket") from None
                return None
            except NotReady:
                lost = True
                if turn == _TRIES:
                    if (tag := self._ours(key, content)) is not None:
                        return tag
                    raise
                time.sleep(_RETRY.delay_s(turn))
        raise AssertionError("unreachable")

    def _ours(self, key: str, content: bytes) -> Tag | None:
        try:
            found = self.read(key)
        except FileNotFoundError:
            return None
        return found.tag if found is not None and found.content == content else None

    # All of them

    def exists(self, key: str) -> bool:
        """Whether an object is there."""
        from obstore import head

        try:
            _again(lambda: head(self._documents, key))
        except FileNotFoundError:
            return False
        return True

    def entries(self, prefix: str) -> list[Entry]:
        """Everything below `prefix`, a folder, by key."""
        from obstore import list as listed

        def ask() -> list[Entry]:
            return [
                Entry(meta["path"], meta["size"], meta["last_modified"].timestamp(), _tag(meta))
                for page in listed(self._documents, prefix)
                for meta in page
            ]

        return sorted(_again(ask), key=lambda entry: entry.key)

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below `prefix`, sorted."""
        from obstore import list_with_delimiter

        found = _again(lambda: list_with_delimiter(self._documents, prefix))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; absent ones are no error."""
        from obstore import delete

        with contextlib.suppress(FileNotFoundError):
            if keys:
                _again(lambda: delete(self._documents, keys))

    # Large ones

    def send(self, key: str, content: Path | Iterator[bytes]) -> None:
        """Write a file, or what comes piece by piece, in parts; it appears when it is whole."""
        from obstore import put

        def ask() -> object:
            return put(self._parts, key, content, chunk_size=PART_BYTES, max_concurrency=_PARTS_AT_ONCE)

        if isinstance(content, Path):
            _again(ask)
            return
        with _asking():
            ask()

    def fetch(self, key: str, path: Path, size: int, sha256: str) -> None:
        """Read an object into a new file, in parts; raises `FileNotFoundError`, `NotReady` for another content."""
        digest = hashlib.sha256()
        with path.open("xb") as file, ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
            for part in _in_order(pool, self._part, [(key, at, size) for at in range(0, size, PART_BYTES)]):
                digest.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            path.unlink()
            raise NotReady(f"the object store: expected {key} with sha256 {sha256}, got {digest.hexdigest()}")

    def pieces(self, key: str, size: int) -> Iterator[bytes]:
        """An object of that size, part by part; raises `FileNotFoundError`."""
        for at in range(0, size, PART_BYTES):
            yield self._part(key, at, size)

    def _part(self, key: str, at: int, size: int) -> bytes:
        from obstore import get_range

        return bytes(_again(lambda: get_range(self._parts, key, start=at, end=min(at + PART_BYTES, size))))


def check_url(url: str) -> None:
    """Raise `InvalidRequest` unless `url` is that of a bucket, or of a folder in one, without credentials."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise InvalidRequest(f"store: expected a URL such as s3://bucket/prefix, gs:// or az://, got {url!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidRequest("store: expected a URL without credentials and options, which the environment has")


def fresh() -> str:
    """Something that no other writer has."""
    return secrets.token_hex(8)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[str, int, int], bytes], calls: Iterable[tuple[str, int, int]]
) -> Iterator[bytes]:
    """Results in their order, of a few calls at once: no more than those are in memory."""
    waiting: deque[Future[bytes]] = deque()
    left = iter(calls)
    waiting.extend(pool.submit(function, *call) for call in islice(left, _PARTS_AT_ONCE))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(function, *call) for call in islice(left, 1))


def _again(ask: Callable[[], T]) -> T:
    """Ask a few times while there is no answer; for what may be done twice."""
    for turn in range(1, _TRIES):
        try:
            with _asking():
                return ask()
        except NotReady:
            time.sleep(_RETRY.delay_s(turn))
    with _asking():
        return ask()


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Turn obstore's errors into ours; what a condition says stays as it is, and so does `FileNotFoundError`."""
    from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, PreconditionError

    try:
        yield
    except (AlreadyExistsError, PreconditionError, NotModifiedError):
        raise
    except BaseError as error:
        _log.debug("the object store: %s", error)
        raise NotReady(f"the object store does not answer: {type(error).__name__}") from error


def _tag(meta: Mapping[str, object]) -> Tag:
    etag, generation = meta.get("e_tag"), meta.get("version")
    return Tag(None if etag is None else str(etag), None if generation in (None, "null") else str(generation))


def _plain_http(environment: Mapping[str, str]) -> bool:
    """Whether the environment names an endpoint without TLS, which obstore refuses otherwise."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    return any(environment.get(name, "").startswith("http://") for name in names)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
