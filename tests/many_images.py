"""A state with images that differ in whatever a listing filters or sorts by."""

from __future__ import annotations

from raftreg import queries
from tests.state_life import Document, Life, create, delete, location, update

NAMES = ("b", "a", "c", None, "a", "ä", "Z", "aa")
OWNERS = ("p1", "p2", None)
FORMATS = ("qcow2", "raw", None, "iso", "qcow2")
SIZES = (None, 5, 1 << 40, 0)
VISIBILITIES = ("private", "public", "shared")
TAGS: tuple[list[str], ...] = ([], ["x"], ["y", "x"], ["y"])
LOCATIONS: tuple[list[Document], ...] = (
    [],
    [location("a", "fra")],
    [location("a", "fra"), location("b", "ber")],
    [{**location("a", "ber"), "status": "pending"}, {**location("b"), "zone": None}],
    [location("a", "fra"), location("b", "fra")],
)
MEMBERS: tuple[Document, ...] = (
    {"m1": {"status": "accepted"}},
    {},
    {"m1": {}, "m2": {"status": "accepted"}},
    {"m2": {"status": "rejected", "can_share": True}},
    {"m2": {}},
)


def populate(life: Life) -> list[Document]:
    """24 images whose attributes repeat in different periods; some moved, some deleted. Returns what is left."""
    life.do({"op": "register_zone", "zone": "fra"})
    for n in range(24):
        attributes = {
            "name": NAMES[n % len(NAMES)], "owner": OWNERS[n % 3], "visibility": VISIBILITIES[n // 3 % 3],
            "disk_format": FORMATS[n % 5], "container_format": "bare" if n % 2 else None, "size": SIZES[n % 4],
            "protected": n == 9, "min_ram": n % 2,
        }  # fmt: skip
        life.now_us += n % 2  # two images share each moment
        more: Document = {"tags": TAGS[n % len(TAGS)], "locations": LOCATIONS[n % len(LOCATIONS)]}
        more["properties"] = {"os_distro": "debian" if n % 3 else "alpine"}
        life.do(create(str(n), **attributes, **more, home_zone="fra" if n % 4 else None))
        life.do(update(n + 1, set_members=MEMBERS[n % len(MEMBERS)]))
    life.do(update(3, set={"name": "moved", "visibility": "community", "owner": "p9"}))
    life.do(update(4, set={"status": "saving"}), delete(5), delete(24))
    life.do(update(7, set={"tags": ["new"], "visibility": "private"}, remove_locations=["a", "b"]))
    life.do(update(8, set_members={"m1": {"status": "rejected"}}, remove_members=["m2"], set={"visibility": "shared"}))
    return [image for n in range(1, 25) if "deleted" not in (image := _image(life, n))]


def _image(life: Life, number: int) -> Document:
    image = queries.get_image(life.view, {"number": number})
    assert image is not None
    return image
