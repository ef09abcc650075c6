"""Whatever goes wrong in the scripts' tests, no real cloud hears of it."""

import os

import pytest
from hosts import program


@pytest.fixture(scope="package", autouse=True)
def no_cloud(tmp_path_factory):
    folder = tmp_path_factory.mktemp("no_cloud")
    for name in ("gcloud", "curl", "sky"):
        program(folder / name, f"#!/bin/sh\necho '{name} was called' >&2\nexit 99\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield
