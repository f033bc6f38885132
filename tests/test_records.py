"""Records that were renamed, edited or damaged: nothing is ordered, deleted or taken for granted.

The world below has a profile at every stage that a record knows. Its records are damaged byte by
byte, and edited field by field with a digest that fits: as by somebody who knows how it is made.
"""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hypothesis
import pytest
from conftest import Document, Lab
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import strategies as st
from simulators.ca import Authority, to_pem
from simulators.certkeys import key_pem
from simulators.netscaler import NetScaler, nitro_error
from simulators.scm import Scm
from simulators.server import Fault
from test_certificates import NOW, profile
from test_faults import wants

import citrixagent as agent

STAGES = ("unsent", "unknown", "waits", "issued", "renewed", "restoring")
DAMAGED = "is damaged and was left as it is"


class World:
    """A lab with one profile at each stage, on an appliance that others use as well."""

    def __init__(self, folder: pathlib.Path, appliance: NetScaler, scm: Scm) -> None:
        self.lab = Lab(folder, appliance, scm)
        self.lab.accept()
        self._install_theirs()
        for name in STAGES:
            appliance.add_virtual_server(f"vs_{name}", "load_balancing")
            self.write_profile(name)
        self._reach_stages()
        self.records = {name: self.path(name).read_text() for name in STAGES}
        self._running, self._stored = appliance.running.copy(), appliance.stored.copy()
        self._files = dict(appliance.files)

    def write_profile(self, name: str, stage: str = "") -> None:
        servers = [{"name": f"vs_{stage or name}", "type": "load_balancing"}]
        certificate = self.lab.certificate(name=stage or name)
        self.lab.write_profile(
            name,
            virtual_servers=servers,
            certificate=certificate,
            enrollment={"max_wait": 0},
        )

    def path(self, name: str) -> pathlib.Path:
        return self.lab.home / "state" / f"profile-{name}.json"

    def _install_theirs(self) -> None:
        box, key = self.lab.appliance, ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.timezone.utc)
        end = now + dt.timedelta(days=90)
        leaf = Authority().certify(key.public_key(), ["theirs.example.com"], now, end)
        box.add_virtual_server("vs_theirs", "gateway")
        box.install("theirs", to_pem([leaf]), key_pem(key).decode())
        box.bind("vs_theirs", "theirs")
        box.write("/nsconfig/ns.conf", b"set ns config")
        box.write("/nsconfig/ssl/loose.key", b"a key")

    def _reach_stages(self) -> None:
        lab, faults = self.lab, self.lab.appliance.server.faults
        refusal = nitro_error(1645)
        assert lab("run", "renewed", "restoring").exit_code == 0
        assert lab("renew", "renewed", "restoring").exit_code == 0
        faults.append(Fault("reset", matches=wants("POST", "action=update"), times=9))
        assert lab("rollback", "restoring").exit_code == 1
        faults[:] = [Fault("status", matches=wants("POST", "/sslcertreq"), response=refusal)]
        assert lab("run", "unsent").exit_code == 1
        faults[:] = [Fault("status", matches=wants("POST", "/systemfile"), response=refusal)]
        assert lab("run", "issued").exit_code == 1
        faults.clear()
        lab.scm.server.faults.append(Fault("lost", matches=wants("POST", "/api/v1/certificates")))
        assert lab("run", "unknown").exit_code == 1
        lab.scm.approval = "manual"
        assert lab("run", "waits").exit_code == 5

    def restore(self) -> None:
        """Put records and appliance back to where they were; what SCM was asked for stays."""
        box = self.lab.appliance
        box.running, box.stored = self._running.copy(), self._stored.copy()
        box.files = dict(self._files)
        box.refresh()
        for name, text in self.records.items():
            self.path(name).write_text(text)

    def check_others(self, name: str) -> None:
        """All that is not the profile's own is as it was, whoever it belongs to."""
        box = self.lab.appliance

        def is_own(path: str) -> bool:
            return path.startswith(f"/nsconfig/ssl/{name}-")

        for there in (box.running, box.stored):
            assert {n: row for n, row in there.certkeys.items() if n != name} == {
                n: row for n, row in self._running.certkeys.items() if n != name
            }
        assert {p: text for p, text in box.files.items() if not is_own(p)} == {
            p: text for p, text in self._files.items() if not is_own(p)
        }
        others = [binding for binding in self._running.bindings if binding.certkey != name]
        assert [each for each in box.running.bindings if each.certkey != name] == others
        for other, text in self.records.items():
            assert other == name or self.path(other).read_text() == text

    def run_with(self, name: str, text: str) -> Document:
        """Run a profile with this record; return its result after looking at everything else."""
        self.restore()
        self.path(name).write_text(text)
        outcome = self.lab.json("run", name)
        assert outcome.exit_code in {0, 1, 5}
        assert "unexpected" not in outcome.text
        self.check_others(name)
        return outcome.profile(name)

    def check_refused(self, name: str, text: str, words: str) -> None:
        """The profile fails before anything is changed, here, on the appliance or at SCM."""
        orders = len(self.lab.scm.orders)
        error = self.run_with(name, text)["error"]
        assert error["kind"] == "state"
        assert words in error["message"]
        assert len(self.lab.scm.orders) == orders
        assert self.lab.appliance.running == self._running
        assert self.lab.appliance.files == self._files
        assert self.path(name).read_text() == text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with NetScaler() as appliance, Scm() as scm:
        yield World(tmp_path_factory.mktemp("home"), appliance, scm)


