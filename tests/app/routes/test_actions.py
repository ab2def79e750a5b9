"""What can be asked of a job over HTTP: pause, resume, stop, retry, clone, delete; its attempts and logs."""

import threading

import pytest
from sqlalchemy import event, select

from app.jobs import claims, ingest
from app.jobs.leases import attempt_prefix, log_key
from app.operations.garbage_collection import sweep_orphans, sweep_states
from app.schemas import Failure
from app.storage import LocalStore, StorageUnavailable
from app.tables import Attempt, State
from core.schema import events as reported
from core.schema.report import Reports
from tests.support.instance import DIGITS, add_key, calling, serving
from tests.support.processes import wait_until

SAVED = reported.Saved(kind="state", path="x", sha256="0" * 64, size=3, step=5, epoch=0.5)
REPORTS = Reports(before=None, after=None)


def post(api, **changes):
    answer = api.post("/jobs", json={**DIGITS, **changes})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def do(database, action, *args, **options):
    with database.writing() as session:
        return action(session, *args, **options)


def claim(database):
    return do(
        database, claims.claim, worker="machine:1", lease_seconds=60, retry_policy=claims.RetryPolicy(max_crashes=5)
    )


@pytest.fixture
def held(api, database):
    post(api)
    return claim(database)


@pytest.fixture
def store(settings):
    return LocalStore(settings.objects_dir)


def test_a_job_is_paused_resumed_and_stopped(api, database, held):
    job = api.post(f"/jobs/{held.job_id}/pause")
    assert (job.status_code, job.json()["status"], job.json()["allowed_actions"]) == (202, "pausing", ["cancel"])
    do(database, claims.hand_back, held)
    assert api.get(f"/jobs/{held.job_id}").json()["allowed_actions"] == ["resume", "cancel"]
    assert api.post(f"/jobs/{held.job_id}/resume").json()["status"] == "queued"
    again = claim(database)
    assert (again.job_id, again.attempt) == (held.job_id, 2)
    assert api.post(f"/jobs/{held.job_id}/stop").json()["status"] == "stopping"
    assert api.post(f"/jobs/{held.job_id}/stop").json()["status"] == "stopping"
    refused = api.post(f"/jobs/{held.job_id}/pause")
    assert refused.status_code == 409
    assert (refused.json()["current_status"], refused.json()["allowed_actions"]) == ("stopping", ["cancel"])


