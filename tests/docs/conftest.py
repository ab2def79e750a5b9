"""A folder with the files that the documentation names, and a live service for its sessions."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import torch

from core.models import Blueprint, build
from tests.support import images
from tests.support.documentation import ROOT
from tests.support.native import instance
from tests.support.webhook_receiver import receiver

DOCUMENTED_URL, DOCUMENTED_RECEIVER = "http://127.0.0.1:8765", "https://example.com/temper"
_WORKER = ("-m", "tests.support.documented_worker")
_ID = re.compile(r"\b(OTHER_)?([A-Z]+)_ID\b")
_LISTS = {"JOB": "jobs", "KEY": "api_keys", "PROJECT": "projects", "WEBHOOK": "webhooks"}


@dataclass
class Site:
    """A live service whose jobs end at once, as one user sees it."""

    url: str
    receiver: str
    """An address that takes every message."""
    home: Path
    api: httpx2.Client

    def fill_in(self, text: str) -> str:
        """Put this service's address in place of the documented one, and ids in place of JOB_ID and its like."""
        here = text.replace(DOCUMENTED_URL, self.url).replace(DOCUMENTED_RECEIVER, self.receiver)
        return _ID.sub(self._find, here)

    def _find(self, match: re.Match[str]) -> str:
        """Find the newest of a kind, or the one before it."""
        if match[2] == "CHECKPOINT":
            return str(self._rows("jobs")[0]["checkpoint"])
        if match[2] == "DELIVERY":
            return str(self._rows(f"webhooks/{self._rows('webhooks')[0]['id']}/deliveries")[0]["id"])
        return str(self._rows(_LISTS[match[2]])[1 if match[1] else 0]["id"])

    def _rows(self, path: str) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = self.api.get(f"/{path}").raise_for_status().json()["data"]
        return sorted(rows, key=lambda row: str(row["id"]), reverse=True)

    def tidy_up(self) -> None:
        """Remove what would send messages when later jobs end."""
        for row in self._rows("webhooks"):
            self.api.delete(f"/webhooks/{row['id']}").raise_for_status()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One service for all pages."""
    folder = tmp_path_factory.mktemp("site")
    with (
        receiver() as listening,
        instance(folder, *_WORKER, webhook_allow="localhost", webhook_http="true") as running,
    ):
        running.start_api()
        running.start_worker()
        home = folder / "home"
        (home / ".temper").mkdir(parents=True)
        credentials = json.loads(running.credentials.read_text()) | {"url": running.url}
        (home / ".temper" / "credentials.json").write_text(json.dumps(credentials))
        with running.client() as api:
            yield Site(running.url, listening.url("localhost"), home, api)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a page's blocks run: a checkout's examples, a data set and weights of the reader's own."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(_archive(tmp_path), tmp_path / "birds.zip")
    images.write(_photos(), tmp_path / "photos", "folder")
    torch.manual_seed(0)
    model = build(Blueprint("preact-resnet-8", (3, 16, 16), 2))
    torch.save(model.state_dict(), tmp_path / "birds.pt")
    monkeypatch.chdir(tmp_path)
    # As `python -m` has the current folder.
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def _photos() -> dict[str, bytes]:
    return {
        f"{label}/{number}.jpg": images.image(90 * row + 10 * number, size=(30 + number, 50 - number), kind="JPEG")
        for row, label in enumerate(("cat", "dog"))
        for number in range(10)
    }


def _archive(folder: Path) -> Path:
    files = {
        f"{part}/{label}/{number}.png": images.image(90 * row + 10 * number + (part == "test"), size=(16, 16))
        for row, label in enumerate(("finch", "wren"))
        for part in ("train", "test")
        for number in range(8)
    }
    return images.write(files, folder, "zip")
