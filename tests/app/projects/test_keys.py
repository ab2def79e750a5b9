"""Projects, keys and scopes: what opens what, and what is refused, and why."""

import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import select, text, update

from app.http.authentication import Needs
from app.main import create_app
from app.tables import ApiKey
from tests.support.instance import DIGITS, add_key, add_project, calling

OPEN = {"/", "/livez", "/readyz", "/version", "/problems/{code}", "/docs"}


def declared_scopes(dependant):
    """The scopes that a route's dependencies check, at any depth."""
    found = {dependant.call.scope} if isinstance(dependant.call, Needs) else set()
    return found.union(*map(declared_scopes, dependant.dependencies))


def test_every_route_declares_the_scope_it_needs(settings, database):
    contexts = iter_route_contexts(create_app(settings, database).routes)
    routes = [route for route in contexts if hasattr(route, "dependant")]
    assert len(routes) > 40
    assert {route.path for route in routes} > OPEN
    for route in routes:
        scopes = declared_scopes(route.dependant)
        expected = 0 if (route.path.removeprefix("/v1") or "/") in OPEN else 1
        assert len(scopes) == expected, (route.path, route.methods, scopes)


def refusal(answer, status, code):
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    return problem


def test_any_valid_key_is_told_what_it_may_do(api, url):
    made = api.post("/api_keys", json={"name": "uploader", "scopes": ["files:write"]}).json()
    with calling(url, made["secret"]) as uploader:
        assert refusal(uploader.get("/jobs"), 403, "forbidden")["required_scope"] == "jobs:read"
        assert uploader.get("/me").json()["scopes"] == ["files:write"]


def test_a_key_is_shown_once_and_opens_what_its_scopes_say(api, url, database):
    made = api.post("/api_keys", json={"name": "ci", "scopes": ["jobs:read"]})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()
    shown = api.get(made.headers["location"]).json()
    assert shown == {name: value for name, value in key.items() if name != "secret"}
    assert key["secret"] not in api.get("/api_keys").text
    assert key["secret"].startswith(key["prefix"])
    with database.reading() as session:
        assert key["secret"] not in str(session.execute(text("SELECT * FROM api_keys")).all())
    with calling(url, key["secret"]) as reader:
        assert reader.get("/jobs").status_code == 200
        assert reader.get("/me").json()["scopes"] == ["jobs:read"]
        answer = reader.post("/jobs", json=DIGITS)
        assert refusal(answer, 403, "forbidden")["required_scope"] == "jobs:write"
        assert 'scope="jobs:write"' in answer.headers["www-authenticate"]
    assert api.get(f"/api_keys/{key['id']}").json()["last_used_at"] is not None


def test_a_scope_is_asked_for_before_the_id_is_looked_up(api, url, database, project):
    job = api.post("/jobs", json=DIGITS).json()
    with calling(url, add_key(database, project, "jobs:read")) as reader:
        for job_id in (job["id"], "job_0"):
            refusal(reader.post(f"/jobs/{job_id}/cancel"), 403, "forbidden")
    assert api.get(job["links"]["self"]).json()["status"] == "queued"


def test_a_revoked_key_is_refused_from_the_next_request_on(api, url):
    key = api.post("/api_keys", json={"name": "ci"}).json()
    with calling(url, key["secret"]) as other:
        assert other.get("/jobs").status_code == 200
        first = api.delete(f"/api_keys/{key['id']}").json()
        assert first["revoked_at"] is not None
        assert "revoked" in refusal(other.get("/jobs"), 401, "unauthorized")["detail"]
    assert api.delete(f"/api_keys/{key['id']}").json()["revoked_at"] == first["revoked_at"]


def test_a_key_is_revoked_alone_or_with_all_that_were_made_with_it(api, url):
    def make(client):
        return client.post("/api_keys", json={"name": "k", "scopes": ["jobs:read", "jobs:write"]}).json()

    first, other = make(api), make(api)
    with calling(url, first["secret"]) as client:
        second = make(client)
    with calling(url, second["secret"]) as client:
        third = make(client)
        # With a key that is revoked by itself, all of its descendants go.
        assert api.delete(f"/api_keys/{first['id']}").json()["revoked_at"]
        assert client.get("/jobs").status_code == 200
    revoked = api.delete(f"/api_keys/{first['id']}?descendants=true").json()
    assert revoked["id"] == first["id"]
    for each, status in ((first, 401), (second, 401), (third, 401), (other, 200)):
        with calling(url, each["secret"]) as client:
            assert client.get("/jobs").status_code == status


