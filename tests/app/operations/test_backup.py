"""A backup holds every file of an instance, and fills another one with the same; what is damaged is told."""

import hashlib
import io
import json
import os
import secrets
import tarfile

import pytest

from app.assets import assets, inspections, uploads
from app.jobs import claims, ingest, lifecycle
from app.jobs.leases import log_key
from app.operations.backup import MANIFEST, BadBackup, Unreadable, check, load, main, save
from app.platform.settings import Settings
from app.schemas.job_request import parse_request
from app.storage import LocalStore, StorageUnavailable, open_store
from app.tables import Checkpoint
from core.schema import events as reported
from core.schema.dataset_spec import DatasetSpec
from tests.support import forked
from tests.support.instance import DIGITS, add_project
from tests.support.unprivileged import open_folder, unprivileged

KEY = "jobs/job_1/attempts/1/checkpoint.safetensors"


@pytest.fixture(params=["local", "s3"])
def made(request, tmp_path):
    """Settings of instances, each with files of its own."""

    def make(name):
        bucket = request.getfixturevalue("s3_server").create_bucket() if request.param == "s3" else {}
        settings = Settings(data_dir=tmp_path / name, **bucket)
        settings.make_folders()
        return settings, open_store(settings)

    return make


def put(store, folder, key, content):
    source = folder / secrets.token_hex(4)
    source.write_bytes(content)
    store.put(key, source)


def content_of(store):
    return {key: b"".join(store.read(key)) for key in store.keys()}  # noqa: SIM118


def saved(settings, store):
    stream = io.BytesIO()
    save(settings, store, stream)
    return stream.getvalue()


def test_what_was_saved_is_loaded_bit_for_bit(made, tmp_path):
    (settings, store), (others, other) = made("one"), made("other")
    put(store, tmp_path, KEY, secrets.token_bytes(3_000_000))
    put(store, tmp_path, "jobs/job_1/attempts/1/report.json", b"")
    (settings.datasets_dir / "birds" / "train").mkdir(parents=True)
    (settings.datasets_dir / "birds" / "train" / "a b.png").write_bytes(b"png")
    (settings.models_dir / "mine.safetensors").write_bytes(b"weights")
    (settings.work_dir / "job_1").mkdir()
    (settings.work_dir / "job_1" / "scratch").write_bytes(b"of no use")
    backup = saved(settings, store)
    for _ in range(2):  # one that was cut off is begun again
        assert load(others, other, io.BytesIO(backup)) == 4
    assert content_of(other) == content_of(store)
    assert (others.datasets_dir / "birds" / "train" / "a b.png").read_bytes() == b"png"
    assert (others.models_dir / "mine.safetensors").read_bytes() == b"weights"
    assert list(others.work_dir.iterdir()) == []
    assert saved(others, other) == backup


def test_manifest_names_the_hash_of_every_file(made, tmp_path):
    settings, store = made("one")
    put(store, tmp_path, KEY, b"weights")
    with tarfile.open(fileobj=io.BytesIO(saved(settings, store))) as tar:
        manifest = json.load(tar.extractfile(MANIFEST))
    assert manifest == {"format": 1, "sha256": {f"objects/{KEY}": hashlib.sha256(b"weights").hexdigest()}}


def test_damage_is_told(made, tmp_path):
    (settings, store), (others, other) = made("one"), made("other")
    put(store, tmp_path, KEY, b"weights" * 100_000)
    backup = saved(settings, store)
    at = backup.index(b"weights") + 1
    with pytest.raises(BadBackup, match=r"checkpoint\.safetensors does not match its sha256 in the manifest"):
        load(others, other, io.BytesIO(backup[:at] + b"E" + backup[at + 1 :]))


@pytest.fixture
def backup(tmp_path):
    settings = Settings(data_dir=tmp_path / "small")
    settings.make_folders()
    store = LocalStore(settings.objects_dir)
    put(store, tmp_path, KEY, b"weights")
    return saved(settings, store)


@pytest.fixture
def empty(tmp_path):
    settings = Settings(data_dir=tmp_path / "empty")
    settings.make_folders()
    return settings, LocalStore(settings.objects_dir)


def test_a_stream_that_is_cut_off_is_refused(backup, empty):
    with pytest.raises((BadBackup, tarfile.TarError)):
        load(*empty, io.BytesIO(backup[:1200]))
    end = backup.index(MANIFEST.encode())
    with pytest.raises((BadBackup, tarfile.TarError)):
        load(*empty, io.BytesIO(backup[:end] + b"\0" * 1024))


@pytest.mark.parametrize("name", ["objects/../../etc/passwd", "models/../../x", "/etc/passwd", "work/x", "models"])
def test_a_name_that_leads_out_is_refused(empty, tmp_path, name):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(BadBackup, match=r"is outside the models and datasets folders|not an object key"):
        load(*empty, io.BytesIO(stream.getvalue()))
    assert not (tmp_path / "x").exists()


def test_a_link_is_refused(empty):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        entry = tarfile.TarInfo("models/link")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry)
    with pytest.raises((BadBackup, tarfile.TarError)):
        load(*empty, io.BytesIO(stream.getvalue()))


def test_an_object_deleted_meanwhile_is_left_out_and_a_lost_store_is_not(empty, tmp_path, monkeypatch):
    settings, store = empty
    for key in ("a/1", "a/2", "a/3"):
        put(store, tmp_path, key, b"x")
    read = store.read

    def read_without_the_second(key):
        if key == "a/2":
            store.delete(key)
        return read(key)

    monkeypatch.setattr(store, "read", read_without_the_second)
    with tarfile.open(fileobj=io.BytesIO(saved(settings, store))) as tar:
        assert tar.getnames() == ["objects/a/1", "objects/a/3", MANIFEST]
    (settings.objects_dir / "a" / "3").chmod(0)
    monkeypatch.setattr(store, "read", lambda key: (_ for _ in ()).throw(StorageUnavailable(f"{key}: gone away")))
    with pytest.raises(StorageUnavailable, match="gone away"):
        saved(settings, store)


