"""What a zone that is cut off can't do it says clearly and in time, and clients print it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.clients.conftest import DATA, FETCH_IDLE_S, SOON_S, Place, cut_off, fresh, glance_of, openstack_of, soon
from tests.clients.driving import Commands, Libraries, Refused, Shell
from zonegw.limits import Limits

pytestmark = pytest.mark.slow

PATCH = "application/openstack-images-v2.1-json-patch"
# The zone that has the data may be reached even where the registry isn't, so it is asked, but not for long.
IN_TIME_S = FETCH_IDLE_S + 5


@pytest.fixture
def glance(place_cut_off: Place, shell: Shell) -> Commands:
    return glance_of(place_cut_off, shell, place_cut_off.alice)


def test_an_image_made_while_cut_off_reaches_the_other_zone_when_the_link_is_back(
    a_place: Place, shell: Shell, data: Path, tmp_path: Path
) -> None:
    ams = a_place.cluster.zones["ams"]
    fra = glance_of(a_place, shell, a_place.alice)
    other = Commands(shell, "glance", ("--os-image-url", ams.url, "--os-auth-token", ams.token))
    with cut_off(a_place):
        formats = ("--disk-format", "raw", "--container-format", "bare")
        name = fresh("made cut off")
        image = fra("image-create", "--name", name, *formats, "--file", str(data), "--tags", "one").properties["id"]
        fra("image-update", image, "--property", "changed=yes")
        assert name not in other("image-list").stdout
    soon(lambda: name in other("image-list").stdout, "ams lists the image")
    soon(lambda: other("image-show", image).properties.get("changed") == "yes", "ams has all of it")
    other("image-download", image, "--file", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == DATA


def test_a_user_of_openstackclient_does_not_notice_a_short_outage(a_place: Place, shell: Shell) -> None:
    """The client comes again when the refusal told it to; meanwhile the link is healed."""
    openstack, value = openstack_of(a_place, shell, a_place.alice), fresh("value")

    def refused() -> bool:
        count = 'zonegw_requests_total{route="PATCH /v2/images/{id}",status="503"}'
        return count in a_place.ask("GET", "/metrics")[1].decode()

    with cut_off(a_place), ThreadPoolExecutor(1) as threads:
        done = threads.submit(openstack, "image", "set", "--property", f"outage={value}", a_place.of_ams)
        soon(refused, "the change is refused")
        a_place.cluster.heal_zone("fra")
        done.result(SOON_S)
    assert value in a_place.ask("GET", f"/v2/images/{a_place.of_ams}")[1].decode()


def test_work_on_own_images_does_not_wait_for_the_link(place_cut_off: Place, libraries: Libraries, data: Path) -> None:
    images = libraries.glanceclient(place_cut_off.url, place_cut_off.alice.token).images
    began = time.monotonic()
    image = images.create(name=fresh("own"), disk_format="raw", container_format="bare")["id"]
    images.upload(image, data)
    images.update(image, flavour="small")
    assert images.get(image)["status"] == "active"
    assert images.data(image) == DATA
    assert image in [found["id"] for found in images.list()]
    images.delete(image)
    assert time.monotonic() - began < Limits().uplink_deadline_s


COMMANDS: list[Callable[[str], tuple[str, ...]]] = [
    lambda image: ("image-update", image, "--name", "renamed"),
    lambda image: ("image-tag-update", image, "golden"),
    lambda image: ("member-create", image, "other"),
    lambda image: ("image-upload", image),
    lambda image: ("image-delete", image),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command("")[0])
def test_an_image_of_another_zone_is_read_but_not_changed(
    place_cut_off: Place, glance: Commands, command: Callable[[str], tuple[str, ...]], data: Path
) -> None:
    said = glance.refused(*command(place_cut_off.of_ams), stdin=data)
    assert "503" in said
    assert "zone ams" in said
    assert glance("image-show", place_cut_off.of_ams).properties["name"] == "of ams"


def test_the_refusal_says_when_to_come_again_and_in_which_state_the_zone_is(place_cut_off: Place) -> None:
    path = f"/v2/images/{place_cut_off.of_ams}"
    for method, body in (("PATCH", '[{"op": "replace", "path": "/name", "value": "x"}]'), ("DELETE", None)):
        answer, said = place_cut_off.ask(method, path, body=body, Content_Type=PATCH)
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["X-Zonegw-State"] == "degraded"
        assert b"ams" in said


def test_services_and_openstackclient_are_told_as_well(
    place_cut_off: Place, shell: Shell, libraries: Libraries
) -> None:
    library = libraries.glanceclient(place_cut_off.url, place_cut_off.alice.token)
    with pytest.raises(Refused, match="zone ams") as refused:
        library.images.update(place_cut_off.of_ams, name="renamed")
    assert refused.value.status == 503
    # It comes again when it was told to, here only once.
    openstack = openstack_of(place_cut_off, shell, place_cut_off.alice, OS_IMAGE_STATUS_CODE_RETRIES="1")
    assert "zone ams" in openstack.refused("image", "set", "--property", "a=b", place_cut_off.of_ams)


def test_data_that_only_another_zone_has_is_refused_in_time(
    place_cut_off: Place, glance: Commands, tmp_path: Path
) -> None:
    assert glance("image-show", place_cut_off.with_data).properties["status"] == "active"
    began = time.monotonic()
    said = glance.refused("image-download", place_cut_off.with_data, "--file", str(tmp_path / "copy"))
    assert "503" in said
    assert time.monotonic() - began < IN_TIME_S
