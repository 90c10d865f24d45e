"""Random histories of commands against a plain model of what they mean, cut into entries in two ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from raftreg import listing, queries, state_machine
from raftreg.commands import EPOCH_IDS_SKIPPED
from raftreg.tables import hash16, pack, unpack
from tests.state_life import CHAIN_START, START_US, Document, Life, a_state, create, location, uuid_of

ZONES = {"gw1": "fra", "gw2": "ber"}


# -- the model ----------------------------------------------------------------------------------------------------


@dataclass
class Image:
    uuid: str
    version: int = 1
    home: str | None = None
    deleted: bool = False
    holders: set[str] = field(default_factory=set)
    values: dict[str, str | None] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)
    changed_at: dict[str, int] = field(default_factory=dict)
    epoch: int = 1  # of its last change
    epoch_version: int | None = None


@dataclass
class Session:
    uuid: str
    token: int
    last: int = 0
    hash: bytes = CHAIN_START
    blocks: list[range] = field(default_factory=list)
    answers: list[tuple[bytes, Document]] = field(default_factory=list)


class Model:
    """Sequential meaning of the commands below: enough to foretell code, number and version of every result."""

    def __init__(self) -> None:
        self.images: dict[int, Image] = {}
        self.next_id = 1
        self.sessions: dict[str, Session] = {}
        self.tokens: dict[str, int] = {}
        self.fenced: set[str] = set()
        self.keys: dict[str, tuple[Document, Document]] = {}
        self.live: set[str] = set()
        self.epoch = 1
        self.skipped: list[range] = []

    def step(self, command: Document) -> Document:
        """The abridged result: {"code"} or what `abridged` keeps."""
        key = command.get("key")
        if key is None:
            return self._act(command)
        asked = {name: value for name, value in command.items() if name not in ("actor", "key")}
        if key not in self.keys:
            self.keys[key] = (asked, self._act(command))
        return self.keys[key][1] if self.keys[key][0] == asked else {"code": "idempotency_mismatch"}

    def _act(self, command: Document, session: Session | None = None) -> Document:
        action: Any = getattr(self, "_" + command["op"])
        result: Document = action(command, session)
        return result

    def _create_image(self, command: Document, session: Session | None) -> Document:
        number = command.get("number")
        if any(image.uuid == command["uuid"] for image in self.images.values()):
            return {"code": "uuid_taken"}
        if command.get("home_zone") not in (None, *(ZONES[name] for name in self.tokens)):
            return {"code": "zone_not_found"}
        if number is None:
            number, self.next_id = self.next_id, self.next_id + 1
        elif session is None or not any(number in block for block in [*session.blocks, *self.skipped]):
            return {"code": "block_not_held"}
        elif number in self.images:
            return {"code": "number_taken"}
        image = Image(command["uuid"], home=command.get("home_zone"), epoch=self.epoch)
        image.holders = {location["zone"] for location in command.get("locations", ())}
        image.values["name"] = command["attributes"]["name"]
        self.images[number] = image
        return {"number": number, "version": 1}

    def _find(self, command: Document) -> tuple[Document | None, int]:
        number = command["image"]["number"]
        image = self.images.get(number)
        if image is None:
            return {"code": "image_not_found"}, number
        if image.deleted:
            return {"code": "image_deleted"}, number
        zone = (command.get("actor") or {}).get("zone")
        if image.home not in (None, *self.live) and zone not in (None, image.home):
            return {"code": "home_zone_away"}, number
        return None, number

    def _update_image(self, command: Document, _session: Session | None) -> Document:
        refusal, number = self._find(command)
        if refusal is not None:
            return refusal
        image = self.images[number]
        base, shared, ended = command.get("base_version"), command["set_members"], command["remove_members"]
        if base is not None and any(image.changed_at.get(name, 1) > base for name in [*command["set"], *shared]):
            return {"code": "conflict"}
        if set(shared) & set(ended):
            return {"code": "invalid"}
        if image.epoch < self.epoch:
            image.epoch, image.epoch_version = self.epoch, image.version
        image.version += 1
        for project in ended:
            if image.members.pop(project, None) is not None:
                image.changed_at[project] = image.version
        for project, fields in shared.items():
            before = image.members.get(project)
            image.members[project] = fields.get("status", before or "pending")
            if image.members[project] != before:
                image.changed_at[project] = image.version
        for name, value in command["set"].items():
            if name not in image.values or image.values[name] != value:
                image.values[name], image.changed_at[name] = value, image.version
        return {"number": number, "version": image.version}

    def _delete_image(self, command: Document, _session: Session | None) -> Document:
        refusal, number = self._find(command)
        if refusal is not None:
            return refusal
        image = self.images[number]
        image.deleted, image.version = True, image.version + 1
        return {"number": number, "version": image.version}

    def _confirm_deletions(self, command: Document, _session: Session | None) -> Document:
        images = [self.images[number] for number in command["numbers"] if number in self.images]
        held = [image for image in images if image.deleted and command["zone"] in image.holders]
        for image in held:
            image.holders = image.holders - {command["zone"]}
        return {"confirmed": len(held)}

    def _allocate_ids(self, command: Document, _session: Session | None) -> Document:
        first, self.next_id = self.next_id, self.next_id + command["count"]
        return {"first": first}

    def _atomic(self, command: Document, _session: Session | None) -> Document:
        trial = Model()
        trial.images = {
            number: replace(i, values=dict(i.values), members=dict(i.members), changed_at=dict(i.changed_at))
            for number, i in self.images.items()
        }
        trial.next_id, trial.tokens, trial.live, trial.epoch = self.next_id, self.tokens, self.live, self.epoch
        for operation in command["operations"]:
            if "code" in trial._act(operation):
                return {"code": "atomic_refused"}
        self.images, self.next_id = trial.images, trial.next_id
        return {}

    def _set_zone_lease(self, command: Document, _session: Session | None) -> Document:
        (self.live.add if command["live"] else self.live.discard)(command["zone"])
        return {}

    def _open_session(self, command: Document, _session: Session | None) -> Document:
        gateway, uuid = command["gateway"], command["session"]
        if uuid in self.fenced:
            return {"code": "session_fenced"}
        current = self.sessions.get(gateway)
        if current is None or current.uuid != uuid:
            if current is not None:
                self.fenced.add(current.uuid)
            self.tokens[gateway] = self.tokens.get(gateway, 0) + 1
            kept = current.blocks if current is not None and command["epoch"] < self.epoch else []
            self.sessions[gateway] = Session(uuid, self.tokens[gateway], blocks=kept)
        if command["epoch"] < self.epoch and command["highest_number"] >= self.next_id:
            self._skip(command["highest_number"] + 1)
        return {"token": self.tokens[gateway], "last_sequence": self.sessions[gateway].last, "diverged": False}

    def _begin_epoch(self, command: Document, _session: Session | None) -> Document:
        if command["epoch"] <= self.epoch:
            return {"code": "epoch_passed"}
        self.epoch = command["epoch"]
        self._skip(self.next_id + EPOCH_IDS_SKIPPED)
        return {}

    def _skip(self, next_id: int) -> None:
        self.skipped.append(range(self.next_id, next_id))
        self.next_id = next_id

    def _grant_block(self, command: Document, _session: Session | None) -> Document:
        session = self.sessions.get(command["gateway"])
        if session is None or session.uuid != command["session"]:
            return {"code": "session_fenced" if command["session"] in self.fenced else "session_unknown"}
        first, self.next_id = self.next_id, self.next_id + command["size"]
        session.blocks.append(range(first, self.next_id))
        return {"first": first, "token": session.token}

    def _session_operation(self, command: Document, _session: Session | None) -> Document:
        session = self.sessions.get(command["gateway"])
        if session is None or session.uuid != command["session"]:
            return {"code": "session_fenced" if command["session"] in self.fenced else "session_unknown"}
        sequence: int = command["sequence"]
        payload: bytes = command["payload"]
        if sequence > session.last + 1:
            return {"code": "sequence_gap"}
        if sequence <= session.last:
            return session.answers[sequence - 1][1]
        inner: Document = unpack(payload)
        actor = {"gateway": command["gateway"], "zone": ZONES[command["gateway"]]}
        answer = self._act({**inner, "actor": actor}, session)
        session.answers.append((payload, answer))
        session.last, session.hash = sequence, hash16(command["previous_hash"] + payload)
        return answer


def abridged(result: Document) -> Document:
    """What the model foretells of a result."""
    if "error" in result:
        return {"code": result["error"]["code"]}
    ok = result["ok"]
    if "sequence" in ok:
        return abridged(ok["result"])
    if "zone" in ok or "results" in ok or "next_id" in ok:
        return {}
    names = ("number", "version", "first", "token", "last_sequence", "diverged", "confirmed")
    return {name: ok[name] for name in names if name in ok}


# -- histories ----------------------------------------------------------------------------------------------------

# Where every history begins: both gateways have a block (1 to 3, 4 to 6), and there are images of every home.
PRELUDE: list[Any] = [
    ("open", "gw1", 1), ("open", "gw2", 1), ("grant", "gw1", 3), ("grant", "gw2", 3),
    create("i1", home_zone="fra"), create("i2", home_zone="ber"), create("i3"),
    ("carry", "gw1", create("i4", number=1), 1),
]  # fmt: skip


def weighted(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """One of the strategies, as often as its weight says; `one_of` would take each of them equally often."""
    return st.sampled_from([strategy for weight, strategy in choices for _ in range(weight)]).flatmap(lambda s: s)


# Few images and old base versions: most updates meet another of the same image.
NUMBERS = st.sampled_from([1, 2, 4, 7, 7, 7, 8, 8, 9, 99])
GATEWAYS = st.sampled_from(sorted(ZONES))
HOMES = st.sampled_from([None, None, "fra", "ber"])
ACTORS = st.sampled_from([{}, {}, {"zone": "fra", "gateway": "gw1"}, {"zone": "ber", "gateway": "gw2"}])
CHANGES = st.dictionaries(st.sampled_from(["name", "owner", "properties.p"]), st.sampled_from("xyz"), max_size=2)
PROJECTS = st.sampled_from(["m1", "m2"])
MEMBERS = st.dictionaries(
    PROJECTS, st.sampled_from([{}, {"status": "accepted"}, {"status": "rejected"}]), min_size=1, max_size=2
)
creates = st.builds(
    lambda n, home, zones: create(f"i{n}", home_zone=home, locations=[location(zone, zone) for zone in zones]),
    st.integers(1, 30), HOMES, st.sampled_from([[], ["fra"], ["ber", "fra"]]),
)  # fmt: skip
numbered = st.builds(
    lambda n, number: create(f"i{n}", number=number), st.integers(1, 30), st.sampled_from([1, 1, 1, 4, 4, 7])
)
updates = st.builds(
    lambda number, changes, shared, ended, base: {
        "op": "update_image", "image": {"number": number}, "set": changes, "set_members": shared,
        "remove_members": ended, "base_version": base,
    },
    NUMBERS, CHANGES, MEMBERS | st.just({}), st.lists(PROJECTS, max_size=1), st.sampled_from([None, 1, 1, 2, 3]),
)  # fmt: skip
deletes = st.builds(lambda number: {"op": "delete_image", "image": {"number": number}}, NUMBERS)
confirmations = st.builds(
    lambda zone, number: {"op": "confirm_deletions", "zone": zone, "numbers": [number, number]},
    st.sampled_from(["fra", "ber"]), st.sampled_from([7, 7, 8, 9, 10, 99]),
)  # fmt: skip
allocations = st.builds(lambda count: {"op": "allocate_ids", "count": count}, st.integers(1, 2))
simple = weighted((2, creates), (6, updates), (1, deletes), (1, allocations))
acted = st.builds(lambda command, actor: {**command, "actor": actor}, simple, ACTORS)
keyed = st.builds(lambda command, key: {**command, "key": key}, simple, st.sampled_from(["k1", "k2", "k3"]))
atomics = st.builds(lambda operations: {"op": "atomic", "operations": operations}, st.lists(simple, max_size=4))
leases = st.builds(
    lambda zone, live: {"op": "set_zone_lease", "zone": zone, "live": live},
    st.sampled_from(["fra", "ber"]),
    st.booleans(),
)
openings = st.builds(lambda gateway, n: ("open", gateway, n), GATEWAYS, st.sampled_from([1, 2]))
epochs = st.builds(lambda ahead: ("epoch", None, ahead), st.sampled_from([0, 0, 1, 1]))
# A gateway that was acknowledged `lost` operations, and knows of numbers, that the life before alone had.
rewinds = st.builds(
    lambda gateway, n, lost, beyond: ("rewind", gateway, n, lost, beyond),
    GATEWAYS, st.sampled_from([1, 1, 2]), st.integers(0, 3), st.sampled_from([0, 0, 3]),
)  # fmt: skip
returns = st.builds(
    lambda gateway, n, place, offset: ("return", gateway, create(f"i{n}"), place, offset),
    GATEWAYS, st.integers(1, 30), st.integers(0, 2), st.integers(0, 2),
)  # fmt: skip
grants = st.builds(lambda gateway, size: ("grant", gateway, size), GATEWAYS, st.integers(1, 3))
carried = st.builds(
    lambda gateway, inner, offset: ("carry", gateway, inner, offset),
    GATEWAYS, weighted((2, creates), (2, numbered), (4, updates), (1, deletes)), st.sampled_from([1, 1, 1, 0, 2]),
)  # fmt: skip
histories = st.lists(
    weighted(
        (10, acted),
        (2, keyed),
        (2, atomics),
        (2, leases),
        (2, confirmations),
        (4, openings),
        (2, grants),
        (8, carried),
        (2, epochs),
        (1, rewinds),
        (2, returns),
    ),
    min_size=10,
    max_size=40,
).map(lambda steps: PRELUDE + steps)


def concrete(step: Any, model: Model) -> Document:
    """The command for a step that depends on where the gateway's session stands."""
    if isinstance(step, dict):
        return step
    kind, gateway = step[0], step[1]
    session = model.sessions.get(gateway) or Session(uuid_of("none"), 0)
    common = {"gateway": gateway, "session": session.uuid}
    if kind == "epoch":
        return {"op": "begin_epoch", "epoch": max(2, model.epoch + step[2])}
    if kind in ("open", "rewind"):
        return opening(step, model, session)
    if kind == "return":
        _, _, inner, place, offset = step
        lost = model.skipped[place % len(model.skipped)] if model.skipped else range(900, 910)
        return {
            "op": "session_operation", **common, "sequence": session.last + 1, "previous_hash": session.hash,
            "payload": pack(inner | {"number": lost[offset]}),
        }  # fmt: skip
    if kind == "grant":
        return {"op": "grant_block", **common, "size": step[2], "token": session.token}
    _, _, inner, offset = step
    if offset == 0 and session.last:
        before = hash_before(session)
        return {
            "op": "session_operation", **common, "sequence": session.last, "previous_hash": before,
            "payload": session.answers[-1][0],
        }  # fmt: skip
    sequence = session.last + max(offset, 1)
    return {
        "op": "session_operation", **common, "sequence": sequence, "previous_hash": session.hash,
        "payload": pack(inner),
    }  # fmt: skip


