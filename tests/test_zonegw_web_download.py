"""Rules of `web-download`: which URLs and which addresses."""

import ipaddress
from typing import Any

import pytest

from zonegw.errors import BadRequest, ConfigError
from zonegw.import_rules import ImportRules, WebRules, parse
from zonegw.limits import Limits
from zonegw.web_download import WebDownload, is_internal

LIMITS = Limits()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2002:a00:1::1",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_internal(address: str) -> None:
    assert is_internal(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_not_internal(address: str) -> None:
    assert not is_internal(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "uri",
    [
        "", "image", "/image", "http:///x", "http://", "ftp://example.org/x", "file:///etc/passwd", "gopher://example.org",
        "http://user@example.org/", "http://user:secret@example.org/", "http://:secret@example.org/",
        "http://example.org:8080/", "http://example.org:99999/", "https://example.org:22/",
        "http://127.0.0.1/", "http://[::1]/", "http://[::ffff:10.0.0.1]/", "http://169.254.169.254/latest",
        "http://example.org/" + "x" * 3000,
    ],
)  # fmt: skip
def test_a_url_that_may_not_be_asked_for_is_refused(uri: str) -> None:
    with pytest.raises(BadRequest):
        WebDownload(WebRules(), LIMITS).check(uri)


@pytest.mark.parametrize(
    "uri", ["http://example.org/x", "https://example.org/x?y=z", "HTTP://EXAMPLE.ORG:80/", "http://8.8.8.8/"]
)
def test_a_public_url_is_let_through_by_default(uri: str) -> None:
    assert WebDownload(WebRules(), LIMITS).check(uri).host


@pytest.mark.parametrize(
    ("table", "passes", "refused"),
    [
        ({"allowed_hosts": ["Images.example.org."]}, "http://images.EXAMPLE.org./x", "http://example.org/x"),
        ({"disallowed_hosts": ["example.org"]}, "http://images.example.org/x", "http://EXAMPLE.org/x"),
        ({"allowed_ports": [8080]}, "http://example.org:8080/", "http://example.org/"),
        ({"allowed_ports": [], "disallowed_ports": [22]}, "http://example.org:9/", "http://example.org:22/"),
        ({"allowed_schemes": ["https"]}, "https://example.org/", "http://example.org/"),
        ({"disallowed_schemes": ["http"]}, "https://example.org/", "http://example.org/"),
        ({"allow_internal": ["10.1.0.0/16", "fd00::/8"]}, "http://10.1.2.3/", "http://10.2.0.1/"),
        ({"allow_internal": ["10.1.0.0/16", "fd00::/8"]}, "http://[fd00::1]/", "http://[fc00::1]/"),
    ],
)
def test_lists_of_the_configuration_decide(table: dict[str, Any], passes: str, refused: str) -> None:
    web = WebDownload(parse({"web_download": table}).web, LIMITS)
    assert web.check(passes)
    with pytest.raises(BadRequest):
        web.check(refused)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"method": []}, "import.method"),
        ({"methods": ["glance-download"]}, "glance-download"),
        ({"methods": "web-download"}, "import.methods"),
        ({"web_download": 1}, "import.web_download"),
        ({"web_download": {"hosts": []}}, "import.web_download.hosts"),
        ({"web_download": {"allowed_ports": ["80"]}}, "allowed_ports"),
        ({"web_download": {"allowed_ports": [True]}}, "allowed_ports"),
        ({"web_download": {"allowed_schemes": ["ftp"]}}, "ftp"),
        ({"web_download": {"allow_internal": ["127.0.0.1/8"]}}, "allow_internal"),
    ],
)
def test_a_wrong_table_is_refused_by_the_name_of_its_key(table: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(table)


def test_an_empty_table_turns_every_method_on() -> None:
    assert parse({}) == ImportRules()
