"""How a client sends a file by the letter of the API, whoever takes the bytes."""

import hashlib

import httpx2


def sha256_of(content):
    return hashlib.sha256(content).hexdigest()


def announce(api, content, **changes):
    """Announce a file and give the upload."""
    body = {"filename": "birds.zip", "bytes": len(content), "sha256": sha256_of(content), "purpose": "dataset"}
    answer = api.post("/uploads", json={**body, **changes})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/uploads/{answer.json()['id']}"
    return answer.json()


def cut(content, upload):
    """Cut a file into an upload's parts, by number."""
    size = upload["part_bytes"]
    return {number: content[(number - 1) * size : number * size] for number in range(1, upload["parts"] + 1)}


def ask(api, upload, number, part):
    """Ask how to send a part."""
    body = {"parts": [{"number": number, "sha256": sha256_of(part)}]}
    answer = api.post(f"/uploads/{upload['id']}/parts", json=body)
    assert answer.status_code == 200, answer.text
    (request,) = answer.json()["data"]
    assert (request["number"], request["bytes"], request["method"]) == (number, len(part), "PUT")
    return request


def send(api, upload, number, part):
    """Send a part to where the service says."""
    request = ask(api, upload, number, part)
    put = api.put if request["url"].startswith("/") else httpx2.put
    return put(request["url"], content=part, headers=request["headers"])


def send_all(api, content, **changes):
    """Announce a file and send all of it."""
    upload = announce(api, content, **changes)
    for number, part in cut(content, upload).items():
        answer = send(api, upload, number, part)
        assert answer.status_code == 200, answer.text
    return upload


def finish(api, upload):
    return api.post(f"/uploads/{upload['id']}/complete")
