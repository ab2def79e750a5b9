"""Webhooks as their receivers see them: real servers that fail, hang, move and lie about where they are."""

import asyncio
import ssl
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise

import pytest
from sqlalchemy import select, update
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from app.jobs import claims, lifecycle
from app.jobs.moves import MOVES
from app.operations import deletion
from app.platform.database import now
from app.schemas.job_request import parse_request
from app.schemas.webhooks import ENDINGS, JobEvent
from app.tables import Delivery, Webhook
from app.webhooks import deliveries, sender, subscriptions, url_policy
from app.webhooks.deliveries import PAUSES
from tests.support.instance import add_project
from tests.support.webhook_receiver import receiver

SPEC = parse_request({"base_model": "digits-cnn-linf"})
LAN = {"webhook_http": True, "webhook_allow": ("127.0.0.0/8",)}


@pytest.fixture
def lan(settings, monkeypatch):
    """Settings of an operator who has receivers on this very machine; pauses are a hundredth."""
    scale_pauses(monkeypatch, 0.01)
    return settings.model_copy(update=LAN)


def scale_pauses(monkeypatch, scale):
    monkeypatch.setattr(deliveries, "PAUSES", tuple(pause * scale for pause in PAUSES))


def subscribe(database, project, url, *, events=ENDINGS):
    with database.writing() as session:
        return subscriptions.create(session, project.id, url=url, events=events, description="", limit=20)


def announce(database, project, *, spec=SPEC):
    """Have one job created and cancelled."""
    with database.writing() as session:
        job = lifecycle.create(session, project.id, spec).job
    with database.writing() as session:
        lifecycle.ask(session, job.id, "cancel")
    return job.id


def all_deliveries(database):
    with database.reading() as session:
        return session.scalars(select(Delivery).order_by(Delivery.id)).all()


