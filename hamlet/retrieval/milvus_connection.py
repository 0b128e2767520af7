"""Reaching Milvus: the embedded Milvus Lite, which keeps a local folder, or a server."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMES = ("milvus", "http", "https")


@dataclass(frozen=True)
class Address:
    """Where a collection is.

    >>> Address.parse("milvus://photos.db")
    Address(uri='photos.db', collection='hamlet')
    >>> Address.parse("milvus://10.0.0.5:19530/photos")
    Address(uri='http://10.0.0.5:19530', collection='photos')
    """

    uri: str
    collection: str

    @classmethod
    def parse(cls, text: str) -> Address:
        # First, for any other message would show it.
        if set("@?#") & set(text):
            raise ValueError("store: got an address with a password in it, expected it in the variable MILVUS_TOKEN")
        scheme, _, rest = text.partition("://")
        if scheme == "milvus" and rest.endswith(".db") and ":" not in rest:
            return cls(rest, "hamlet")
        server, _, collection = rest.partition("/")
        collection = collection.rstrip("/")
        host = re.fullmatch(r"(?:[^:\[\]\s]+|\[[\da-fA-F:.]+\])(?::(\d{1,5}))?", server)
        known = scheme in SCHEMES and host and 0 < int(host[1] or 1) < 65_536
        if not known or not re.fullmatch(r"[A-Za-z_]\w{0,200}", collection, re.ASCII):
            raise ValueError(
                f"{text}: expected milvus://FOLDER.db for Milvus Lite, or milvus://HOST:PORT/COLLECTION, the same with "
                "http or https, for a server; a collection's name has letters, digits and underscores"
            )
        return cls(f"{'http' if scheme == 'milvus' else scheme}://{server}", collection)

    @property
    def local(self) -> bool:
        return "://" not in self.uri

    def __str__(self) -> str:
        return f"milvus://{self.uri}" if self.local else f"{self.uri}/{self.collection}"


def connect(address: Address) -> Any:
    """A client of the Milvus there; ImportError without pymilvus."""
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise ImportError(f"{address}: needs pymilvus; pip install 'hamlet[milvus]'") from error
    # They print tracebacks of errors that are raised, and told in one line, anyway.
    for name in ("pymilvus", "milvus_lite", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if address.local:
        Path(address.uri).parent.mkdir(parents=True, exist_ok=True)
    token = os.environ.get("MILVUS_TOKEN", "")
    if token and address.uri.startswith("http://"):
        warnings.warn(f"{address}: MILVUS_TOKEN goes there unencrypted; use https://", stacklevel=4)
    return MilvusClient(address.uri, token=token)


def disconnect(client: Any, address: Address) -> None:
    """Close a client; and Milvus Lite, for all of this process."""
    client.close()
    if address.local:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(address.uri)


@contextmanager
def telling(address: Address) -> Iterator[None]:
    """Tell Milvus's errors as a ValueError about the address."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "pymilvus":
            raise
        message = " ".join(str(getattr(error, "message", "") or error).split())
        for secret in filter(None, {(token := os.environ.get("MILVUS_TOKEN", "")), token.partition(":")[2]}):
            message = message.replace(secret, "***")
        message = message[:300]
        if address.local and "local milvus" in message:
            message += (
                "; does another process have it open? If none has, it is damaged: remove it, and make the index again "
                "with `hamlet index --store`"
            )
        raise ValueError(f"{address}: Milvus says: {message}") from error
