"""A store that is out of reach for a short time ends nothing: its client tries again."""

from __future__ import annotations

import http.server
import threading

import pytest

from tests.stores import S3
from unicom_jax.core import paths
from unicom_jax.core.paths import as_path


class Failing(http.server.BaseHTTPRequestHandler):
    """Refuses the first requests as a store does that is overloaded, and then answers."""

    protocol_version = "HTTP/1.1"
    left = 0

    def do_GET(self):
        cls = type(self)
        cls.left -= 1
        status, body = (503, b"") if cls.left >= 0 else (200, b"content")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def failing(monkeypatch):
    pytest.importorskip("s3fs")
    standard = pytest.importorskip("botocore.retries.standard")
    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda *_: 0.0)
    handler = type("Handler", (Failing,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in S3.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        paths._filesystem.cache_clear()
        yield handler
        server.shutdown()
    paths._filesystem.cache_clear()


def test_a_store_that_refuses_some_requests_is_asked_again(failing):
    failing.left = paths.RETRIES["total_max_attempts"] - 1
    assert as_path("s3://bucket/file").read_bytes() == b"content"
    assert failing.left < 0


def test_a_store_that_does_not_recover_is_an_error(failing):
    failing.left = 1000
    with pytest.raises(OSError, match="Service Unavailable"):
        as_path("s3://bucket/file").read_bytes()


def test_what_the_user_has_set_for_the_client_is_kept(failing, monkeypatch):
    own = {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}, "region_name": "x"}}}
    monkeypatch.setattr("fsspec.config.conf", own)
    failing.left = 1
    with pytest.raises(OSError, match="Service Unavailable"):
        as_path("s3://bucket/file").read_bytes()


def test_the_number_of_attempts_that_the_user_has_set_is_kept(failing, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    failing.left = 1
    with pytest.raises(OSError, match="Service Unavailable"):
        as_path("s3://bucket/file").read_bytes()