def sealed(data: Document) -> str:
    """Return the text of a record that was edited, with the digest that belongs to it."""
    rest = {key: value for key, value in data.items() if key not in {"version", "sha256"}}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**data, "sha256": digest})


def read(text: str, name: str, folder: pathlib.Path) -> agent.Record | None:
    """Return a record as the program reads it; None where it is refused as it should be."""
    store = agent.Store(folder)
    store.prepare()
    (store.folder / f"profile-{name}.json").write_text(text)
    with contextlib.suppress(agent.AgentError):
        return store.load(name)
    return None


def test_a_record_is_read_as_it_was_written(world: World, tmp_path: pathlib.Path) -> None:
    store = agent.Store(tmp_path)
    for name, text in world.records.items():
        record = read(text, name, tmp_path)
        assert record
        store.save(record)
        assert (store.folder / f"profile-{name}.json").read_text() == text


# Damage


def bytewise(text: str) -> st.SearchStrategy[str]:
    """Return a text of which a few characters were changed, lost or added, or the end is lost."""
    place, character = st.integers(0, len(text) - 1), st.sampled_from('0aZ",:{}[]\\ \n\x00é\ud800')
    changed = st.builds(lambda i, c: text[:i] + c + text[i + 1 :], place, character)
    added = st.builds(lambda i, c: text[:i] + c + text[i:], place, character)
    lost = st.builds(lambda i, n: text[:i] + text[i + n :], place, st.integers(1, 40))
    cut = st.builds(lambda i: text[:i], place)
    return st.one_of(changed, added, lost, cut)


def settings(examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples,
        derandomize=True,  # what lands never depends on luck; change this line to explore further
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        database=None,
    )


def same(one: str, other: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(json.loads(one) == json.loads(other))
    return False


def explore_damage(texts: dict[str, str], folder: pathlib.Path, examples: int) -> None:
    @settings(examples)
    @hypothesis.given(st.data())
    def explore(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(STAGES))
        text = (
            data.draw(bytewise(texts[name])).encode(errors="surrogatepass").decode(errors="replace")
        )
        assert read(text, name, folder) is None or same(text, texts[name])

    explore()


def test_a_damaged_record_is_refused(world: World, tmp_path: pathlib.Path) -> None:
    explore_damage(world.records, tmp_path, 100)


@pytest.mark.long
def test_a_damaged_record_is_refused_for_long(world: World, tmp_path: pathlib.Path) -> None:
    explore_damage(world.records, tmp_path, 2000)


# Edits

Path = Sequence[str | int]
WRONG = ("", "../ns.conf", "/nsconfig/ns.conf", "loose.key", "theirs.crt", "x\n", "FF", "é", "1")


def places(value: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every value in a document, with its place."""
    yield at, value
    items: Any = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield from places(inner, (*at, key))


def put(document: Document, path: Path, value: object) -> Document:
    """Return a document with another value in one place."""
    edited = copy.deepcopy(document)
    *outer, last = path
    inner: Any = edited
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return edited


def fieldwise(documents: dict[str, Document], name: str) -> st.SearchStrategy[Document]:
    """Return a record with other values in a few fields: any at all, or those of other fields."""
    document = documents[name]
    at = [path for path, _ in places(document) if path and path[0] not in {"sha256", "version"}]
    known = [value for each in documents.values() for _, value in places(each)]
    values = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from(WRONG),
        st.lists(st.sampled_from(WRONG), max_size=2),
        st.sampled_from(known),
    )

    def edited(edits: list[tuple[Path, object]]) -> Document:
        result = document
        for path, value in edits:
            with contextlib.suppress(KeyError, IndexError, TypeError):
                result = put(result, path, value)
        return result

    return st.lists(st.tuples(st.sampled_from(at), values), min_size=1, max_size=3).map(edited)


def explore_edits(
    world: World, examples: int, check: Callable[[str, str], object], stages: Sequence[str] = STAGES
) -> None:
    documents = {name: json.loads(text) for name, text in world.records.items()}

    @settings(examples)
    @hypothesis.given(st.data())
    def explore(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(stages))
        check(name, sealed(data.draw(fieldwise(documents, name))))

    explore()


def decide_with(name: str, text: str, folder: pathlib.Path) -> bool:
    """Tell whether a record is accepted; what follows from one that is, is decided as ever."""
    record = read(text, name, folder)
    if record is None:
        return False
    change, wanted = record.change, profile()
    held = [agent.read_chain(each.pem)[0] for each in record.generations[:1] if each.pem]
    issued = (
        agent.read_chain(change.new.pem)[0] if change and change.order and change.new.pem else None
    )
    for certificate in (*held, issued, None):
        seen = agent.Observed(NOW, record, certificate, issued=issued)
        for command in ("run", "enroll", "renew", "replace", "rollback"):
            with contextlib.suppress(agent.AgentError):
                agent.decide(wanted, seen, agent.Intent(command))
    agent.Store(folder).save(record)
    return True


def test_an_edited_record_is_refused_or_makes_sense(world: World, tmp_path: pathlib.Path) -> None:
    explore_edits(world, 100, lambda name, text: decide_with(name, text, tmp_path))


@pytest.mark.long
def test_an_edited_record_is_refused_or_makes_sense_for_long(
    world: World, tmp_path: pathlib.Path
) -> None:
    explore_edits(world, 2000, lambda name, text: decide_with(name, text, tmp_path))


def run_if_accepted(world: World, name: str, text: str, folder: pathlib.Path) -> None:
    if read(text, name, folder):
        world.run_with(name, text)


def test_an_edited_record_does_no_harm(world: World, tmp_path: pathlib.Path) -> None:
    explore_edits(world, 50, lambda name, text: run_if_accepted(world, name, text, tmp_path))


@pytest.mark.long
def test_an_edited_record_does_no_harm_for_long(world: World, tmp_path: pathlib.Path) -> None:
    explore_edits(world, 400, lambda name, text: run_if_accepted(world, name, text, tmp_path))


# Cases that are known


def edited(world: World, name: str, path: Path, value: object) -> str:
    return sealed(put(json.loads(world.records[name]), path, value))


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("renewed", ("litter",), ["../ns.conf"]),
        ("renewed", ("litter",), ["ns.conf"]),
        ("renewed", ("litter",), ["loose.key"]),
        ("renewed", ("previous", "key_file"), "theirs.key"),
        ("waits", ("change", "new", "cert_file"), "../../ns-20260101000000.crt"),
        ("unsent", ("change", "order", "csr_file"), "/nsconfig/ns.conf"),
        ("renewed", ("installed", "serial"), "FF"),
        ("issued", ("change", "new", "serial"), ""),
        ("issued", ("change", "order", "csr"), "CSR"),
        ("issued", ("change", "new", "cert_id"), None),
        ("waits", ("change", "order", "sent"), None),
        ("waits", ("change", "order", "sent"), "yesterday"),
        ("waits", ("change", "order"), None),
        ("waits", ("change", "new", "names"), []),
        ("unsent", ("change", "outcome"), "bought"),
        ("renewed", ("unsaved",), 1),
        ("renewed", ("version",), True),
        ("renewed", ("profile",), None),
        ("restoring", ("change", "new", "pem"), ""),
    ],
)
@pytest.mark.sample(3)
def test_a_record_that_contradicts_itself_is_refused(
    world: World, name: str, path: Path, value: object
) -> None:
    world.check_refused(name, edited(world, name, path, value), DAMAGED)


def test_the_certificate_of_another_profile_is_refused(world: World) -> None:
    theirs = json.loads(world.records["issued"])["change"]["new"]["pem"]
    path = ("installed", "pem")
    world.check_refused("renewed", edited(world, "renewed", path, theirs), DAMAGED)


@pytest.mark.parametrize("name", STAGES)
def test_no_value_is_changed_without_notice(world: World, name: str) -> None:
    """As an editor would, or a disk: one letter, which keeps the record whole and well-formed."""
    text = world.records[name].replace('"reason": "', '"reason": "x', 1)
    world.check_refused(name, text.replace('"revoked": null', '"revoked": "A1"'), DAMAGED)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("moved", [False, True], ids=["copied", "renamed"])
@pytest.mark.sample(5)
def test_the_record_of_another_profile_is_refused(world: World, stage: str, moved: bool) -> None:
    """With the profile, as an administrator would who wants another name for it."""
    world.restore()
    world.write_profile("new", stage)
    text = world.records[stage]
    world.path("new").write_text(text)
    if moved:
        world.path(stage).unlink()
    orders = len(world.lab.scm.orders)
    for _ in range(2):
        error = world.lab.json("run", "new").profile("new")["error"]
        assert error["kind"] == "state"
        assert f"is the record of the profile {stage} and was left as it is" in error["message"]
        assert f"its name, profile-{stage}.json," in error["message"]
    assert len(world.lab.scm.orders) == orders
    assert world.path("new").read_text() == text
    world.path("new").rename(world.path(stage))
    (world.lab.home / "profiles" / "new.yaml").unlink()
    error = world.lab.json("run", stage, "--dry-run").profile(stage)["error"]
    assert "is the record of" not in str(error)


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "1", '"x"', "null", '{"version": null}', "\x00"]
)
@pytest.mark.sample(3)
def test_what_is_no_record_is_refused(world: World, text: str) -> None:
    world.check_refused("renewed", text, DAMAGED)
