"""An address of a store on a server enters, with its options; a name without secrets leaves.

The client that reads there is obstore's, which takes credentials from the environment.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from streamtrain.errors import InputError, near

SCHEMES = ("s3", "gs", "az", "http", "https")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")

# Options of the HTTP client, which obstore keeps apart from those of a store.
_CLIENT = {
    "allow_http", "allow_invalid_certificates", "connect_timeout", "default_headers", "http1_only",
    "http2_only", "pool_idle_timeout", "pool_max_idle_per_host", "proxy_ca_certificate",
    "proxy_excludes", "proxy_url", "randomize_addresses", "read_timeout", "root_certificate",
    "timeout", "user_agent",
}  # fmt: skip

# Where no credentials are, a store would ask the metadata service of a cloud for them: off the
# cloud that fails, and public data needs none.
_CREDENTIALS = {
    "s3": (
        "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    "gs": (
        "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY", "SERVICE_ACCOUNT", "GOOGLE_SKIP_SIGNATURE",
    ),
    "az": (
        "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN",
        "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_USE_AZURE_CLI", "AZURE_SKIP_SIGNATURE",
    ),
}  # fmt: skip
_GCLOUD = ".config/gcloud/application_default_credentials.json"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a store or a file lies on a server; shown without its secrets.

    Parameters
    ----------
    url
        s3://, gs://, az://, https:// or http://.
    options
        Settings of obstore's store (credentials, region, endpoint) and of its HTTP client.

    Raises
    ------
    InputError
        Where the address is of another kind or names no host or bucket.
    """

    url: str = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        scheme = self.scheme
        if scheme not in SCHEMES:
            raise InputError(
                f"{self.name}: {scheme}:// is no kind of address that can be read; there are "
                f"{', '.join(f'{s}://' for s in SCHEMES)} and paths"
            )
        if not self._parts.netloc.rpartition("@")[2]:
            what = "host" if scheme.startswith("http") else "bucket"
            raise InputError(f"{self.name} names no {what}: write {scheme}://{what.upper()}/PATH")

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Address({self.name!r})"

    @property
    def _parts(self) -> SplitResult:
        return urlsplit(self.url)

    @property
    def scheme(self) -> str:
        """What stands before "://", in lower case."""
        return self._parts.scheme.lower()

    @property
    def name(self) -> str:
        """The address without user, password and query, which may be secret."""
        parts = self._parts
        host = parts.netloc.rpartition("@")[2]
        return f"{self.scheme}://{host}{unquote(parts.path)}".rstrip("/")

    @property
    def suffix(self) -> str:
        """Ending of the path, in lower case: ".h5ad"."""
        return os.path.splitext(self._parts.path.rstrip("/"))[1].lower()  # noqa: PTH122 - no path

    def store(self, retries: int, within: timedelta) -> Any:
        """Make obstore's client; it connects when it reads.

        Parameters
        ----------
        retries
            How often a request is repeated at most, after 0.1 s, 0.2 s, 0.4 s and so on, up to
            10 s, each drawn anew so that many readers do not come back at once.
        within
            Time after which it is not repeated.

        Raises
        ------
        InputError
            For an option that there is not.
        """
        from obstore.exceptions import BaseError
        from obstore.store import HTTPStore, from_url

        client: Any = {
            # Plain HTTP was asked for, in the address or the endpoint, or it is not used.
            "allow_http": True,
            "connect_timeout": timedelta(seconds=10),
            "read_timeout": timedelta(seconds=30),
            "timeout": timedelta(minutes=5),
        } | {key: value for key, value in self.options.items() if key in _CLIENT}
        config = {key: value for key, value in self.options.items() if key not in _CLIENT}
        retry: Any = {
            "max_retries": retries,
            "retry_timeout": within,
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=10),
                "base": 2,
            },
        }
        try:
            if self.scheme.startswith("http"):
                if config:
                    raise _unknown(next(iter(config)), self.scheme)
                url, client = self._without_user(client)
                return HTTPStore(url, client_options=client, retry_config=retry)
            if self._is_anonymous(config):
                config["skip_signature"] = True
            return from_url(self.url, config=config, client_options=client, retry_config=retry)  # type: ignore[call-overload]
        except (BaseError, ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            key = re.search(r"Configuration key: '([^']*)'", str(error))
            if key:
                raise _unknown(key[1], self.scheme) from None
            words = re.sub(r"\S*://\S*", "...", str(error).partition("\n")[0])
            for value in map(str, self.options.values()):  # they may be secret
                if len(value) > 3:  # shorter ones stand in other words, too
                    words = words.replace(value, "...")
            raise InputError(
                f"{self.name} cannot be opened with these storage_options: {words}"
            ) from None

    def _without_user(self, client: dict[str, Any]) -> tuple[str, Any]:
        """Move user and password into a header: the client would leave them out."""
        user, _, host = self._parts.netloc.rpartition("@")
        path = self._parts.path.rstrip("/")
        url = self._parts._replace(netloc=host, path=path, fragment="").geturl()
        if user:
            token = base64.b64encode(unquote(user).encode()).decode()
            headers = {"Authorization": f"Basic {token}"} | dict(client.get("default_headers", {}))
            client = client | {"default_headers": headers}
        return url, client

    def _is_anonymous(self, config: Mapping[str, Any]) -> bool:
        """Whether nobody gave credentials."""
        words = ("key", "token", "secret", "credential", "service_account", "skip_signature")
        given = any(word in key.lower() for key in config for word in words)
        known = any(os.environ.get(name) for name in _CREDENTIALS[self.scheme])
        gcloud = self.scheme == "gs" and (Path.home() / _GCLOUD).is_file()
        return not (given or known or gcloud)


def located(X: Any, storage_options: Mapping[str, Any] | None = None) -> Any:
    """Turn addresses into `Address`, in a list too; paths and objects are left as they are.

    Raises
    ------
    InputError
        For an address of a kind that cannot be read, or one that passed through `Path`.
    """
    if not isinstance(storage_options, Mapping | None):
        raise InputError(
            "storage_options must be a dict, such as {'region': 'eu-west-1'}; got "
            f"{storage_options!r}"
        )
    if isinstance(X, list | tuple):
        return [located(item, storage_options) for item in X]
    if isinstance(X, str) and _URL.match(X):
        return Address(X, dict(storage_options or {}))
    # Path("https://host/x") is "https:/host/x", which no file has as its path.
    if isinstance(X, os.PathLike) and re.match(rf"({'|'.join(SCHEMES)}):/", os.fspath(X)):
        raise InputError(
            f"an address on a server must be passed as text, not as a Path; got {str(X)!r}"
        )
    return X


def _unknown(key: str, scheme: str) -> InputError:
    known = f"see obstore's settings of {scheme}://"
    if scheme.startswith("http"):
        known = near(key, sorted(_CLIENT))
    return InputError(f"storage_options has {key!r}, which {scheme}:// does not know: {known}")
