"""Names of files on a server enter, ranges of their bytes leave, asked for again where it fails."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import timedelta
from threading import Lock
from typing import Any, TypeVar, cast

import numpy as np

from streamtrain.decode.address import Address
from streamtrain.decode.files import Bytes, Opened
from streamtrain.errors import InputError
from streamtrain.threads import Threads

T = TypeVar("T")

# Repeats of a request, and the time for them. A busy server and a broken line get a minute or two,
# as training may have run for hours; a host that does not answer at first is a wrong address.
PATIENT = 10, timedelta(minutes=2)
QUICK = 3, timedelta(seconds=10)

_REMEDY = {
    "s3": (
        "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or the like in "
        "storage_options (--storage-options.KEY); skip_signature=true is for public data, and "
        "false for the role of a cloud machine"
    ),
    "gs": (
        "set GOOGLE_APPLICATION_CREDENTIALS, or service_account in storage_options "
        "(--storage-options.KEY); skip_signature=true is for public data, and false for the role "
        "of a cloud machine"
    ),
    "az": (
        "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the like in "
        "storage_options (--storage-options.KEY)"
    ),
}
_LOGIN = "a signed address may have expired; a login goes into it as https://USER:PASSWORD@HOST"


class BusyError(InputError):
    """A server that may answer later."""


class RemoteFiles:
    """Files below an address, or one file under the name "", by ranged GET.

    Picklable: it connects at the first read. Requests that time out, are cut, or are answered with
    429 or 5xx are repeated.

    Parameters
    ----------
    address
        Of the store, or of the file.
    opened
        When it was opened: files are refused that were written later.
    """

    n_parallel = 16  # a wait of 30 ms for 1 MB: 500 MB/s
    gap = 1 << 20  # a request costs about as much as 1 MB

    def __init__(self, address: Address, opened: Opened | None = None) -> None:
        self.address, self.name = address, address.name
        self._opened = opened or Opened(address.name)
        self._lock = Lock()
        self._stores: dict[tuple[int, timedelta], Any] = {}
        self._threads: Threads | None = None
        self._suffixes = True
        self._tags = self._opened.tags

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "opened": self._opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # the one way that it is made

    @property
    def store(self) -> Any:
        """Client of obstore."""
        return self._repeating(PATIENT)

    def _repeating(self, often: tuple[int, timedelta]) -> Any:
        """Client that repeats requests so; kept, as it keeps connections."""
        with self._lock:
            if often not in self._stores:
                self._stores[often] = self.address.store(*often)
            return self._stores[often]

    @property
    def threads(self) -> Threads:
        """They wait for requests, and decode what comes."""
        with self._lock:
            if self._threads is None:
                self._threads = Threads(self.n_parallel)
            return self._threads

    def begin(self, key: str, nbytes: int = 0) -> tuple[bytes, int]:
        """First bytes of a file and its size; fails within seconds where no server answers.

        For no bytes no range is asked for.

        Raises
        ------
        FileNotFoundError
            Where there is no such file.
        InputError
            Where it cannot be read.
        """
        try:
            return self._begin(key, nbytes, self._repeating(QUICK))
        except BusyError:
            return self._begin(key, nbytes, self.store)

    def _begin(self, key: str, nbytes: int, store: Any) -> tuple[bytes, int]:
        def get() -> tuple[bytes, int]:
            import obstore

            # No HEAD: addresses are signed for GET alone.
            found = obstore.get(store, key, options={"range": (0, nbytes)} if nbytes else None)
            return bytes(found.bytes()) if nbytes else b"", int(found.meta["size"])

        return self._explaining(key, get)

    def read(self, key: str, start: int, stop: int) -> Bytes:
        """Bytes start to stop, all of them or an error."""

        def get() -> Any:
            import obstore

            options: dict[str, Any] = {"range": (start, stop)}
            if key in self._tags:
                options["if_match"] = self._tags[key]
            found = obstore.get(self.store, key, options=cast(Any, options))
            tag = found.meta.get("e_tag")
            if tag and not tag.startswith("W/"):  # a weak one matches nothing
                self._tags.setdefault(key, tag)
            return found.bytes()

        raw = _as_bytes(self._explaining(key, get)) if stop > start else np.empty(0, np.uint8)
        if len(raw) != stop - start:
            raise OSError(f"{self._named(key)} ends at byte {start + len(raw)}, before {stop}")
        return raw

    def tail(self, key: str, nbytes: int) -> Bytes | None:
        """The last bytes; None where there is no such file."""

        def get() -> Any:
            import obstore

            store = self._repeating(QUICK)
            return obstore.get(store, key, options={"range": {"suffix": nbytes}}).bytes()

        try:
            if self._suffixes:
                try:
                    return _as_bytes(self._explaining(key, get))
                except InputError as error:
                    # Not every server knows ranges from the end, and their answers differ: one
                    # that fails otherwise fails once more below.
                    self._suffixes = isinstance(error, BusyError)
            size = self._begin(key, 1, self.store)[1]
            return self.read(key, max(0, size - nbytes), size)
        except FileNotFoundError:
            return None

    def whole(self, key: str) -> Bytes | None:
        """All bytes; None where there is no such file."""

        def get() -> Any:
            import obstore

            found = obstore.get(self.store, key)
            # No tag is kept, as a chunk is read once a pass, and there may be millions. A server
            # may tell times of the future, of which nothing follows.
            seconds = found.meta["last_modified"].timestamp()
            if self._opened.since < seconds * 1e9 and seconds < time.time():
                raise _changed(self._named(key))
            return found.bytes()

        try:
            return _as_bytes(self._explaining(key, get))
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Give up connections and threads; a later read opens anew."""
        with self._lock:
            threads, self._threads = self._threads, None
            self._stores.clear()
        if threads is not None:
            threads.__exit__()

    def _named(self, key: str) -> str:
        return f"{self.name}/{key}" if key else self.name

    def _explaining(self, key: str, get: Callable[[], T]) -> T:
        from obstore.exceptions import BaseError

        try:
            return get()
        except (BaseError, FileNotFoundError) as error:
            # The error itself holds the whole address, signature included.
            raise explained(error, self._named(key), self.address.scheme) from None


