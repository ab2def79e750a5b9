"""What a release runs: images pinned by digest, and bills of materials."""

import json
import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("docker-compose.yml", "Dockerfile.gpu")
REGISTRY = """#!/bin/sh
for image; do :; done
[ "$image" != "$MISSING" ] || exit 1
printf 'sha256:%s\\n' "$(printf %s "$image$SALT" | sha256sum | cut -d' ' -f1)"
"""
"""A `docker` whose registry derives each digest from the image's name."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "deploy").mkdir()
    for name in (*FILES, "deploy/pin"):
        shutil.copy(ROOT / name, tmp_path / name)
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(REGISTRY)
    docker.chmod(0o755)
    return tmp_path


def pin(checkout: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    path = f"{checkout / 'bin'}:{os.environ['PATH']}"
    command, given = [checkout / "deploy" / "pin"], {"PATH": path, **environment}
    return subprocess.run(command, env=given, check=False, capture_output=True, text=True)


def contents(checkout: Path) -> list[str]:
    return [(checkout / name).read_text() for name in FILES]


def digest(image: str, salt: str = "") -> str:
    return "sha256:" + sha256(f"{image}{salt}".encode()).hexdigest()


def test_each_image_of_others_gets_its_digest_and_nothing_else_changes(checkout: Path) -> None:
    before = contents(checkout)
    assert pin(checkout).returncode == 0
    for old, new in zip(before, contents(checkout), strict=True):
        assert re.sub("@sha256:[0-9a-f]{64}", "", new) == old
        pinned = dict(re.findall(r"(\S+)@(sha256:\S+)", new))
        assert pinned == {image: digest(image) for image in re.findall(r"(?:image:|FROM) ([^\s$]+:[^\s$]+)\s", old)}
        assert pinned


def test_images_pinned_before_get_the_digests_of_today(checkout: Path) -> None:
    pin(checkout)
    once = contents(checkout)
    pin(checkout)
    assert contents(checkout) == once
    pin(checkout, SALT="later")
    for content in contents(checkout):
        pinned = re.findall(r"(\S+)@(sha256:\S+)", content)
        assert all(found == digest(image, "later") for image, found in pinned)


@pytest.mark.parametrize("missing", ["postgres:18.4", "valkey/valkey:9.1.2"])
def test_an_image_without_a_digest_leaves_all_files_as_they_are(checkout: Path, missing: str) -> None:
    before = contents(checkout)
    done = pin(checkout, MISSING=missing)
    assert done.returncode == 1
    assert f"no digest of {missing}: nothing was changed" in done.stderr
    assert contents(checkout) == before


@pytest.mark.parametrize("name", ["api", "worker"])
def test_the_bill_of_materials_names_each_locked_package_with_its_hashes(tmp_path: Path, name: str) -> None:
    lock, bill = ROOT / "deploy" / f"{name}.lock", tmp_path / "bill.json"
    program = Path(sys.executable).with_name("cyclonedx-py")
    # `make bill` validates the result against the schema of CycloneDX, too, which takes some seconds.
    options = ["requirements", "--no-validate", "--output-reproducible", "--output-file", bill]
    subprocess.run([program, *options, lock], check=True, capture_output=True)
    hashes = {
        f"{each['name']}=={each['version']}": {
            found["content"] for reference in each["externalReferences"] for found in reference["hashes"]
        }
        for each in json.loads(bill.read_text())["components"]
    }
    entries = [entry for entry in re.split(r"\n(?=[a-z0-9])", lock.read_text()) if "==" in entry]
    assert hashes == {entry.split()[0]: set(re.findall("sha256:([0-9a-f]{64})", entry)) for entry in entries}
