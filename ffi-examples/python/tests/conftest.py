import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import inflight  # noqa: E402


@pytest.fixture(scope="session")
def device():
    with inflight.Device.cpu(threads=2) as device:
        yield device
