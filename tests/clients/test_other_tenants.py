"""A private image of another tenant does not exist, whichever way one asks, and no answer gives it away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import Place, fresh, glance_of, openstack_of
from tests.clients.driving import Commands, Libraries, Library, Refused, Shell

pytestmark = pytest.mark.slow

SECRET = "the-secret-name"


@pytest.fixture
def private(library: Library, data: Path) -> str:
    """ID of alice's private image."""
    image = library.images.create(
        name=fresh(SECRET), disk_format="raw", container_format="bare", visibility="private", tags=[SECRET],
        secret=SECRET,
    )  # fmt: skip
    library.images.upload(image["id"], data)
    identity: str = image["id"]
    return identity


@pytest.fixture
def bob(place: Place, shell: Shell) -> Commands:
    return glance_of(place, shell, place.bob)


COMMANDS: list[Callable[[str, str], tuple[str, ...]]] = [
    lambda image, file: ("image-show", image),
    lambda image, file: ("image-download", image, "--file", file),
    lambda image, file: ("image-upload", image, "--file", file),
    lambda image, file: ("image-update", image, "--name", "mine"),
    lambda image, file: ("image-delete", image),
    lambda image, file: ("image-tag-update", image, "mine"),
    lambda image, file: ("image-tag-delete", image, SECRET),
    lambda image, file: ("image-deactivate", image),
    lambda image, file: ("image-reactivate", image),
    lambda image, file: ("image-stage", image, "--file", file),
    lambda image, file: ("image-import", image, "--import-method", "copy-image", "--all-stores", "True"),
    lambda image, file: ("image-tasks", image),
    lambda image, file: ("stores-delete", "--store", "fra", image),
    lambda image, file: ("member-list", "--image-id", image),
    lambda image, file: ("member-get", image, "other"),
    lambda image, file: ("member-create", image, "other"),
    lambda image, file: ("member-update", image, "other", "accepted"),
    lambda image, file: ("member-delete", image, "other"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command("", "")[0])
def test_a_command_about_it_is_told_that_there_is_none(
    bob: Commands, private: str, command: Callable[[str, str], tuple[str, ...]], data: Path
) -> None:
    said = bob.refused(*command(private, str(data)))
    assert "404" in said or "No image with an ID" in said or "not found" in said, said
    assert SECRET not in said
    assert "demo" not in said


def test_it_is_answered_as_an_image_that_never_was(place: Place, private: str) -> None:
    never = "5b1c5d3e-2f44-4c0e-9f0a-7f6f0d9c2b11"
    for method, path in (("GET", ""), ("GET", "/file"), ("DELETE", ""), ("GET", "/members"), ("GET", "/members/other")):
        answers = [place.ask(method, f"/v2/images/{image}{path}", place.bob) for image in (private, never)]
        assert [answer.status for answer, _ in answers] == [404, 404]
        assert answers[0][1].replace(private.encode(), never.encode()) == answers[1][1]


def test_no_list_and_no_filter_shows_it(bob: Commands, place: Place, private: str) -> None:
    for options in (
        (), ("--visibility", "private"), ("--visibility", "all"), ("--owner", place.alice.project), ("--tag", SECRET),
        ("--property-filter", f"secret={SECRET}"), ("--property-filter", f"id=in:{private}"),
        ("--member-status", "all", "--visibility", "shared"), ("--hidden", "True"),
    ):  # fmt: skip
        listed = bob("image-list", *options)
        assert private not in listed.stdout, options
        assert SECRET not in listed.stdout, options


def test_it_is_no_place_to_go_on_from(place: Place, private: str) -> None:
    answer, body = place.ask("GET", f"/v2/images?marker={private}", place.bob)
    assert answer.status == 400
    assert SECRET not in body.decode()


def test_it_is_not_found_by_name(place: Place, shell: Shell, private: str, library: Library) -> None:
    name = library.images.get(private)["name"]
    said = openstack_of(place, shell, place.bob).refused("image", "show", name)
    assert private not in said


def test_its_id_can_not_be_taken_by_another(place: Place, libraries: Libraries, private: str) -> None:
    with pytest.raises(Refused) as refused:
        libraries.glanceclient(place.url, place.bob.token).images.create(id=private, name="mine")
    assert refused.value.status == 409
    assert SECRET not in refused.value.message


def test_the_first_version_of_the_api_does_not_know_it_either(
    place: Place, shell: Shell, private: str, library: Library
) -> None:
    image = library.images.get(private)
    number = str(image["os_glance_v1_id"])
    bob = glance_of(place, shell, place.bob, "--os-image-api-version", "1")
    for command in (("image-show", number), ("image-delete", number), ("member-list", "--image-id", number)):
        said = bob.refused(*command)
        assert SECRET not in said
    assert SECRET not in bob("image-list").stdout
    assert SECRET not in bob("image-list", "--property-filter", f"secret={SECRET}").stdout
    for method in ("GET", "HEAD", "DELETE"):
        assert place.ask(method, f"/v1/images/{number}", place.bob)[0].status == 404
    assert place.ask("GET", f"/v1/images?marker={number}", place.bob)[0].status == 400
