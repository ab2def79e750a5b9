"""The page at /docs works without a network, and offers requests that are valid as they stand."""

import json
import re

import pytest

from app.http.openapi import EXAMPLES
from tests.support.instance import calling

REACHABLE = "https://93.184.216.34/"
CASES = [(*key, name) for key, examples in EXAMPLES.items() for name in examples]


def test_page_and_all_that_it_loads_come_from_the_service(url):
    with calling(url, "") as browser:
        browser.headers.pop("authorization")
        page = browser.get("/docs").text
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page) + re.findall(r"url: '([^']+)'", page)
        assert len(loaded) == 4
        kinds = {}
        for path in loaded:
            assert re.match(r"/[^/]", path), path
            answer = browser.get(path)
            assert answer.status_code == 200, path
            kinds[path.rpartition(".")[2]] = answer.headers["content-type"].partition(";")[0]
    assert kinds == {"png": "image/png", "css": "text/css", "js": kinds["js"], "json": "application/json"}
    assert kinds["js"].endswith("/javascript")
    assert "https://" not in page


def test_every_json_body_has_an_example(api):
    for path, operations in api.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            if "application/json" in operation.get("requestBody", {}).get("content", {}):
                assert operation["requestBody"]["content"]["application/json"]["examples"], (method, path)


@pytest.mark.parametrize(("method", "path", "name"), CASES)
def test_example_is_a_body_that_the_route_takes(api, method, path, name):
    body = EXAMPLES[method, path][name]
    if "url" in body:
        body = {**body, "url": REACHABLE}
    answer = api.request(method, re.sub(r"\{.*?\}", "x", path), json=body)
    # Where the example names something that is not here, the body itself has passed.
    unknown = [error["pointer"] for error in answer.json().get("errors", ())]
    assert answer.status_code in (200, 201, 404) or unknown in (["/upload"], ["/checkpoint"]), answer.text


def test_every_operation_with_a_key_names_its_scope(api):
    document = api.get("/openapi.json").json()
    scopes = {
        (method, path): operation["security"]
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "security" in operation
    }
    assert scopes["post", "/jobs"] == [{"HTTPBearer": ["jobs:write"]}]
    assert scopes["get", "/projects"] == [{"HTTPBearer": ["admin"]}]
    assert [key for key, each in scopes.items() if each == [{"HTTPBearer": []}]] == [("get", "/me")]
    assert "Scope: `jobs:write`." in json.dumps(document["paths"]["/jobs"]["post"]["description"])