def test_a_failed_job_is_retried_once(api, database, held):
    refused = api.post(f"/jobs/{held.job_id}/retry")
    assert (refused.status_code, refused.json()["allowed_actions"]) == (409, ["pause", "stop", "cancel"])
    failure = Failure(code="c", message="m", hint="h", field=None, retryable=True)
    do(database, claims.fail, held, failure)
    made, again = (api.post(f"/jobs/{held.job_id}/retry") for _ in range(2))
    assert (made.status_code, again.status_code) == (201, 201)
    assert made.json()["id"] == again.json()["id"] != held.job_id
    assert made.headers["location"] == f"/jobs/{made.json()['id']}"
    assert ("idempotent-replayed" in made.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert made.json()["retry_of"] == held.job_id
    assert api.get(f"/jobs/{held.job_id}").json()["status"] == "failed"


def test_a_job_stays_as_long_as_a_retry_may_need_its_state(api, database, held):
    do(database, ingest.save_state, held, SAVED, name="state", key="k")
    failure = Failure(code="c", message="m", hint="h", field=None, retryable=True)
    do(database, claims.fail, held, failure)
    retry = api.post(f"/jobs/{held.job_id}/retry").json()["id"]
    refused = api.delete(f"/jobs/{held.job_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "file_in_use")
    assert retry in refused.json()["detail"]
    again = claim(database)
    assert [state.step for state in do(database, ingest.states, again)] == [SAVED.step]
    # The state is needed as well by the retry of a retry that has none of its own.
    do(database, claims.fail, again, failure)
    second = api.post(f"/jobs/{retry}/retry").json()["id"]
    for job_id in (held.job_id, retry):
        assert second in api.delete(f"/jobs/{job_id}").json()["detail"]
    api.post(f"/jobs/{second}/cancel")
    for job_id in (held.job_id, retry, second):
        assert api.delete(f"/jobs/{job_id}").status_code == 204


def test_a_clone_has_the_same_spec_but_for_what_it_overrides(api):
    job_id = post(
        api, epochs=2, metadata={"team": "a", "run": "1"}, method={"name": "e-at", "steps": {"linf": 5, "l1": 5}}
    )
    original = api.get(f"/jobs/{job_id}").json()
    same = api.post(f"/jobs/{job_id}/clone", json={}).json()
    assert (same["spec"], same["cloned_from"]) == (original["spec"], job_id)
    overrides = {"seed": 4, "metadata": {"run": "2"}, "epochs": None, "method": {"steps": {"l1": 6}}}
    other = api.post(f"/jobs/{job_id}/clone", json={"overrides": overrides}).json()["spec"]
    assert (other["seed"], other["metadata"]) == (4, {"team": "a", "run": "2"})
    assert other["epochs"] == 3
    assert other["method"]["steps"]["l1"] == 6
    by_another = api.post(f"/jobs/{job_id}/clone", json={"overrides": {"method": {"name": "sat"}}}).json()["spec"]
    assert by_another["method"]["name"] == "sat"


def test_a_clone_is_made_once_per_key(api):
    job_id = post(api)
    headers = {"Idempotency-Key": "k"}
    first, second = (api.post(f"/jobs/{job_id}/clone", json={}, headers=headers) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    other = api.post(f"/jobs/{job_id}/clone", json={"overrides": {"seed": 9}}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"overrides": {"epocs": 1}}, "invalid_spec", "/epocs"),
        ({"overrides": {"eps": {"linf": -1}}}, "invalid_spec", "/eps/linf"),
        ({"overides": {}}, "invalid_body", "/overides"),
        ({"overrides": 3}, "invalid_body", "/overrides"),
    ],
)
def test_a_clone_that_is_not_valid_is_refused_field_by_field(api, body, code, pointer):
    refused = api.post(f"/jobs/{post(api)}/clone", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, code)
    assert refused.json()["errors"][0]["pointer"] == pointer


def test_a_deleted_job_is_gone_with_its_files_once_it_has_ended(api, database, held, store, tmp_path):
    (tmp_path / "file").write_text("x")
    store.put(f"{held.prefix}/checkpoint.safetensors", tmp_path / "file")
    refused = api.delete(f"/jobs/{held.job_id}")
    assert (refused.status_code, refused.json()["code"]) == (409, "action_not_allowed")
    do(database, claims.succeed, held, REPORTS)
    assert api.delete(f"/jobs/{held.job_id}").status_code == 204
    assert list(store.keys("jobs")) == []
    assert api.get(f"/jobs/{held.job_id}").status_code == 404
    assert api.delete(f"/jobs/{held.job_id}").status_code == 404


def test_a_job_is_deleted_though_the_store_is_away(api, database, held, store, monkeypatch):
    def away(*_):
        raise StorageUnavailable("gone")

    do(database, claims.succeed, held, REPORTS)
    monkeypatch.setattr(LocalStore, "delete", away)
    assert api.delete(f"/jobs/{held.job_id}").status_code == 204


def test_attempts_say_who_had_the_job_and_what_came_of_it(api, database, held):
    do(
        database,
        claims.record_crash,
        held,
        code="killed",
        detail="by SIGKILL",
        retry_policy=claims.RetryPolicy(max_crashes=5, backoff_seconds=0),
    )
    second = claim(database)
    do(database, ingest.record, second, [reported.Resumed(step=7, epoch=0.7)])
    page = api.get(f"/jobs/{held.job_id}/attempts").json()
    assert (page["object"], page["has_more"], page["last_id"]) == ("list", False, "2")
    lost, going_on = page["data"]
    assert (lost["number"], lost["worker"], lost["outcome"]) == (1, "machine:1", "lost")
    assert (lost["cause"], lost["resumed_step"]) == ("the training process was killed by SIGKILL", None)
    assert lost["ended_at"] >= lost["started_at"]
    assert (going_on["outcome"], going_on["ended_at"], going_on["resumed_step"]) == (None, None, 7)
    part = api.get(f"/jobs/{held.job_id}/attempts", params={"limit": 1}).json()
    assert (part["has_more"], part["last_id"]) == (True, "1")
    rest = api.get(f"/jobs/{held.job_id}/attempts", params={"after": part["last_id"]}).json()
    assert [attempt["number"] for attempt in rest["data"]] == [2]


