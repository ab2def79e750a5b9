"""Webhooks through the API: making, changing, testing, looking at what was sent, sending again."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest
from sqlalchemy import select
from standardwebhooks import Webhook as Verifier

from app.platform.database import THREADS
from app.tables import Delivery
from app.webhooks import subscriptions, url_policy
from tests.support.instance import DIGITS, add_key, add_project, calling, new_instance, serving
from tests.support.webhook_receiver import receiver

URL = "https://93.184.216.34/hook"


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def instance(request, tmp_path_factory):
    """An instance whose operator lets webhooks go to this machine by name, on each database."""
    chosen = {"webhook_http": True, "webhook_allow": ("localhost",)}
    if request.param == "postgres":
        chosen["database_url"] = request.getfixturevalue("postgres_server").create_database("webhooks")
    with new_instance(tmp_path_factory.mktemp("webhooks"), **chosen) as made:
        yield made


@pytest.fixture(scope="session")
def server(instance):
    """A server of its own, for the one that all tests share is another instance's."""
    with serving(*instance) as url:
        yield url


@pytest.fixture
def hook(api):
    return api.post("/webhooks", json={"url": URL}).json()


@pytest.fixture
def stranger(url, database):
    """A client of another project."""
    with calling(url, add_key(database, add_project(database))) as client:
        yield client


def settled(api, here, *, attempts, status="succeeded"):
    """Wait until the newest delivery has come to this by so many attempts."""
    deadline = time.monotonic() + 60
    while True:
        delivery = api.get(here).json()["data"][0]
        done = status != "pending" or delivery["error"]
        if (delivery["attempts"], delivery["status"]) == (attempts, status) and done:
            return delivery
        assert time.monotonic() < deadline, delivery
        time.sleep(0.02)


def test_a_webhook_shows_its_secret_once(api):
    made = api.post("/webhooks", json={"url": URL, "description": "CI"})
    assert made.status_code == 201
    webhook = made.json()
    assert made.headers["location"] == f"/webhooks/{webhook['id']}"
    assert webhook["secret"].startswith("whsec_")
    assert webhook["events"] == ["job.succeeded", "job.failed", "job.cancelled"]
    shown = api.get(made.headers["location"]).json()
    assert shown == {name: value for name, value in webhook.items() if name != "secret"}
    assert api.get("/webhooks").json()["data"] == [shown]


def test_a_webhook_can_be_changed_and_deleted(api, hook):
    here = f"/webhooks/{hook['id']}"
    changed = api.patch(here, json={"events": [], "description": "none", "disabled": True}).json()
    assert (changed["events"], changed["description"], changed["url"]) == ([], "none", URL)
    assert (changed["disabled"], changed["disabled_reason"]) == (True, "requested")
    assert api.patch(here, json={"disabled": False}).json()["disabled_reason"] is None
    moved = api.patch(here, json={"url": "https://93.184.216.34:8443/"}).json()
    assert moved["url"] == "https://93.184.216.34:8443/"
    assert api.delete(here).status_code == 204
    assert api.get(here).status_code == 404
    assert api.delete(here).status_code == 404


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/url"),
        ({"url": 5}, "/url"),
        ({"url": "https://127.0.0.1/"}, "/url"),
        ({"url": "https://[::ffff:169.254.169.254]/"}, "/url"),
        ({"url": "https://a@93.184.216.34/"}, "/url"),
        ({"url": "https://93.184.216.34:22/"}, "/url"),
        ({"url": URL, "events": ["job.done"]}, "/events/0"),
        ({"url": URL, "events": "job.failed"}, "/events"),
        ({"url": URL, "description": "\x1b[2J"}, "/description"),
        ({"url": URL, "secret": "mine"}, "/secret"),
        ([], ""),
    ],
)
def test_a_bad_webhook_is_told_field_by_field(api, body, pointer):
    answer = api.post("/webhooks", json=body)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "invalid_body"
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert api.get("/webhooks").json()["data"] == []


