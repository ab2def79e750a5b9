"""A child process of the worker has an environment of what it needs, and not of what the worker was given."""

from pathlib import Path

import pytest

from worker.processes.child_environment import child_environment

GIVEN = {
    "TEMPER_DATABASE_URL": "postgresql+psycopg://temper:hush@db/temper",
    "PGPASSWORD": "hush",
    "AWS_SECRET_ACCESS_KEY": "hush",
    "DATABASE_URL": "postgres://temper:hush@db/temper",  # a name that no list of forbidden ones would have
    "TORCH_TOKEN": "hush",
    "HTTPS_PROXY": "http://user:hush@proxy",
    "CREDENTIALS_DIRECTORY": "/run/credentials",
    "OMP_NUM_THREADS": "7",
    "CUDA_VISIBLE_DEVICES": "1",
    "TORCHINDUCTOR_CACHE_DIR": "/shared",
    "NCCL_DEBUG": "INFO",
    "HOME": "/home/temper",
}


@pytest.fixture(autouse=True)
def _given(monkeypatch):
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)


def test_a_run_has_the_variables_of_libraries_and_no_secret():
    made = child_environment(Path("/tmp/own"))
    assert not any("hush" in value for value in made.values())
    assert not any(name.startswith(("TEMPER", "PG", "AWS", "CREDENTIALS")) for name in made)
    assert (made["OMP_NUM_THREADS"], made["CUDA_VISIBLE_DEVICES"], made["NCCL_DEBUG"]) == ("7", "1", "INFO")
    assert made["HOME"] == "/home/temper"


def test_no_run_leaves_code_for_another_in_a_shared_cache():
    made = child_environment(Path("/tmp/own"))
    caches = ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME")
    assert all(made[name].startswith("/tmp/own") for name in caches)


def test_a_process_that_reads_untrusted_files_has_one_thread_and_no_gpu():
    made = child_environment(Path("/tmp/own"), untrusted=True)
    assert (made["OMP_NUM_THREADS"], made["CUDA_VISIBLE_DEVICES"]) == ("1", "")
    assert "NCCL_DEBUG" not in made


def test_only_a_download_has_the_proxy():
    assert "HTTPS_PROXY" not in child_environment(Path("/tmp/own"))
    assert child_environment(Path("/tmp/own"), online=True)["HTTPS_PROXY"] == "http://user:hush@proxy"
