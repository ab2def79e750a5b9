"""Sending a file to the service, and packing one."""

import hashlib
import io
import time
import zipfile


def send(api, content, filename="file.zip", purpose="dataset"):
    """Upload a file and give the upload's id."""
    sha256 = hashlib.sha256(content).hexdigest()
    body = {"filename": filename, "bytes": len(content), "sha256": sha256, "purpose": purpose}
    announced = api.post("/uploads", json=body).json()
    upload, size = announced["id"], announced["part_bytes"]
    headers = {"Content-Type": "application/octet-stream"}
    for number, start in enumerate(range(0, len(content), size), start=1):
        part = content[start : start + size]
        assert api.put(f"/uploads/{upload}/parts/{number}", content=part, headers=headers).status_code == 200
    completed = api.post(f"/uploads/{upload}/complete").json()
    deadline = time.monotonic() + 15
    while completed["status"] == "verifying" and time.monotonic() < deadline:
        time.sleep(0.02)
        completed = api.get(f"/uploads/{upload}").json()
    assert completed["status"] == "completed", completed
    return upload


def pack(files):
    """Put files into a zip archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, inside in files.items():
            archive.writestr(name, inside)
    return content.getvalue()