def test_slow_name_lookups_delay_no_other_request(api, hook, monkeypatch):
    job = api.post("/jobs", json=DIGITS).json()
    asked, found = threading.Semaphore(0), threading.Event()

    def resolve(host, port):
        asked.release()
        found.wait(url_policy.LOOKUP_SECONDS)
        return [ip_address("93.184.216.34")]

    monkeypatch.setattr(url_policy, "resolve", resolve)
    requests = [
        ("POST", "/webhooks", lambda url: {"url": url}),
        ("PATCH", f"/webhooks/{hook['id']}", lambda url: {"url": url}),
        ("POST", "/jobs", lambda url: {**DIGITS, "webhook": {"url": url}}),
        ("POST", f"/jobs/{job['id']}/clone", lambda url: {"overrides": {"webhook": {"url": url}}}),
    ]

    def ask(number):
        method, path, body = requests[number % 4]
        return api.request(method, path, json=body(f"https://slow.test/{number}")).status_code

    # As many as there are threads, and twice as many as there are turns to write.
    with ThreadPoolExecutor(THREADS) as pool:
        answers = [pool.submit(ask, number) for number in range(THREADS)]
        assert all(asked.acquire(timeout=url_policy.LOOKUP_SECONDS / 2) for _ in answers), "some wait for others"
        assert api.post("/jobs", json=DIGITS).status_code == 201
        assert not any(answer.done() for answer in answers)
        found.set()
        assert {answer.result() for answer in answers} == {200, 201}


def test_a_change_to_null_is_refused_by_name_and_what_is_left_out_stays(api, hook):
    here = f"/webhooks/{hook['id']}"
    for field in ("url", "events", "description", "disabled"):
        answer = api.patch(here, json={field: None})
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == [f"/{field}"]
    unchanged = api.patch(here, json={}).json()
    assert {name: unchanged[name] for name in ("url", "events", "description", "disabled")} == {
        name: hook[name] for name in ("url", "events", "description", "disabled")
    }


def test_an_address_belongs_to_one_webhook_of_a_project(api, hook, stranger):
    answer = api.post("/webhooks", json={"url": URL})
    assert (answer.status_code, answer.json()["code"]) == (409, "webhook_exists")
    other = api.post("/webhooks", json={"url": URL + "2"}).json()
    answer = api.patch(f"/webhooks/{other['id']}", json={"url": URL})
    assert (answer.status_code, answer.json()["code"]) == (409, "webhook_exists")
    assert stranger.post("/webhooks", json={"url": URL}).status_code == 201


def test_webhooks_per_project_are_limited(api, settings):
    for number in range(subscriptions.MAX_WEBHOOKS):
        assert api.post("/webhooks", json={"url": f"{URL}/{number}"}).status_code == 201
    answer = api.post("/webhooks", json={"url": URL})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_webhooks")


def test_a_test_message_arrives_and_is_in_the_log(api):
    with receiver() as server:
        hook = api.post("/webhooks", json={"url": server.url("localhost")}).json()
        here = f"/webhooks/{hook['id']}"
        asked = api.post(f"{here}/test")
        assert asked.status_code == 202
        assert asked.json()["status"] == "pending"
        delivery = settled(api, f"{here}/deliveries", attempts=1)
        (message,) = server.got
    assert Verifier(hook["secret"]).verify(message.body, message.headers)["type"] == "webhook.test"
    assert delivery["id"] == asked.json()["id"] == message.id
    assert (delivery["response_status"], delivery["next_attempt_at"]) == (204, None)
    assert api.get(f"{here}/deliveries", params={"status": "failed"}).json()["data"] == []


def test_the_end_of_a_job_is_in_the_log_and_can_be_sent_again(api):
    with receiver(500, 204, 204) as server:
        hook = api.post("/webhooks", json={"url": server.url("localhost")}).json()
        here = f"/webhooks/{hook['id']}/deliveries"
        job_id = api.post("/jobs", json=DIGITS).json()["id"]
        api.post(f"/jobs/{job_id}/cancel")
        first = settled(api, here, attempts=1, status="pending")
        assert (first["type"], first["job_id"]) == ("job.cancelled", job_id)
        assert (first["status"], first["error"], first["response_status"]) == ("pending", "answered 500", 500)
        assert first["next_attempt_at"] is not None
        # The next attempt would be seconds away.
        assert api.post(f"{here}/{first['id']}/redeliver").status_code == 202
        settled(api, here, attempts=2)
        again = api.post(f"{here}/{first['id']}/redeliver").json()
        assert (again["status"], again["attempts"], again["error"]) == ("pending", 0, None)
        settled(api, here, attempts=1)
    assert [message.id for message in server.got] == [first["id"]] * 3


def test_nothing_is_asked_of_a_disabled_webhook(api, hook, database):
    here = f"/webhooks/{hook['id']}"
    delivery = api.post(f"{here}/test").json()
    api.patch(here, json={"disabled": True})
    for action in ("test", f"deliveries/{delivery['id']}/redeliver"):
        answer = api.post(f"{here}/{action}")
        assert (answer.status_code, answer.json()["code"]) == (409, "webhook_disabled")


