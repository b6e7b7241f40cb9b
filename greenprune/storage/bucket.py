"""An object store (S3, Google Cloud Storage, Azure) in eight calls, the only door to obstore.

obstore, because of the libraries at hand it alone has conditional writes for all three stores, uploads in parts that
leave nothing where they fail, and no dependencies: pyarrow.fs has no conditional write and shows half an upload, s3fs
and boto3 know only S3 and bring botocore.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from greenprune.errors import ConfigError

SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
CHUNK = 16 << 20  # bytes of one request
PARTS = 4  # of one upload at a time
LONGEST = timedelta(minutes=2)  # of one request
PATIENCE = timedelta(seconds=30)  # while obstore itself tries a failing one again
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # an http:// there is a store on the own network


@dataclass(frozen=True)
class FileState:
    """A file's size, when it was changed last, in seconds since the epoch, and what differs after every change."""

    bytes: int
    changed: float
    tag: str = ""


class Bucket(Protocol):
    """What a storage asks of an object store. Names are relative to the storage's root.

    Raises FileNotFoundError for what isn't there, another OSError where the store doesn't do it.
    """

    def head(self, name: str) -> FileState | None:
        """The object of this name; None where there is none."""

    def listing(self, below: str) -> dict[str, FileState]:
        """The objects whose names begin with `below` and a slash; all for an empty one."""

    def read(self, name: str, start: int, length: int) -> bytes | memoryview:
        """These bytes of an object."""

    def send(self, path: Path, name: str) -> None:
        """Make a file an object, in parts where it is large, a few of them in memory."""

    def write(self, name: str, content: bytes) -> None:
        """Make some bytes an object."""

    def create(self, name: str, content: bytes) -> bool:
        """The same where there is none of this name yet; False where there is."""

    def move(self, old: str, new: str) -> None:
        """Give an object another name."""

    def delete(self, name: str) -> None:
        """Remove an object, which may be gone already."""


def open_bucket(uri: str) -> Bucket:
    """The object store behind a URI. Credentials, region and endpoint come from the environment, as with other tools
    of that cloud (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, …), from the
    machine's role, or from AWS profiles where boto3 is there.

    Raises ConfigError for another scheme, or where obstore refuses the URI.
    """
    parts = urlsplit(uri)
    rule = "storage must be a path or a URI such as s3://bucket/folder, gs://… or az://…"
    if parts.scheme not in SCHEMES or parts.query:
        raise ConfigError(f"{rule}, got {uri!r}; the endpoint and the region are set by AWS_ENDPOINT_URL, AWS_REGION")
    from obstore.store import from_url

    more: dict[str, Any] = _of_aws(parts.netloc) if parts.scheme == "s3" else {}
    plain = any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS)
    try:
        store = from_url(
            uri,
            client_options={"timeout": LONGEST, "connect_timeout": timedelta(seconds=5), "allow_http": plain},
            retry_config={"max_retries": 3, "retry_timeout": PATIENCE},
            **more,
        )
    except Exception as problem:
        raise ConfigError(f"{rule}, got {uri!r}: {problem}") from None
    return _Obstore(store)


def _of_aws(bucket: str) -> dict[str, Any]:
    """What obstore doesn't find by itself: a bucket's region, and the profiles of ~/.aws, which boto3 reads."""
    found: dict[str, Any] = {}
    here = os.environ
    if not (here.get("AWS_REGION") or here.get("AWS_DEFAULT_REGION") or any(map(here.get, ENDPOINTS))):
        from pyarrow.fs import resolve_s3_region

        try:
            found["region"] = resolve_s3_region(bucket)
        except OSError as problem:
            raise ConfigError(f"the bucket {bucket} must have a region, got {problem}; set AWS_REGION") from None
    if not here.get("AWS_ACCESS_KEY_ID") and (
        here.get("AWS_PROFILE") or Path("~/.aws/credentials").expanduser().exists()
    ):
        if find_spec("boto3") is None:
            raise ConfigError("AWS profiles are read by boto3, got none; pip install boto3, or set AWS_ACCESS_KEY_ID")
        from obstore.auth.boto3 import Boto3CredentialProvider

        found["credential_provider"] = Boto3CredentialProvider()
    return found


class _Obstore:
    """A Bucket on an obstore store, whose prefix is the storage's root."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def head(self, name: str) -> FileState | None:
        try:
            with _as_os_errors():
                return _state(self.store.head(name))
        except FileNotFoundError:
            return None

    def listing(self, below: str) -> dict[str, FileState]:
        with _as_os_errors():
            pages = self.store.list(below or None)
            return {found["path"]: _state(found) for page in pages for found in page}

    def read(self, name: str, start: int, length: int) -> bytes | memoryview:
        with _as_os_errors():
            return memoryview(self.store.get_range(name, start=start, length=length) if length else b"")

    def send(self, path: Path, name: str) -> None:
        with _as_os_errors():
            self.store.put(name, path, chunk_size=CHUNK, max_concurrency=PARTS)

    def write(self, name: str, content: bytes) -> None:
        with _as_os_errors():
            self.store.put(name, content)

    def create(self, name: str, content: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        with _as_os_errors():
            try:
                self.store.put(name, content, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def move(self, old: str, new: str) -> None:
        with _as_os_errors():
            self.store.rename(old, new)

    def delete(self, name: str) -> None:
        try:
            with _as_os_errors():
                self.store.delete(name)
        except FileNotFoundError:
            return


def _state(found: Any) -> FileState:
    return FileState(found["size"], found["last_modified"].timestamp(), found["e_tag"] or str(found["version"]))


@contextmanager
def _as_os_errors() -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as problem:
        raise OSError(f"{type(problem).__name__}: {str(problem).splitlines()[0]}") from problem