def test_rows_without_their_object_are_told(settings, database, tmp_path):
    store = open_store(settings)
    project = add_project(database)
    with database.writing() as session:
        lifecycle.create(session, project.id, parse_request(DIGITS))
        claim = claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy.of(settings))
        for name in ("whole", "damaged", "gone"):
            session.add(
                Checkpoint(
                    job_id=claim.job_id,
                    attempt=claim.attempt,
                    step=1,
                    epoch=1,
                    key=f"k/{name}",
                    size=len(name),
                    sha256=hashlib.sha256(name.encode()).hexdigest(),
                )
            )
    put(store, tmp_path, "k/whole", b"whole")
    put(store, tmp_path, "k/damaged", b"demaged")
    damaged, gone = sorted(check(database, store))
    assert damaged == "checkpoints: k/damaged is not what the database says"
    assert gone.startswith("checkpoints: k/gone: ")


def test_check_reports_missing_objects_and_reads_each_object_once(settings, database, tmp_path, monkeypatch):
    store = open_store(settings)
    project = add_project(database)
    with database.writing() as session:
        upload = uploads.create(
            session,
            project.id,
            filename="birds.zip",
            size=4,
            sha256=hashlib.sha256(b"zip!").hexdigest(),
            purpose="dataset",
            part_size=4,
            seconds=60,
        )
        upload.status = "completed"
        session.flush()
        dataset = assets.add_dataset(session, project.id, "birds", upload, DatasetSpec())
        dataset.status, dataset.report_prefix = "ready", inspections.prefix("dataset", dataset.id, 1)
        lifecycle.create(session, project.id, parse_request(DIGITS))
        claim = claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy.of(settings))
        sha256 = hashlib.sha256(b"{}").hexdigest()
        report = reported.Saved(kind="report", path="x", sha256=sha256, size=2, step=0, epoch=0.0)
        ingest.save(session, claim, report, key=f"{claim.prefix}/report.json")
        for _ in range(3):
            ingest.add_log(session, claim, size=1)
    found = f"{dataset.report_prefix}/{inspections.REPORT}"
    logs = [log_key(claim.job_id, claim.attempt, part) for part in (1, 2, 3)]
    contents = {uploads.key(upload): b"zip!", f"{claim.prefix}/report.json": b"{}", found: b"{}"}
    contents |= dict.fromkeys(logs, b"x")
    for key, content in contents.items():
        put(store, tmp_path, key, content)
    with monkeypatch.context() as patched:
        read, asked = store.read, []
        patched.setattr(store, "read", lambda key: [asked.append(key), read(key)][1])
        assert check(database, store) == []
    assert sorted(asked) == sorted([uploads.key(upload), f"{claim.prefix}/report.json"])
    for key in contents:
        store.delete(key)
        assert [key in line for line in check(database, store)] == [True]
        put(store, tmp_path, key, contents[key])
    store.delete(f"{claim.prefix}/report.json")
    put(store, tmp_path, f"{claim.prefix}/report.json", b"[]")
    assert check(database, store) == [f"jobs: {claim.prefix}/report.json is not what the database says"]


def test_check_tells_a_loss_from_a_database_that_it_cannot_read(settings, database, tmp_path):
    def asked():
        environment = {**os.environ, "TEMPER_DATA_DIR": str(settings.data_dir), "TEMPER_DATABASE_URL": url}
        return forked.run(["-m", "app.operations.backup", "check"], tmp_path, cwd=tmp_path, env=environment)

    url = settings.database_url
    assert asked().returncode == 0
    url = f"sqlite:///{tmp_path}/empty.db"
    unread = asked()
    assert (unread.returncode, "the database cannot be read" in unread.stderr) == (1, True)
    assert "Traceback" not in unread.stderr


def test_files_that_may_not_be_read_are_named_before_anything_is_written(monkeypatch, capsys):
    with open_folder() as folder:
        settings = Settings(data_dir=folder)
        settings.make_folders()
        folder.chmod(0o755)
        (settings.models_dir / "fine.safetensors").write_bytes(b"weights")
        (settings.models_dir / "gone.safetensors").symlink_to("nowhere")
        closed = settings.models_dir / "closed.safetensors"
        closed.write_bytes(b"weights")
        closed.chmod(0)
        # What lies in a folder that cannot be listed would be missing without a word.
        birds = settings.datasets_dir / "birds"
        (birds / "train").mkdir(parents=True)
        birds.chmod(0)
        stream = io.BytesIO()
        with unprivileged(), pytest.raises(Unreadable) as refused:
            save(settings, open_store(settings), stream)
        assert str(refused.value).splitlines() == [f"{birds}: Permission denied", f"{closed}: Permission denied"]
        assert not stream.getvalue()
        monkeypatch.setenv("TEMPER_DATA_DIR", str(folder))
        with unprivileged(), pytest.raises(SystemExit) as told:
            main(["save"])
        assert f"{closed}: Permission denied\ngive everybody the right to read them" in str(told.value)
        assert not capsys.readouterr().out
        closed.chmod(0o644)
        birds.chmod(0o755)
        with unprivileged():
            assert save(settings, open_store(settings), stream) == 2