@pytest.fixture
def log(store, database, tmp_path):
    """Store a part of an attempt's log as a worker does."""
    counts = {}

    def log(held, text):
        number = counts[held.attempt] = counts.get(held.attempt, 0) + 1
        (tmp_path / "part").write_text(text)
        store.put(log_key(held.job_id, held.attempt, number), tmp_path / "part")
        do(database, ingest.add_log, held, size=len(text))

    return log


def read_log(api, held, **params):
    return api.get(f"/jobs/{held.job_id}/logs", params=params)


def test_logs_are_read_whole_or_from_the_end_by_attempt(api, database, held, log):
    nothing = read_log(api, held)
    assert (nothing.status_code, nothing.json()["code"]) == (404, "no_log")
    log(held, "a\nb\n")
    log(held, "c\n")
    assert read_log(api, held).text == "a\nb\nc\n"
    assert read_log(api, held).headers["content-type"] == "text/plain; charset=utf-8"
    tails = [read_log(api, held, tail=number).text for number in (0, 1, 2, 3, 9)]
    assert tails == ["", "c\n", "b\nc\n", "a\nb\nc\n", "a\nb\nc\n"]
    do(database, claims.hand_back, held)
    second = claim(database)
    assert read_log(api, held).text == "a\nb\nc\n"
    log(second, "d\n")
    assert read_log(api, held).text == "d\n"
    assert read_log(api, held, attempt=1).text == "a\nb\nc\n"
    assert read_log(api, held, attempt=3).json()["code"] == "no_log"


def test_a_log_is_followed_over_attempts_to_the_end_of_the_job(api, database, held, log):
    got = []

    def follow():
        with api.stream("GET", f"/jobs/{held.job_id}/logs", params={"follow": True}, timeout=30) as answer:
            got.extend(answer.iter_text())

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    log(held, "a\n")
    log(held, "b\n")
    wait_until(lambda: "".join(got) == "a\nb\n")
    do(database, claims.hand_back, held)
    second = claim(database)
    log(second, "c\n")
    do(database, claims.succeed, second, REPORTS)
    reader.join(15)
    assert "".join(got) == "a\nb\nc\n"
    assert read_log(api, held, follow=True, tail=1).text == "c\n"


@pytest.mark.parametrize(
    ("options", "expected"), [({}, "one\ntwo\n"), ({"tail": 1}, "two\n"), ({"attempt": 1}, "one\ntwo\n")]
)
def test_a_log_that_is_followed_closes_when_it_is_old_and_goes_on_where_it_was(
    settings, database, project, held, log, monkeypatch, options, expected
):
    monkeypatch.setattr("app.routes.attempts._LOOK_SECONDS", 0.02)
    monkeypatch.setattr("app.routes.streams.MAX_STREAM_SECONDS", 0.05)
    with serving(settings, database, periodic_tasks=()) as url, calling(url, add_key(database, project)) as api:

        def read_on(**options):
            answer = read_log(api, held, follow=True, **options)
            assert answer.status_code == 200
            attempt, offset = map(int, answer.headers["x-log-place"].split(":"))
            return answer.content, f"{attempt}:{offset + len(answer.content)}"

        _, nowhere = read_on(**{name: value for name, value in options.items() if name != "tail"})
        log(held, "one\ntw")
        log(held, "o\n")
        first, place = read_on(**options)
        assert first.decode() == expected
        if "tail" not in options:
            assert read_on(after=nowhere)[0] == first
        log(held, "three\n")
        second, place = read_on(after=place)
        do(database, claims.hand_back, held)
        later = claim(database)
        log(later, "four\n")
        third, place = read_on(after=place, **options)
        do(database, claims.succeed, later, REPORTS)
        fourth, _ = read_on(after=place, **options)
        assert (second, third + fourth) == (b"three\n", b"" if "attempt" in options else b"four\n")


