"""gcp_storage_emulator, a stand-in for Google Cloud Storage, with what it leaves out of the API and
a run relies on: conditional writes, the generation of what is read, and bounds of a listing.

https://cloud.google.com/storage/docs/json_api/v1/objects
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import HTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage


class ConditionError(Exception):
    """A write whose condition does not hold."""


class Objects(Storage):
    """Objects in memory. `query` is that of the request being served: they come one by one."""

    query: dict[str, list[str]] = {}

    def __init__(self) -> None:
        super().__init__(use_memory_fs=True)

    def _write_config_to_file(self) -> None:
        """All there is dies with the server."""

    def generation(self, bucket: str, name: str) -> str:
        return self.objects.get(bucket, {}).get(name, {}).get("generation", "0")

    def create_file(self, bucket, name, content, about, file_id=None) -> None:
        self._check(bucket, name)
        super().create_file(bucket, name, content, about, file_id)

    def delete_file(self, bucket, name) -> None:
        self._check(bucket, name)
        super().delete_file(bucket, name)

    def _check(self, bucket: str, name: str) -> None:
        wanted = self.query.get("ifGenerationMatch", [""])[0]
        if wanted and wanted != self.generation(bucket, name):
            raise ConditionError

    def get_file_list(self, *args, **kwargs):
        found, folders = super().get_file_list(*args, **kwargs)
        start, end = (self.query.get(name, [""])[0] for name in ("startOffset", "endOffset"))
        names = (about for about in found if about["name"] >= start)
        return [about for about in names if not end or about["name"] < end], folders


class Handler(RequestHandler):
    """Serves one request; TensorStore wants to know the generation of what it reads."""

    storage: Objects
    read = ""

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        address = urlsplit(self.path)
        self.storage.query = parse_qs(address.query)
        _, _, place = address.path.partition("/b/")
        bucket, _, name = place.partition("/o/")
        self.read = self.storage.generation(bucket, unquote(name)) if name else ""
        return True

    def end_headers(self) -> None:
        if self.command == "GET" and self.read:
            self.send_header("x-goog-generation", self.read)
        super().end_headers()

    def refusing(method):
        @functools.wraps(method)
        def refused(self) -> None:
            try:
                method(self)
            except ConditionError:
                self.send_error(HTTPStatus.PRECONDITION_FAILED)

        return refused

    do_POST = refusing(RequestHandler.do_POST)
    do_DELETE = refusing(RequestHandler.do_DELETE)


class Server(HTTPServer):
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        """A client that no longer waits for its answer is no news."""


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """The address of a server with no bucket in it."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = Server(("127.0.0.1", 0), functools.partial(Handler, Objects()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