@contextmanager
def sending(settings, database, *, processes=1):
    """Send in the background for as long as the block runs, as so many processes do."""
    stopping = threading.Event()

    def go_on():
        while not stopping.wait(0.02):
            sender.send_all(settings, database, stopping)

    threads = [threading.Thread(target=go_on) for _ in range(processes)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def until(claim, *, seconds=60):
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_last_place_for_a_webhook_is_given_once_to_two_who_ask_at_once(database, project):
    def ask(url):
        with database.writing() as session:
            subscriptions.create(session, project.id, url=url, events=(), description="", limit=1)
            yield session

    with ThreadPoolExecutor() as pool:
        first = ask("https://a.test/")
        next(first)
        second = pool.submit(list, ask("https://b.test/"))
        wait([second], timeout=0.3)
        assert list(first) == []
        with pytest.raises(subscriptions.TooMany):
            second.result()
    with database.reading() as session:
        assert session.scalars(select(Webhook.url)).all() == ["https://a.test/"]


def test_there_is_an_event_for_every_status():
    assert set(JobEvent.__args__) == {f"job.{status}" for status in MOVES}


def test_the_receiver_can_verify_a_message_and_its_age(lan, database, project):
    with receiver() as server:
        webhook = subscribe(database, project, server.url())
        job_id = announce(database, project)
        sender.send_all(lan, database, threading.Event())
        (message,) = server.got
    body = Verifier(webhook.secret).verify(message.body, message.headers)
    assert body["type"] == "job.cancelled"
    assert body["data"]["id"] == job_id
    assert body["data"]["status"] == "cancelled"
    assert datetime.now(UTC) - datetime.fromisoformat(body["timestamp"]) < timedelta(minutes=1)
    assert message.headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Verifier(webhook.secret).verify(message.body.replace(b"cancelled", b"succeeded"), message.headers)
    late = {**message.headers, "webhook-timestamp": str(int(message.headers["webhook-timestamp"]) - 400)}
    with pytest.raises(WebhookVerificationError, match="too old"):
        Verifier(webhook.secret).verify(message.body, late)
    (delivery,) = all_deliveries(database)
    assert (delivery.status, delivery.response_status, delivery.tries) == ("succeeded", 204, 1)
    assert delivery.id == message.id
    assert 0 < delivery.duration < 15


def test_a_receiver_that_fails_is_told_again_under_the_same_id(lan, database, project, monkeypatch):
    scale_pauses(monkeypatch, 0.005)
    with receiver(500, 503, 204) as server:
        webhook = subscribe(database, project, server.url())
        announce(database, project)
        with sending(lan, database):
            messages = server.wait_for(3)
            until(lambda: all_deliveries(database)[0].status == "succeeded")
    assert len({message.id for message in messages}) == 1
    for message in messages:
        Verifier(webhook.secret).verify(message.body, message.headers)
    pauses = [after.at - before.at for before, after in pairwise(messages)]
    # The second is scaled from five minutes, and both from the moment of the failure.
    assert 0.025 <= pauses[0] < 1.5
    assert 1.5 <= pauses[1] < 10
    assert all_deliveries(database)[0].tries == 3


def test_pauses_are_those_of_standard_webhooks_and_the_last_failure_is_final(database, project, settings):
    hours = 3600
    table = [5, 300, 1800, 2 * hours, 5 * hours, 10 * hours, 14 * hours, 20 * hours, 24 * hours]
    subscribe(database, project, "https://nowhere.invalid/")
    announce(database, project)
    for pause in table:
        due_in = fail_once(database)
        assert pause - 1 <= due_in <= pause * 1.2 + 3
    assert fail_once(database) is None
    (delivery,) = all_deliveries(database)
    assert (delivery.status, delivery.tries, delivery.error) == ("failed", 10, "answered 500")


def fail_once(database):
    """Let the delivery's attempt fail; give the seconds to the next one."""
    with database.writing() as session:
        session.execute(update(Delivery).values(next_attempt_at=Delivery.created_at))
        (held,) = deliveries.claim(session, owner="w", limit=10, per_webhook=4, per_project=20, lease_seconds=60)
        deliveries.record_outcome(session, held, deliveries.Outcome(500, "answered 500", 0.1))
    with database.reading() as session:
        due, at = session.execute(select(Delivery.next_attempt_at, now())).one()
    return due and (due - at).total_seconds()


def test_a_redirect_is_a_failure_and_is_not_followed(lan, database, project, monkeypatch):
    scale_pauses(monkeypatch, 1)
    with receiver(301) as server:
        subscribe(database, project, server.url())
        announce(database, project)
        sender.send_all(lan, database, threading.Event())
        assert len(server.got) == 1
    (delivery,) = all_deliveries(database)
    assert (delivery.status, delivery.response_status) == ("pending", 301)
    assert "final address" in delivery.error
    assert delivery.next_attempt_at is not None


def test_a_receiver_that_says_gone_is_told_nothing_more(lan, database, project):
    with receiver(410) as server:
        subscribe(database, project, server.url())
        announce(database, project)
        sender.send_all(lan, database, threading.Event())
        announce(database, project)
        sender.send_all(lan, database, threading.Event())
        assert len(server.got) == 1
    assert [delivery.status for delivery in all_deliveries(database)] == ["failed"]
    with database.reading() as session:
        webhook = session.scalars(select(Webhook)).one()
    assert webhook.disabled_at is not None
    assert webhook.disabled_reason == "gone"


def test_a_hanging_receiver_delays_no_other_and_holds_few_threads(lan, database, project):
    with receiver() as slow, receiver() as quick:
        slow.hold.set()
        hanging = subscribe(database, project, slow.url())
        subscribe(database, project, quick.url())
        for _ in range(10):
            announce(database, project)
        with sending(lan, database, processes=2):
            quick.wait_for(10)
            slow.wait_for(sender.UNDER_WAY_PER_WEBHOOK)
            # None of the slow ones has ended yet.
            waiting = [each for each in all_deliveries(database) if each.webhook_id == hanging.id]
            assert {(each.status, each.error) for each in waiting} == {("pending", None)}
            assert len(slow.got) <= 2 * sender.UNDER_WAY_PER_WEBHOOK


def test_a_project_has_its_share_of_the_attempts_and_every_project_its_first(database, project):
    other_project = add_project(database)
    many = [subscribe(database, project, f"https://r{number}.invalid/").id for number in range(5)]
    one = subscribe(database, other_project, "https://other.invalid/").id
    for _ in range(4):
        announce(database, project)
        announce(database, other_project)

    def claim(limit):
        with database.writing() as session:
            found = deliveries.claim(session, owner="w", limit=limit, per_webhook=3, per_project=7, lease_seconds=60)
        return Counter(each.webhook_id for each in found)

    first = claim(2)
    assert first[one] == 1, "each project gets its first before any gets its second"
    rest = claim(100)
    held = first + rest
    assert held[one] == 3
    assert sum(held[webhook] for webhook in many) == 7
    assert {held[webhook] for webhook in many} == {1, 2}, "each webhook gets its first before any gets its second"
    assert not claim(100)


def test_a_receiver_that_does_not_answer_in_time_has_failed(lan, database, project, monkeypatch):
    scale_pauses(monkeypatch, 1)
    monkeypatch.setattr(sender, "TIMEOUT_SECONDS", 0.3)
    with receiver() as server:
        server.hold.set()
        subscribe(database, project, server.url())
        announce(database, project)
        sender.send_all(lan, database, threading.Event())
    (delivery,) = all_deliveries(database)
    assert (delivery.status, delivery.error) == ("pending", "no answer within 0.3 s")
    assert 0.3 <= delivery.duration < 10


def test_processes_that_send_at_once_send_each_message_once(lan, database, project):
    with receiver() as server:
        subscribe(database, project, server.url())
        for _ in range(20):
            announce(database, project)
        with sending(lan, database, processes=3):
            until(lambda: all(delivery.status == "succeeded" for delivery in all_deliveries(database)))
        assert len(server.got) == len({message.id for message in server.got}) == 20


def test_what_a_lost_process_was_sending_is_sent_by_another(lan, database, project):
    with receiver() as server:
        subscribe(database, project, server.url())
        announce(database, project)
        with database.writing() as session:
            (lost,) = deliveries.claim(session, owner="w", limit=10, per_webhook=4, per_project=20, lease_seconds=30)
        sender.send_all(lan, database, threading.Event())
        assert server.got == []
        with database.writing() as session:
            session.execute(update(Delivery).values(lease_until=Delivery.created_at))
        sender.send_all(lan, database, threading.Event())
        assert [message.id for message in server.got] == [lost.id]
    with database.writing() as session:
        deliveries.record_outcome(session, lost, deliveries.Outcome(500, "answered 500", 1))
    (delivery,) = all_deliveries(database)
    assert (delivery.status, delivery.tries) == ("succeeded", 2)


def test_sending_ends_at_once_when_the_process_is_to_stop(lan, database, project):
    stopping = threading.Event()
    with receiver() as server:
        server.hold.set()
        subscribe(database, project, server.url())
        announce(database, project)
        thread = threading.Thread(target=sender.send_all, args=(lan, database, stopping))
        thread.start()
        server.wait_for(1)
        began = time.monotonic()
        stopping.set()
        thread.join()
        # Long before the receiver's time is over.
        assert time.monotonic() - began < 5


def test_a_rolled_back_move_queues_no_delivery(database, project):
    subscribe(database, project, "https://nowhere.invalid/")
    with database.writing() as session:
        job_id = lifecycle.create(session, project.id, SPEC).job.id

    def cancel_and_fail():
        with database.writing() as session:
            lifecycle.ask(session, job_id, "cancel")
            assert session.scalars(select(Delivery.type)).all() == ["job.cancelled"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cancel_and_fail()
    assert all_deliveries(database) == []
    with database.writing() as session:
        lifecycle.ask(session, job_id, "cancel")
    assert [delivery.type for delivery in all_deliveries(database)] == ["job.cancelled"]


def test_every_move_of_a_job_is_told_to_who_asked(database, project):
    subscribe(database, project, "https://nowhere.invalid/", events=JobEvent.__args__)
    with database.writing() as session:
        lifecycle.create(session, project.id, SPEC)
        claim = claims.claim(session, worker="w", lease_seconds=30, retry_policy=claims.RetryPolicy(max_crashes=5))
        claims.hand_back(session, claim)
    announce(database, project)
    told = [delivery.type for delivery in all_deliveries(database)]
    assert sorted(told) == sorted(
        ["job.queued", "job.running", "job.queued", "job.queued", "job.cancelling", "job.cancelled"]
    )


def test_another_projects_webhook_and_a_disabled_one_are_told_nothing(database, project):
    subscribe(database, add_project(database), "https://nowhere.invalid/")
    webhook = subscribe(database, project, "https://nowhere.invalid/")
    with database.writing() as session:
        subscriptions.change(session, session.get_one(Webhook, webhook.id), {"disabled": True})
    announce(database, project)
    assert all_deliveries(database) == []


def test_a_payload_stays_thin(database, project):
    labels = {str(number): "€" * 512 for number in range(16)}
    long = parse_request({"base_model": "digits-cnn-linf", "name": "€" * 128, "metadata": labels})
    subscribe(database, project, "https://nowhere.invalid/", events=JobEvent.__args__)
    announce(database, project, spec=long)
    assert max(len(delivery.payload.encode()) for delivery in all_deliveries(database)) < 2000


def test_both_secrets_sign_while_a_rotation_lasts(lan, database, project):
    with receiver() as server:
        old = subscribe(database, project, server.url())
        with database.writing() as session:
            webhook = session.get_one(Webhook, old.id)
            subscriptions.rotate_secret(session, webhook)
            ends_in = webhook.previous_until - webhook.updated_at
        assert timedelta(hours=23) < ends_in < timedelta(hours=25)
        assert webhook.secret != old.secret
        announce(database, project)
        sender.send_all(lan, database, threading.Event())
        with database.writing() as session:
            session.execute(update(Webhook).values(previous_until=Webhook.created_at))
        announce(database, project)
        sender.send_all(lan, database, threading.Event())
    during, after = server.got
    for secret in (old.secret, webhook.secret):
        Verifier(secret).verify(during.body, during.headers)
    Verifier(webhook.secret).verify(after.body, after.headers)
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        Verifier(old.secret).verify(after.body, after.headers)


def test_a_name_that_leads_elsewhere_by_now_leads_nowhere(lan, database, project, monkeypatch):
    """DNS rebinding: public when the webhook is made, this machine when it is called."""
    settings = lan.model_copy(update={"webhook_allow": ()})
    with receiver() as server:
        monkeypatch.setattr(url_policy, "PORTS", (server.port,))
        monkeypatch.setattr(url_policy, "resolve", lambda host, port: [ip_address("93.184.216.34")])
        parsed = url_policy.parse(server.url("rebound.test"), settings)
        asyncio.run(url_policy.check(parsed, url_policy.look_up(parsed), settings))
        subscribe(database, project, server.url("rebound.test"))
        announce(database, project)
        monkeypatch.setattr(url_policy, "resolve", lambda host, port: [ip_address("127.0.0.1")])
        sender.send_all(settings, database, threading.Event())
        assert server.got == []
    (delivery,) = all_deliveries(database)
    assert "not on the public internet" in delivery.error
    assert delivery.status == "pending"


def test_the_connection_goes_to_the_address_that_was_checked(lan, database, project, monkeypatch):
    looked_up = []

    def resolve(host, port):
        looked_up.append(host)
        # Whoever looks twice is led astray.
        return [ip_address("127.0.0.1" if len(looked_up) == 1 else "127.0.0.2")]

    monkeypatch.setattr(url_policy, "resolve", resolve)
    with receiver() as server:
        subscribe(database, project, server.url("once.test"))
        announce(database, project)
        sender.send_all(lan, database, threading.Event())
        (message,) = server.got
    assert looked_up == ["once.test"]
    assert message.headers["host"] == f"once.test:{server.port}"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate of secure.test's, which is its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=secure.test -addext"
    files = ["subjectAltName=DNS:secure.test", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(["openssl", *command.split(), *files], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("name", "heard"), [("secure.test", True), ("other.test", False)])
def test_a_certificate_is_asked_for_by_name_though_the_address_is_pinned(
    lan, database, project, monkeypatch, certificate, name, heard
):
    monkeypatch.setattr(url_policy, "resolve", lambda host, port: [ip_address("127.0.0.1")])
    scale_pauses(monkeypatch, 1)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    names = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    context.sni_callback = lambda _, asked, __: names.append(asked)
    with receiver(tls=context) as server:
        subscribe(database, project, server.url(name, "https"))
        announce(database, project)
        sender.send_all(lan, database, threading.Event())
        assert len(server.got) == int(heard)
    assert names == [name]
    (delivery,) = all_deliveries(database)
    assert (delivery.status == "succeeded") == heard
    assert heard or "certificate" in delivery.error.lower()


def test_old_deliveries_are_forgotten(lan, database, project, monkeypatch):
    with receiver() as server:
        subscribe(database, project, server.url())
        announce(database, project)
        sender.send_all(lan, database, threading.Event())
    for days, left in ((1, 1), (0, 0)):
        monkeypatch.setattr(deletion, "DELIVERY_DAYS", days)
        deletion.forget_deliveries(deletion.Round(database, threading.Event()))
        assert len(all_deliveries(database)) == left


def test_no_secret_and_no_url_is_logged(lan, database, project, caplog):
    with receiver(500, 204) as server, caplog.at_level("DEBUG"):
        webhook = subscribe(database, project, server.url() + "&token=hush")
        announce(database, project)
        with sending(lan, database):
            server.wait_for(2)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "delivery dlv_" in said
    assert webhook.secret.removeprefix("whsec_") not in said
    assert "hush" not in said