def opening(step: Any, model: Model, session: Session) -> Document:
    """The handshake: a plain one in the present epoch, or one of the epoch before with what that one alone had."""
    gateway, uuid = step[1], uuid_of(f"{step[1]}-{step[2]}")
    lost, beyond = step[3:] if step[0] == "rewind" and model.epoch > 1 else (0, 0)
    epoch = model.epoch - 1 if step[0] == "rewind" and model.epoch > 1 else model.epoch
    last, chain = (session.last, session.hash) if uuid == session.uuid else (0, CHAIN_START)
    return {
        "op": "open_session", "gateway": gateway, "session": uuid, "zone": ZONES[gateway],
        "highest_sequence": last + lost, "acked_sequence": last + lost,
        "acked_hash": hash16(b"lost") if lost else chain, "epoch": epoch, "epoch_began": START_US if epoch > 1 else 0,
        "highest_number": model.next_id - 1 + beyond,
    }  # fmt: skip


def hash_before(session: Session) -> bytes:
    """The running hash below the session's last operation."""
    chain = CHAIN_START
    for payload, _ in session.answers[:-1]:
        chain = hash16(chain + payload)
    return chain


def check_images(life: Life, model: Model) -> None:
    for number, expected in model.images.items():
        image = queries.get_image(life.view, {"number": number})
        assert image is not None
        assert (image["uuid"], image["version"]) == (expected.uuid, expected.version)
        assert expected.deleted or image.get("epoch_version") == expected.epoch_version
        assert image.get("deleted", False) == expected.deleted
        assert not expected.deleted or set(image["holders"]) <= expected.holders
        if not expected.deleted:
            assert {project: member["status"] for project, member in image["members"].items()} == expected.members
            found = {"name": image["name"], "owner": image["owner"], "properties.p": image["properties"].get("p")}
            assert {name: found[name] for name in expected.values} == expected.values
    listed, _ = listing.list_images(life.view, limit=99)
    assert len(listed) == sum(not image.deleted for image in model.images.values())


def cuts(commands: list[Document], sizes: list[int]) -> Iterator[list[Document]]:
    """The commands cut into entries of these sizes, and the rest."""
    for size in sizes:
        yield commands[:size]
        commands = commands[size:]
    yield commands


def test_histories_come_by_every_refusal_that_the_model_knows() -> None:
    """What no history reaches, the test below does not test."""
    reached: set[str] = set()

    @settings(max_examples=300)
    @given(histories)
    def walk(history: list[Any]) -> None:
        model = Model()
        reached.update(model.step(concrete(step, model)).get("code", "ok") for step in history)

    walk()
    assert reached == {
        "ok", "atomic_refused", "block_not_held", "conflict", "epoch_passed", "home_zone_away", "idempotency_mismatch",
        "image_deleted", "image_not_found", "invalid", "number_taken", "sequence_gap", "session_fenced", "uuid_taken",
    }  # fmt: skip


@settings(max_examples=100)
@given(histories, st.lists(st.integers(0, 6), max_size=6))
def test_every_result_is_the_models_and_the_cut_into_entries_changes_nothing(
    history: list[Any], sizes: list[int]
) -> None:
    """Goal: results, rows and digest depend on the order of commands alone.

    Method: one state gets one command per entry and is validated after each, another the same commands cut otherwise.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        life = Life(stack.enter_context(a_state(directory, "one")))
        other = Life(stack.enter_context(a_state(directory, "two")), validate=False)
        model = Model()
        commands, results = [], []
        for step in history:
            command = concrete(step, model)
            commands.append(command)
            expected = model.step(command)
            results += life.do(command)
            assert abridged(results[-1]) == expected, command
        check_images(life, model)
        assert [result for entry in cuts(commands, sizes) for result in other.do(*entry)] == results
        assert other.digest() == life.digest()
        state_machine.validate_state(other.view)
