"""Those who use the service while it breaks: they post, ask and follow, and remember every answer."""

import random
import threading
import time
from collections import Counter

import httpx2

from tests.chaos.town import KEY
from tests.support.instance import DIGITS

MOST_OPEN = 6
ACTIONS = ("cancel", "pause", "pause", "stop", "retry", "clone")
_AUTH = {"Authorization": f"Bearer {KEY}"}
_ENDED = ("succeeded", "failed", "cancelled")


class Memory:
    """What all of them have been told."""

    def __init__(self):
        self.accepted = {}
        """The job of each idempotency key."""
        self.ended = {}
        """What a job was when somebody first saw it at its end."""
        self.refused = []
        """Moment and status of each answer that said to come back; 0 is no answer at all."""
        self.answers = Counter()
        self.histories = {}
        """What the followers have seen of each history, to its end."""
        self.violations = []

    @property
    def jobs(self):
        return list(dict.fromkeys(self.accepted.copy().values()))


class Caller(threading.Thread):
    """Posts jobs, and asks for this and that."""

    def __init__(self, number, seed, town, memory, over):
        super().__init__(name=f"caller {number}")
        self._chance = random.Random(f"{seed} {number}")
        self._town, self._memory, self._over = town, memory, over
        self._open, self._posted = [], 0

    def run(self):
        with httpx2.Client(headers=_AUTH, timeout=20) as self._http:
            while not self._over.is_set():
                if len(self._open) < MOST_OPEN and self._chance.random() < 0.5:
                    self._post()
                elif self._open:
                    self._ask(self._chance.choice(self._open))
                self._over.wait(self._chance.uniform(0.1, 0.8))

    def _post(self):
        self._posted += 1
        key = f"{self.name} {self._posted}"
        wish = {"seconds": f"{self._chance.uniform(0.02, 0.4):.2f}", "say": "one|two|", "times": "20"}
        if self._chance.random() < 0.5:
            wish["states"] = "yes"
        if self._chance.random() < 0.15:
            wish["act"] = self._chance.choice(["crash", "fail", "killed"])
        body = {**DIGITS, "name": key, "metadata": wish}
        answer = self._send("POST", "/jobs", json=body, headers={"Idempotency-Key": key})
        job_id = answer.json()["id"]
        self._memory.accepted[key] = job_id
        self._open.append(job_id)
        if self._chance.random() < 0.2:
            again = self._send("POST", "/jobs", json=body, headers={"Idempotency-Key": key}).json()["id"]
            if again != job_id:
                self._memory.violations.append(f"the key {key!r} made {job_id}, and then {again}")

    def _ask(self, job_id):
        job = self._send("GET", f"/jobs/{job_id}").json()
        if job["status"] in _ENDED:
            first = self._memory.ended.setdefault(job_id, job)
            if first != job:
                self._memory.violations.append(f"{job_id} has changed after its end: {first} and then {job}")
            if self._chance.random() < 0.5:
                self._open.remove(job_id)
        elif job["status"] == "paused":
            self._send("POST", f"/jobs/{job_id}/resume", may_refuse=True)
        if self._chance.random() < 0.12:
            self._act(job_id, self._chance.choice(ACTIONS))

    def _act(self, job_id, action):
        key = f"{self.name} {self._posted} {action} of {job_id}"
        given = {"json": {}, "headers": {"Idempotency-Key": key}} if action == "clone" else {}
        answer = self._send("POST", f"/jobs/{job_id}/{action}", may_refuse=True, **given)
        if action in ("retry", "clone") and answer.status_code == 201:
            self._memory.accepted[key] = answer.json()["id"]
            self._open.append(answer.json()["id"])

    def _send(self, method, path, *, may_refuse=False, **rest):
        """Send it until it is granted, to whichever API process answers. An answer that is neither that nor a reason
        to come back is a violation."""
        while True:
            api = self._chance.choice(self._town.members["api"])
            try:
                answer = self._http.request(method, api.url + path, **rest)
            except httpx2.TransportError:
                self._memory.refused.append((time.time(), 0))
                self._memory.answers["none"] += 1
                answer = None
            if answer is not None:
                self._memory.answers[str(answer.status_code)] += 1
                if answer.is_success or (may_refuse and answer.status_code == 409):
                    return answer
                self._check(method, path, answer)
            time.sleep(self._chance.uniform(0.1, 0.5))

    def _check(self, method, path, answer):
        told = answer.headers.get("content-type"), "retry-after" in answer.headers
        if answer.status_code == 503 and told == ("application/problem+json", True):
            self._memory.refused.append((time.time(), 503))
            return
        self._memory.violations.append(f"{method} {path} was answered by {answer.status_code} {told}: {answer.text}")
        if answer.status_code < 500:
            raise SystemExit  # it would be the same for ever


class Follower(threading.Thread):
    """Follows one history after the other to its end, and goes on wherever the connection breaks."""

    def __init__(self, number, seed, town, memory, over):
        super().__init__(name=f"follower {number}")
        self._chance = random.Random(f"{seed} follower {number}")
        self._town, self._memory, self._over = town, memory, over

    def run(self):
        while not self._over.is_set():
            unread = [job_id for job_id in self._memory.jobs if job_id not in self._memory.histories]
            if unread:
                self._follow(self._chance.choice(unread))
            self._over.wait(0.2)

    def _follow(self, job_id):
        seen = self._memory.histories[job_id] = []
        given_up = 0.0
        while True:
            if self._over.is_set():
                # All is well again by then: what has not ended after this long never will.
                given_up = given_up or time.monotonic() + 200
                if time.monotonic() > given_up:
                    self._memory.violations.append(f"the stream of {job_id} did not end")
                    return
            try:
                if self._read(job_id, seen):
                    return
            except httpx2.TransportError:
                self._memory.answers["stream broken"] += 1
            time.sleep(self._chance.uniform(0.05, 0.3))

    def _read(self, job_id, seen):
        api = self._chance.choice(self._town.members["api"])
        headers = {**_AUTH, "Accept": "text/event-stream", "Last-Event-ID": str(seen[-1] if seen else 0)}
        with httpx2.stream("GET", f"{api.url}/jobs/{job_id}/events", headers=headers, timeout=25) as stream:
            self._memory.answers[f"stream {stream.status_code}"] += 1
            if stream.status_code not in (200, 503):
                self._memory.violations.append(f"the stream of {job_id} was answered by {stream.status_code}")
            for line in stream.iter_lines():
                if line.startswith("id: "):
                    seen.append(int(line.removeprefix("id: ")))
                if line == "event: end":
                    return True
        return False