def test_a_new_secret_takes_over_in_peace(api, hook):
    answer = api.post(f"/webhooks/{hook['id']}/rotate_secret")
    assert answer.status_code == 200
    assert answer.json()["secret"] != hook["secret"]
    assert answer.json()["previous_secret_until"] > answer.json()["updated_at"]


def test_deliveries_come_in_parts_newest_first(api, hook):
    here = f"/webhooks/{hook['id']}"
    made = [api.post(f"{here}/test").json()["id"] for _ in range(3)]
    first = api.get(f"{here}/deliveries", params={"limit": 2}).json()
    assert [each["id"] for each in first["data"]] == made[:0:-1]
    assert first["has_more"]
    rest = api.get(f"{here}/deliveries", params={"after": first["last_id"]}).json()
    assert [each["id"] for each in rest["data"]] == made[:1]


def test_a_foreign_webhook_cannot_be_told_from_a_missing_one(api, hook, stranger):
    delivery = api.post(f"/webhooks/{hook['id']}/test").json()["id"]
    missing, absent = "whk_01ARZ3NDEKTSV4RRFFQ69G5FAV", "dlv_01ARZ3NDEKTSV4RRFFQ69G5FAV"
    routes = [
        ("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/test"), ("POST", "/rotate_secret"),
        ("GET", "/deliveries"), ("POST", "/deliveries/{delivery}/redeliver"),
    ]  # fmt: skip
    for method, rest in routes:
        content = {"json": {}} if method == "PATCH" else {}
        theirs = stranger.request(method, f"/webhooks/{hook['id']}{rest.format(delivery=delivery)}", **content)
        none = stranger.request(method, f"/webhooks/{missing}{rest.format(delivery=absent)}", **content)
        assert theirs.status_code == none.status_code == 404
        same = {"detail", "instance", "request_id"}
        assert {k: v for k, v in theirs.json().items() if k not in same} == {
            k: v for k, v in none.json().items() if k not in same
        }
        assert theirs.json()["detail"].replace(hook["id"], missing) == none.json()["detail"]
    assert stranger.get("/webhooks").json()["data"] == []


def test_a_deleted_webhook_leaves_no_delivery(api, hook, database):
    api.post(f"/webhooks/{hook['id']}/test")
    api.delete(f"/webhooks/{hook['id']}")
    with database.reading() as session:
        assert session.scalars(select(Delivery)).all() == []


def post(api, url, **options):
    """Post a job that names an address."""
    return api.post("/jobs", json={**DIGITS, "webhook": {"url": url, **options}})


def end(api, job):
    """Cancel a job."""
    assert api.post(f"/jobs/{job['id']}/cancel").status_code == 202


def told(api):
    """Say what was sent or is to be, of which job, oldest first."""
    found = [each for hook in api.get("/webhooks").json()["data"] for each in deliveries(api, hook)]
    return [(each["job_id"], each["type"]) for each in sorted(found, key=lambda each: each["id"])]


def deliveries(api, hook):
    return api.get(f"/webhooks/{hook['id']}/deliveries").json()["data"]


def test_a_jobs_own_webhook_gets_the_events_of_that_job_alone(api):
    with receiver() as server:
        answer = post(api, server.url("localhost"))
        assert (answer.status_code, answer.headers["cache-control"]) == (201, "no-store")
        job = answer.json()
        other = api.post("/jobs", json=DIGITS).json()
        end(api, other)
        end(api, job)
        here = f"/webhooks/{job['webhook']['id']}"
        settled(api, f"{here}/deliveries", attempts=1)
        (message,) = server.got
    said = Verifier(job["webhook"]["secret"]).verify(message.body, message.headers)
    assert (said["type"], said["data"]["id"]) == ("job.cancelled", job["id"])
    assert told(api) == [(job["id"], "job.cancelled")]
    assert other["webhook"] is None
    assert api.get(here).json()["events"] == []


