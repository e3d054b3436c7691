"""A local stand-in for an object store: moto's S3 server, started by the tests that ask for it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from unicom_jax.core import paths

SETTINGS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@pytest.fixture(scope="session", name="server")
def running_server() -> Iterator[str]:
    """The address of a running S3 server, which s3fs, boto3 and TensorStore are given, too."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        paths._filesystem.cache_clear()
        yield f"http://{host}:{port}"
    paths._filesystem.cache_clear()
    running.stop()


@pytest.fixture(scope="module", name="bucket")
def bucket_of_module(server, request) -> str:
    """`s3://...`, an empty bucket of the module's own."""
    name = request.module.__name__.rpartition(".")[2].replace("_", "-")
    paths.filesystem("s3://").mkdir(name)
    return f"s3://{name}"


def put(folder: Path, address: str) -> str:
    """Uploads a folder and removes it here, so that nothing can be read from it by mistake."""
    paths.upload(folder, address)
    shutil.rmtree(folder)
    return address