def test_no_key_outlives_the_one_that_made_it_by_being_made_while_that_is_revoked(api, url):
    for _ in range(4):
        parent = api.post("/api_keys", json={"name": "k", "scopes": ["jobs:write"]}).json()
        with calling(url, parent["secret"]) as client, ThreadPoolExecutor(6) as pool:
            made = [pool.submit(client.post, "/api_keys", json={"name": "child"}) for _ in range(5)]
            ended = pool.submit(api.delete, f"/api_keys/{parent['id']}?descendants=true")
            answers = [each.result() for each in (*made, ended)]
        assert {answer.status_code for answer in answers} <= {200, 201, 401, 403}
    keys = api.get("/api_keys?limit=100").json()["data"]
    assert not [key for key in keys if key["name"] == "child" and not key["revoked_at"]]


def test_an_expired_key_is_refused_and_said_to_be_expired(api, url, database):
    soon = datetime.now(UTC) + timedelta(hours=1)
    key = api.post("/api_keys", json={"name": "ci", "expires_at": soon.isoformat()}).json()
    with calling(url, key["secret"]) as other:
        assert other.get("/jobs").status_code == 200
        with database.writing() as session:
            session.execute(update(ApiKey).where(ApiKey.id == key["id"]).values(expires_at=soon - timedelta(hours=2)))
        assert "expired" in refusal(other.get("/jobs"), 401, "unauthorized")["detail"]


def test_an_end_in_another_zone_is_the_same_moment(api, database):
    key = api.post("/api_keys", json={"name": "ci", "expires_at": "2100-01-01T01:30:00+05:30"}).json()
    assert datetime.fromisoformat(key["expires_at"]) == datetime(2099, 12, 31, 20, 0, tzinfo=UTC)
    with database.reading() as session:
        stored = session.scalars(select(ApiKey.expires_at).where(ApiKey.id == key["id"])).one()
    assert stored == datetime(2099, 12, 31, 20, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda key: key[:-10] + ("A" if key[-10] != "A" else "B") + key[-9:], "typing error"),
        (lambda key: key[:-1], "is no API key"),
        (lambda key: "sk-" + key, "is no API key"),
        (lambda key: key + "é", "is no API key"),
    ],
    ids=["a letter", "cut off", "another service's", "not ASCII"],
)
def test_a_key_with_a_typing_error_is_told_from_an_unknown_one(api, url, spoil, said):
    key = api.headers["authorization"].removeprefix("Bearer ")
    spoilt = spoil(key)
    answer = api.get("/jobs", headers=[("Authorization", f"Bearer {spoilt}".encode())])
    assert said in refusal(answer, 401, "unauthorized")["detail"]
    assert spoilt not in answer.text


def test_an_unknown_key_whose_checksum_fits_is_said_to_be_unknown(api):
    body = f"tmp_{'0' * 8}_{'0' * 32}"
    number, digits = zlib.crc32(body.encode()), ""
    alphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    while len(digits) < 6:
        digits = alphabet[number % 62] + digits
        number //= 62
    answer = api.get("/jobs", headers={"Authorization": f"Bearer {body}_{digits}"})
    assert "this service has no such API key" in refusal(answer, 401, "unauthorized")["detail"]


def test_a_key_cannot_make_more_of_itself_than_it_is(api, url, database, project):
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    granted = api.post("/api_keys", json={"name": "x", "scopes": ["jobs:read", "jobs:write"], "expires_at": soon})
    with calling(url, granted.json()["secret"]) as limited:
        for wish in ({"scopes": ["admin"]}, {"scopes": ["files:write"]}, {"expires_at": "2099-01-01T00:00:00Z"}):
            refusal(limited.post("/api_keys", json={"name": "y", **wish}), 403, "forbidden")
        child = limited.post("/api_keys", json={"name": "y"}).json()
        assert child["scopes"] == ["jobs:read", "jobs:write"]
        assert child["expires_at"] == granted.json()["expires_at"]
        assert child["created_by"] == granted.json()["id"]
        admin = api.get("/me").json()["key"]["id"]
        refusal(limited.delete(f"/api_keys/{admin}"), 403, "forbidden")
        assert limited.delete(f"/api_keys/{child['id']}").status_code == 200
        refusal(limited.get("/projects"), 403, "forbidden")


