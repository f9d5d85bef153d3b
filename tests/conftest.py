"""Fixtures: a small real model with its images, and the shared material where it lies beside the checkout."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never touch the user's cache or options."""
    for name in [name for name in os.environ if name.startswith("IMU_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("IMU_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared material; tests that need it skip in a clone without it."""
    if not SHARED.is_dir():
        pytest.skip("../shared is not here")
    return SHARED
