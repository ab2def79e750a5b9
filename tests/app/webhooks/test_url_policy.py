"""Where the service may connect to: the SSRF list, by name and by number."""

import asyncio
import re
import time
from ipaddress import ip_address

import httpx2
import pytest

from app.platform.settings import Settings
from app.webhooks import url_policy
from app.webhooks.url_policy import Refused, is_public, judge, parse


@pytest.fixture
def settings(tmp_path):
    """The settings of an operator who has changed nothing."""
    return Settings(data_dir=tmp_path)


async def looked_up(url, settings):
    parsed = parse(url, settings)
    await url_policy.check(parsed, url_policy.look_up(parsed), settings)


def check(url, settings):
    asyncio.run(looked_up(url, settings))


INSIDE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:8.8.8.8", "::127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2001:0:0:1::5601:102",
]  # fmt: skip
OUTSIDE = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111"]


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_that_is_not_everybodys_is_not_public(settings, address):
    assert not is_public(ip_address(address))
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(Refused, match="TEMPER_WEBHOOK_ALLOW"):
        check(f"https://{host}/hook", settings)


@pytest.mark.parametrize("address", OUTSIDE)
def test_a_public_address_may_be_called(settings, address):
    host = f"[{address}]" if ":" in address else address
    check(f"https://{host}/hook", settings)
    check(f"https://{host}:8443/hook", settings)


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433"])
def test_this_machine_is_refused_however_it_is_written(settings, host):
    with pytest.raises(Refused, match="not on the public internet"):
        check(f"https://{host}/", settings)


def test_only_the_log_says_where_a_name_leads_in_the_operators_network(settings, caplog):
    with caplog.at_level("INFO", "app.webhooks.url_policy"), pytest.raises(Refused) as refusal:
        check("https://localhost/", settings)
    told = r"127\.0\.0\.1|::1"
    assert not re.search(told, str(refusal.value))
    assert re.search(told, caplog.text)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://8.8.8.8/", "only https.*TEMPER_WEBHOOK_HTTP"),
        ("https://8.8.8.8:22/", "port 22 is not called.*TEMPER_WEBHOOK_ALLOW"),
        ("https://8.8.8.8:0/", "0 is not a valid port"),
        ("https://8.8.8.8:99999/", "99999 is not a valid port"),
        ("https://me:secret@8.8.8.8/", "leave user name"),
        ("https://8.8.8.8/#there", "fragment"),
        ("ftp://8.8.8.8/", "whole URL"),
        ("file:///etc/passwd", "whole URL"),
        ("//8.8.8.8/", "whole URL"),
        ("hook", "whole URL"),
        ("", "whole URL"),
        ("https://", "whole URL"),
        ("https://\x00/", "no URL"),
        ("https://0177.0.0.1/", "no URL"),
        ("https://" + "a" * 3000, "at most 2048"),
        ("https://nowhere.invalid/", "cannot be looked up"),
        (f"https://{'a' * 70}.test/", "cannot be looked up"),
    ],
)
def test_a_refusal_says_what_would_be_right(settings, url, message):
    with pytest.raises(Refused, match=message):
        check(url, settings)


def test_one_bad_address_among_good_ones_is_enough(settings):
    url = httpx2.URL("https://mixed.test/")
    good, bad = ip_address("8.8.8.8"), ip_address("10.0.0.1")
    assert judge(url, [good], settings).address == good
    with pytest.raises(Refused, match="not on the public internet"):
        judge(url, [good, bad], settings)
    with pytest.raises(Refused, match="no address"):
        judge(url, [], settings)


@pytest.mark.parametrize("entry", ["localhost", "127.0.0.0/8,::1/128", "127.0.0.1,::1"])
def test_the_operator_can_allow_a_name_or_a_range_at_any_port(settings, entry):
    allowing = settings.model_copy(update={"webhook_allow": tuple(entry.split(","))})
    check("https://localhost:9999/", allowing)
    with pytest.raises(Refused, match="10"):
        check("https://10.0.0.1:9999/", allowing)


def test_a_resolver_that_never_answers_is_not_waited_for(settings, monkeypatch):
    monkeypatch.setattr(url_policy, "LOOKUP_SECONDS", 0.05)
    monkeypatch.setattr(url_policy, "resolve", lambda host, port: time.sleep(0.5) or [])
    with pytest.raises(Refused, match="in time"):
        check("https://slow.test/", settings)


def test_http_is_the_operators_choice(settings, monkeypatch):
    monkeypatch.setattr(url_policy, "PORTS", (80,))
    allowing = settings.model_copy(update={"webhook_http": True})
    assert parse("http://8.8.8.8/", allowing).scheme == "http"
    check("http://8.8.8.8/", allowing)
