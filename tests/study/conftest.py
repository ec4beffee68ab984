"""An object store of our own, which speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from urllib.request import Request, urlopen

import pytest

_number = count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Its host and port."""
    from moto.server import ThreadedMotoServer  # whose loading every process of the tests would wait for

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urlopen(Request(f"http://{host}:{port}/bucket", method="PUT")).close()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str) -> str:
    """The URI of a folder there which nobody else uses."""
    place = f"bucket/studies/{next(_number)}"
    return f"s3://key:secret@{place}?scheme=http&region=us-east-1&endpoint_override={s3_server}"
