"""A job whose files lie in a real S3 server: stored, read back, checked, and fetched from there."""

import hashlib
import json
from contextlib import closing

import httpx2
import pytest

from app.assets.registry import Registry
from app.jobs import claims, lifecycle
from app.platform.settings import Settings
from app.schemas.job_request import parse_request
from app.storage import open_store
from client import Temper
from tests.support.fake_worker import fake_command
from tests.support.instance import DIGITS, add_key, serving
from worker.attempt import run
from worker.workplace import Workplace


@pytest.fixture(scope="module")
def bucket(s3_server):
    return s3_server.create_bucket()


@pytest.fixture
def workplace(settings, database, bucket):
    """A worker's workplace with the fake trainer, before a bucket."""
    settings = Settings(**{**settings.model_dump(), **bucket})
    with closing(open_store(settings)) as store:
        registry = Registry(settings.models_dir, settings.datasets_dir)
        yield Workplace(settings, database, store, registry, fake_command)


def run_job(workplace, project):
    with workplace.database.writing() as session:
        job = lifecycle.create(session, project.id, parse_request(DIGITS)).job
    with workplace.database.writing() as session:
        claim = claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy(max_crashes=5))
    run(claim, workplace)
    return job.id


def test_a_job_delivers_to_the_bucket_and_its_checkpoint_comes_from_there(workplace, project, tmp_path):
    job_id = run_job(workplace, project)
    assert not list(workplace.settings.objects_dir.rglob("*"))
    prefix = f"jobs/{job_id}/attempts/1"
    delivered = [key for key in workplace.store.keys(f"jobs/{job_id}") if not key.startswith(f"{prefix}/logs/")]
    assert delivered == [f"{prefix}/checkpoint.safetensors", f"{prefix}/report.json"]
    key = add_key(workplace.database, project)
    with serving(workplace.settings, workplace.database) as url, Temper(url, key) as temper:
        assert temper.jobs.get(job_id).status == "succeeded"
        (checkpoint,) = temper.checkpoints.list(job_id)
        content = temper.checkpoints.download(job_id, tmp_path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == checkpoint.sha256
        assert temper.jobs.report(job_id).after.union.value == 0.75
        with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as api:
            path = f"/checkpoints/{checkpoint.id}/download"
            sent_on = api.get(path)
            assert (sent_on.status_code, sent_on.headers["cache-control"]) == (307, "no-store")
            there = sent_on.headers["location"]
            assert there.startswith(workplace.settings.s3_endpoint_url)
            assert key not in there
            part = httpx2.get(there, headers={"Range": "bytes=10-19"})
            assert (part.status_code, part.content) == (206, content[10:20])
            assert f"{checkpoint.id}.safetensors" in part.headers["content-disposition"]
            head = api.head(path)
            assert (head.status_code, head.headers["content-length"]) == (200, str(len(content)))
            assert api.get("/checkpoints/ckpt_1/download").status_code == 404


def test_where_clients_do_not_reach_the_bucket_the_api_passes_the_bytes_on(workplace, project, tmp_path):
    job_id = run_job(workplace, project)
    proxied = workplace.settings.model_copy(update={"storage_proxy": True})
    key = add_key(workplace.database, project)
    with serving(proxied, workplace.database) as url, httpx2.Client(headers={"Authorization": f"Bearer {key}"}) as api:
        checkpoint = api.get(f"{url}/jobs/{job_id}").json()["checkpoint"]
        whole = api.get(f"{url}/checkpoints/{checkpoint}/download")
        assert whole.status_code == 200
        assert hashlib.sha256(whole.content).hexdigest() == whole.headers["x-checksum-sha256"]
        part = api.get(f"{url}/checkpoints/{checkpoint}/download", headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole.content[10:20])


def test_a_checkpoint_that_arrives_damaged_in_the_bucket_fails_the_job(workplace, project, monkeypatch):
    upload = workplace.store._s3.put_object

    def damaged(**request):
        body = bytes(request["Body"])
        request |= {"Body": bytes([body[0] ^ 1]) + body[1:]}
        request.pop("ChecksumSHA256")
        return upload(**request)

    monkeypatch.setattr(workplace.store._s3, "put_object", damaged)
    job_id = run_job(workplace, project)
    with workplace.database.reading() as session:
        job = session.get_one(lifecycle.Job, job_id)
        assert (job.status, job.checkpoint_id, job.failure["code"]) == ("failed", None, "storage_unavailable")
        assert "the stored content differs from what was sent" in json.dumps(job.failure)