def _as_bytes(raw: Any) -> Bytes:
    found: Bytes = np.frombuffer(raw, np.uint8)
    return found


def _changed(name: str) -> InputError:
    return InputError(
        f"{name} has changed on the server since it was opened: run again from the beginning once "
        "it is complete"
    )


def explained(error: Exception, name: str, scheme: str) -> Exception:
    """Word what obstore raised for the file `name`: the status, and the remedy.

    Returns
    -------
    Exception
        FileNotFoundError or InputError.
    """
    text = str(error)
    status = re.search(r"status code: (\d{3}[^:\n]*)", text)
    code = re.search(r"<Code>(\w+)</Code>", text)
    told = " ".join(found[1].strip() for found in (status, code) if found)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{name} does not exist (the server answers {told or '404'})")
    if "PreconditionError" in type(error).__name__ or (status and status[1].startswith("412")):
        return _changed(name)
    if "Range request not supported" in text:
        return InputError(
            f"the server of {name} ignores ranges of bytes and would send all of it for every "
            "read: download it, and pass the path"
        )
    if "169.254.169.254" in text or "metadata.google" in text:
        return InputError(f"no credentials were found for {name}: {_REMEDY.get(scheme, _LOGIN)}")
    if status and status[1][:3] in ("401", "403"):
        return InputError(f"access to {name} is denied ({told}): {_REMEDY.get(scheme, _LOGIN)}")
    if status and status[1][:3] in ("301", "307") and scheme == "s3":
        return InputError(f"{name} lies in another region ({told}): set AWS_REGION")
    tried = re.search(r"after (\d+) retries", text)
    tries = f" in {int(tried[1]) + 1} attempts" if tried else ""
    if status:
        busy = status[1][:3] in ("408", "429", "500", "502", "503", "504")
        kind = BusyError if busy else InputError
        return kind(
            f"{name} cannot be read{tries}: the server answers {told}; try again later, or "
            "download it"
        )
    if "dns error" in text:
        return InputError(f"{name} cannot be read: there is no such host; check the address")
    if "Connect" in text:
        return InputError(
            f"{name} cannot be read: its host does not answer; check the address and the network"
        )
    words = re.sub(r"\S*://\S*", "...", text.partition("\n")[0])
    return BusyError(f"{name} cannot be read{tries} ({words}); try again later, or download it")