def test_an_admin_manages_the_keys_of_all_projects_and_others_their_own(api, url, database):
    there = api.post("/projects", json={"name": "there"}).json()
    theirs = api.post("/api_keys", json={"name": "t", "project_id": there["id"], "scopes": ["jobs:read", "jobs:write"]})
    with calling(url, theirs.json()["secret"]) as other:
        assert other.get("/me").json()["project"] == there
        mine = api.get("/me").json()
        for path in (f"/api_keys/{mine['key']['id']}", f"/api_keys?project_id={mine['project']['id']}"):
            refusal(other.get(path), 404, "not_found")
        refusal(other.post("/api_keys", json={"name": "x", "project_id": mine["project"]["id"]}), 404, "not_found")
        assert [key["id"] for key in other.get("/api_keys").json()["data"]] == [theirs.json()["id"]]
        listed = api.get("/api_keys", params={"project_id": there["id"]}).json()["data"]
        assert [key["id"] for key in listed] == [theirs.json()["id"]]
        assert api.delete(f"/api_keys/{theirs.json()['id']}").status_code == 200
        refusal(other.get("/jobs"), 401, "unauthorized")


def test_an_admin_key_sees_the_jobs_of_its_own_project_only(api, url, database):
    job = api.post("/jobs", json=DIGITS).json()
    with calling(url, add_key(database, add_project(database))) as other_admin:
        refusal(other_admin.get(job["links"]["self"]), 404, "not_found")
        assert other_admin.get("/jobs").json()["data"] == []


def test_the_last_admin_key_cannot_be_revoked(api, url):
    mine = api.get("/me").json()["key"]["id"]
    refusal(api.delete(f"/api_keys/{mine}"), 409, "last_admin_key")
    second = api.post("/api_keys", json={"name": "second", "scopes": ["admin", "jobs:write"]}).json()
    assert api.delete(f"/api_keys/{mine}").status_code == 200
    with calling(url, second["secret"]) as other:
        refusal(other.delete(f"/api_keys/{second['id']}"), 409, "last_admin_key")


def test_projects_are_made_listed_and_renamed(api):
    first, second = (api.post("/projects", json={"name": name}).json() for name in ("a", "b"))
    part = api.get("/projects", params={"limit": 1}).json()
    assert (part["data"], part["has_more"]) == ([second], True)
    assert api.get("/projects", params={"limit": 1, "after": second["id"]}).json()["data"] == [first]
    changed = api.patch(f"/projects/{first['id']}", json={"name": "c"}).json()
    assert changed == {**first, "name": "c"} == api.get(f"/projects/{first['id']}").json()


def test_a_project_is_not_renamed_to_nothing_and_keeps_a_name_that_is_left_out(api):
    project = api.post("/projects", json={"name": "vision"}).json()
    here = f"/projects/{project['id']}"
    problem = refusal(api.patch(here, json={"name": None}), 422, "invalid_body")
    assert [error["pointer"] for error in problem["errors"]] == ["/name"]
    assert api.patch(here, json={}).json()["name"] == "vision"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": "x\u0000"}, "/name"),
        ({"name": "x", "scopes": []}, "/scopes"),
        ({"name": "x", "scopes": ["jobs:reed"]}, "/scopes/0"),
        ({"name": "x", "expires_at": "2001-01-01T00:00:00Z"}, "/expires_at"),
        ({"name": "x", "expires_at": "2101-01-01T00:00:00"}, "/expires_at"),
        ({"name": "x", "expires_at": "9999-12-31T23:59:59-12:00"}, "/expires_at"),
        ({"name": "x", "scope": "admin"}, "/scope"),
        ([], ""),
    ],
)
def test_a_wish_for_a_key_that_cannot_be_is_refused_at_its_field(api, body, pointer):
    problem = refusal(api.post("/api_keys", json=body), 422, "invalid_body")
    assert pointer in [error["pointer"] for error in problem["errors"]]


def test_a_wish_that_is_not_json_is_refused(api):
    refusal(api.post("/api_keys", content="{", headers={"Content-Type": "application/json"}), 400, "malformed_body")
    refusal(api.post("/api_keys", content="name=x"), 415, "unsupported_media_type")
    refusal(api.post("/api_keys", headers={"Content-Type": "application/json"}), 422, "invalid_body")