def test_the_secret_of_a_named_webhook_is_shown_once(api):
    headers = {"Idempotency-Key": "once"}
    body = {**DIGITS, "webhook": {"url": URL, "events": ["job.queued", "job.cancelled"]}}
    job = api.post("/jobs", json=body, headers=headers).json()
    secret = job["webhook"]["secret"]
    replayed = api.post("/jobs", json=body, headers=headers)
    assert (replayed.headers["idempotent-replayed"], replayed.json()["webhook"]) == ("true", None)
    again = post(api, URL).json()
    assert again["webhook"] is None
    end(api, job)
    end(api, again)
    assert told(api) == [(job["id"], "job.queued"), (job["id"], "job.cancelled"), (again["id"], "job.cancelled")]
    routes = ["/webhooks", "/jobs", f"/jobs/{job['id']}", f"/jobs/{job['id']}/events"]
    assert not [route for route in routes if secret in api.get(route).text]
    assert secret not in replayed.text


def test_clones_and_retries_tell_the_same_address_unless_told_otherwise(api):
    job = post(api, URL).json()
    end(api, job)
    retried = api.post(f"/jobs/{job['id']}/retry").json()
    clone = api.post(f"/jobs/{job['id']}/clone", json={}).json()
    silent = api.post(f"/jobs/{job['id']}/clone", json={"overrides": {"webhook": None}}).json()
    moved = api.post(f"/jobs/{job['id']}/clone", json={"overrides": {"webhook": {"url": URL + "2"}}}).json()
    assert (retried["webhook"], clone["webhook"], silent["webhook"]) == (None, None, None)
    assert moved["webhook"]["url"] == URL + "2"
    assert (retried["spec"]["webhook"], silent["spec"]["webhook"]) == (job["spec"]["webhook"], None)
    for each in (retried, clone, silent, moved):
        end(api, each)
    assert told(api) == [(each["id"], "job.cancelled") for each in (job, retried, clone, moved)]
    answer = api.post(f"/jobs/{job['id']}/clone", json={"overrides": {"webhook": {"url": "https://10.0.0.1/"}}})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/webhook/url")


def test_a_job_that_names_a_webhook_of_the_project_tells_it_once(api, hook):
    job = post(api, URL, events=["job.cancelled", "job.queued"]).json()
    assert job["webhook"] is None
    end(api, job)
    assert told(api) == [(job["id"], "job.queued"), (job["id"], "job.cancelled")]


@pytest.mark.parametrize(
    ("webhook", "pointer"),
    [
        ("https://93.184.216.34/hook", "/webhook"),
        ({}, "/webhook/url"),
        ({"url": ""}, "/webhook/url"),
        ({"url": "https://127.0.0.1/"}, "/webhook/url"),
        ({"url": "https://[::ffff:169.254.169.254]/"}, "/webhook/url"),
        ({"url": "https://nobody@93.184.216.34/"}, "/webhook/url"),
        ({"url": f"https://93.184.216.34/{'x' * 2048}"}, "/webhook/url"),
        ({"url": URL, "events": []}, "/webhook/events"),
        ({"url": URL, "events": ["job.done"]}, "/webhook/events/0"),
        ({"url": URL, "secret": "mine"}, "/webhook/secret"),
    ],
)
def test_a_bad_webhook_of_a_job_is_told_field_by_field(api, webhook, pointer):
    for params in ({}, {"dry_run": "true"}):
        answer = api.post("/jobs", json={**DIGITS, "webhook": webhook}, params=params)
        assert answer.status_code == 422
        problem = answer.json()
        assert (problem["code"], [error["pointer"] for error in problem["errors"]]) == ("invalid_spec", [pointer])
    assert api.get("/jobs").json()["data"] == api.get("/webhooks").json()["data"] == []


def test_a_job_cannot_name_a_webhook_that_is_told_nothing(api, hook, settings):
    api.patch(f"/webhooks/{hook['id']}", json={"disabled": True})
    answer = post(api, URL)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["code"]) == ("/webhook/url", "webhook_disabled")
    for number in range(subscriptions.MAX_WEBHOOKS - 1):
        assert post(api, f"{URL}/{number}").status_code == 201
    full = post(api, f"{URL}/more")
    assert (full.status_code, full.json()["code"]) == (409, "too_many_webhooks")
    assert len(api.get("/jobs", params={"limit": 100}).json()["data"]) == subscriptions.MAX_WEBHOOKS - 1


def test_checking_a_job_makes_no_webhook(api):
    answer = api.post("/jobs", json={**DIGITS, "webhook": {"url": URL}}, params={"dry_run": "true"})
    assert answer.json()["spec"]["webhook"] == {"url": URL, "events": ["job.succeeded", "job.failed", "job.cancelled"]}
    assert api.get("/webhooks").json()["data"] == []