@pytest.mark.parametrize("params", [{"after": "1"}, {"after": "x", "follow": True}, {"after": "1:2"}])
def test_a_place_in_a_log_that_cannot_be_gone_on_from_is_refused(api, held, log, params):
    log(held, "a\n")
    refused = read_log(api, held, **params)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter")
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/after"]


def test_a_log_that_is_followed_says_that_the_store_is_away_before_it_begins(api, held, log, store):
    log(held, "a\n")
    store.delete(log_key(held.job_id, held.attempt, 1))
    refused = read_log(api, held, follow=True)
    assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")


def test_unreferenced_objects_are_collected_a_day_after_their_attempt(
    api, database, held, store, settings, log, tmp_path
):
    log(held, "a\n")
    (tmp_path / "file").write_text("x")
    for name in ("states/state-5/state", "states/state-6/state", "checkpoint.safetensors"):
        store.put(f"{held.prefix}/{name}", tmp_path / "file")
    do(database, ingest.save_state, held, SAVED, name="state", key=f"{held.prefix}/states/state-5/state")
    do(database, claims.hand_back, held)
    before = list(store.keys("jobs"))
    sweep_orphans(database, store)
    assert list(store.keys("jobs")) == before
    with database.writing() as session:
        for attempt in session.scalars(select(Attempt)):
            attempt.ended_at = attempt.ended_at.replace(year=2020)
    sweep_orphans(database, store)
    kept = [f"{held.prefix}/logs/000001.log", f"{held.prefix}/states/state-5/state"]
    assert list(store.keys("jobs")) == kept
    old, new = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV", "job_7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
    for job_id in (old, new):
        store.put(f"{attempt_prefix(job_id, 1)}/x", tmp_path / "file")
    sweep_orphans(database, store)
    assert list(store.keys("jobs")) == [*kept, f"{attempt_prefix(new, 1)}/x"]


def test_a_sweep_asks_as_little_of_a_job_with_many_files(database, held, store, tmp_path):
    asked = []

    def note(*told):
        asked.append(told[2])

    event.listen(database.engine, "before_cursor_execute", note)
    (tmp_path / "file").write_text("x")
    counts = []
    for number in range(20):
        store.put(f"{held.prefix}/{number}", tmp_path / "file")
        if number in (0, 19):
            asked.clear()
            sweep_orphans(database, store)
            counts.append(len(asked))
    event.remove(database.engine, "before_cursor_execute", note)
    assert counts[0] == counts[1] > 0


def test_states_of_a_failed_job_expire_and_its_checkpoint_stays(api, database, held, store, tmp_path):
    (tmp_path / "file").write_text("x")
    for kind in ("state", "best"):
        key = f"{held.prefix}/states/{kind}-5/{kind}"
        store.put(key, tmp_path / "file")
        do(database, ingest.save_state, held, SAVED.model_copy(update={"kind": kind}), name=kind, key=key)
    api.post(f"/jobs/{held.job_id}/cancel")
    do(database, claims.hand_back, held)
    sweep_states(database, store, days=1)
    assert len(list(store.keys("jobs"))) == 2
    sweep_states(database, store, days=-1)
    (checkpoint,) = api.get(f"/jobs/{held.job_id}/checkpoints").json()["data"]
    assert list(store.keys("jobs")) == [f"{held.prefix}/states/best-5/best"]
    assert api.get(checkpoint["download"]).content == b"x"


def test_states_left_after_a_jobs_success_are_collected_at_once(database, held, store, tmp_path):
    (tmp_path / "file").write_text("x")
    key = f"{held.prefix}/states/state-5/state"
    store.put(key, tmp_path / "file")
    do(database, ingest.save_state, held, SAVED, name="state", key=key)
    sweep_states(database, store, days=30)
    assert list(store.keys("jobs")) == [key]
    do(database, claims.succeed, held, REPORTS)
    sweep_states(database, store, days=30)
    assert list(store.keys("jobs")) == []
    with database.reading() as session:
        assert session.scalars(select(State)).all() == []
