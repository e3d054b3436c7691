"""Local stand-ins for object stores, started by the tests that ask for one: moto's S3 server, and
gcp_storage_emulator with the conditions that `tests/gcs.py` adds to it."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unicom_jax.core import paths

S3 = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
GS = {
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",  # TensorStore's
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks about buckets by gRPC
    "NO_GCE_CHECK": "true",  # gcsfs would wait for the metadata server of a cloud machine
}


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield S3 | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    running.stop()


@contextlib.contextmanager
def gs_server() -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in GS.items():  # read when it is imported
            patch.setenv(name, value)
        pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    from tests.gcs import running_server

    with running_server() as address:
        yield GS | {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}


@pytest.fixture(scope="session", name="server")
def running_servers() -> Iterator[Callable[[str], dict[str, str]]]:
    """Starts the server of a scheme once, and says how s3fs, gcsfs and TensorStore are sent there:
    by variables of the environment."""
    start = {"s3": s3_server, "gs": gs_server}
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda scheme: stack.enter_context(start[scheme]()))


@pytest.fixture(scope="module", name="bucket", params=["s3", "gs"])
def bucket_of_module(server, request) -> Iterator[str]:
    """`s3://...` and `gs://...`, an empty bucket of the module's own."""
    name = request.module.__name__.rpartition(".")[2].replace("_", "-")
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in server(request.param).items():
            patch.setenv(variable, value)
        paths._filesystem.cache_clear()
        paths.filesystem(f"{request.param}://").mkdir(name)
        yield f"{request.param}://{name}"
    paths._filesystem.cache_clear()


def put(folder: Path, address: str) -> str:
    """Uploads a folder and removes it here, so that nothing can be read from it by mistake."""
    paths.upload(folder, address)
    shutil.rmtree(folder)
    return address
