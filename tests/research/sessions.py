"""Session folders with real recipes and made-up losses, written through the ledger as the loop writes them."""

import itertools
import json
import re
import sqlite3
import tarfile
import types
from pathlib import Path
from unittest import mock

import numpy as np

from jaxnano.config.base import dump, dump_full
from jaxnano.config.recipe import recipe_id
from research.contract.idea import ideas, part
from research.contract.part import IdeaEdit, Part, Proposal
from research.contract.proposal import build
from research.contract.track import load_track
from research.contract.trial import FRESH, PROOF, Trial
from research.decide.belief import SEEDS, Belief
from research.decide.price import Prices
from research.decide.proof import Proof, best_single
from research.decide.transfer import Card
from research.ledger.events import FILE, Ledger, encode
from research.ledger.kinds import Nominated, Proposed
from research.ledger.registry import Entry
from research.ledger.session import Session
from research.ledger.state import fold

IDEAS = {"rotary": 0.35, "relu-squared": 0.05, "silu": 0.0, "qk-norm": -0.02}  # what each is worth here, nats
PROTECTED = load_track("tiny").splits.protected
EVIL = "<script>alert(1)</script> | [x](y) \x1b[2J"


def unfenced(markdown):
    """Markdown without its fences, in which all is text to the end of one as long."""
    return re.sub(r"^(`{3,})\w*\n.*?\n\1$", "", markdown, flags=re.S | re.M)


def old_session(folder):
    """Unpack the session of version 0.2, see test_old_sessions.py; returns its folder."""
    with tarfile.open(Path(__file__).with_name("session-0.2.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder / "session-0.2"


def cut(path, before):
    """Take a session's ledger back to what it was before its first event of a kind; returns the folder."""
    with Ledger(path / FILE) as ledger:
        rows = ledger.raw()
    (path / FILE).unlink()
    with Ledger(path / FILE, create=True) as ledger:
        for row in itertools.takewhile(lambda row: row[2] != before, rows):
            ledger._db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", row)
    return path


def forge(path, kind, change):
    """Edit the bodies of all events of a kind, as somebody with the file can; leaves no trace but what they say."""
    with sqlite3.connect(path / FILE, isolation_level=None) as database:
        trigger, = database.execute("SELECT sql FROM sqlite_master WHERE name = 'events_keep'").fetchone()
        database.execute("DROP TRIGGER events_keep")
        rows = database.execute("SELECT seq, body, subject FROM events WHERE kind = ?", (kind,)).fetchall()
        for seq, text, subject in rows:
            body = json.loads(text)
            change(body, subject)
            database.execute("UPDATE events SET body = ? WHERE seq = ?", (encode(body), seq))
        database.execute(trigger)
    database.close()


def changes(name, edits, **more):
    """A part that puts each value at its path."""
    return Part(name=name, edits=tuple(IdeaEdit(path=path, new=new) for path, new in edits.items()), **more)


class Story:
    """Writes one session. Its clock goes on by a second an event."""

    pid = 1  # of the only worker

    def __init__(self, path, **begun):
        self.session = Session.create(path)
        self.track = load_track("tiny")
        self.belief, self.events = Belief(self.track), []
        self.worth, self.rng, self.ticks = {}, np.random.default_rng(0), itertools.count(1_000_000)
        self.write("session", "", {
            "track": "tiny", "contract": dump_full(self.track), "track_hash": self.track.identity,
            "data_hash": "d" * 64, "seed": 0, "minutes": 10.0, "workers": 2, "lanes": ["catalogue"], "versions": {},
            "argv": ["--minutes", "10"]} | begun)

    def write(self, kind, subject, body):
        with mock.patch("research.ledger.events.time", types.SimpleNamespace(time=lambda: float(next(self.ticks)))):
            self.session.ledger.append(kind, subject, body)

    def snapshot(self):
        self.events += self.session.ledger.events(since=len(self.events))
        return self.belief.at(fold(self.events))

    def prices(self):
        return Prices(self.snapshot())

    def propose(self, parts=(), worth=0.0, submission=None, **more):
        name, lane = (" + ".join(p.name for p in parts), "catalogue") if parts else ("base", "base")
        recipe = build(self.track.base_recipe, parts)
        proposal = Proposal(**{"name": name, "parts": tuple(parts), "hypothesis": "it helps", "lane": lane} | more)
        self.write("proposal", recipe_id(recipe), Proposed(proposal=proposal, recipe=dump(recipe)))
        answered = {} if submission is None else {"submission": submission}
        self.write("verdict", recipe_id(recipe), {"accepted": True, "refusals": [], "ms": 3.0} | answered)
        self.worth[recipe_id(recipe)] = worth
        return recipe_id(recipe)

    def start(self, trial, purpose="search"):
        scored = {"trial": trial.key, "name": "x", "eig": 0.5, "improvement": 0.1, "cost_s": 2.0}
        eig = {"eig": 0.5, "improvement": 0.1, "cost_s": 2.0, "score": 0.25, "winner": scored, "runners_up": [scored]}
        more = eig if purpose in ("search", "base") else {}
        self.write("decision", trial.key, {"purpose": purpose, "worker": 0, "why": "because"} | more)
        attempt = {"attempt": 1, "worker": 0, "pid": self.pid, "purpose": purpose, "splits": {}, "steps": 90}
        self.write("attempt", trial.key, attempt | trial._asdict())

    def finish(self, trial, purpose="search", **more):
        cell = 2.0 + 0.3 / trial.horizon + 0.05 * (trial.seed % 7)
        loss = cell - self.worth[trial.recipe_id] + 0.004 * self.rng.standard_normal()
        losses = {"search": loss} | ({PROTECTED: loss + 0.01} if purpose in PROOF else {})
        self.write("result", trial.key, {
            "attempt": 1, "outcome": "completed", "reason": "", "loss": losses, "steps": 90, "device_s": 2.0,
            "compile_s": 0.5, "tokens_per_s": 5e4, "wall_s": 2.0,
            "curve": [[p, loss + 2 * (1 - p)] for p in (0.1, 0.5, 1.0)],
            "fingerprint": {"backend": "cpu", "jax": "0"}} | more)

    def run(self, trial, purpose="search", **more):
        self.start(trial, purpose)
        self.finish(trial, purpose, **more)

    def search(self):
        """The base and a few ideas; a kill with audit, a divergence, a refusal, text that nobody should trust."""
        self.base = self.propose()
        known = ideas()
        names = [name for name in IDEAS if name in known]
        self.singles = {name: self.propose([part(known[name])], IDEAS[name]) for name in names}
        pair = [part(known["rotary"]), part(known["relu-squared"])]
        self.best = self.propose(pair, 0.4, name=EVIL, hypothesis=EVIL, lane="recombine", origin=EVIL)
        refusal = {"path": "model.width", "value": 63, "rule": f"width is odd {EVIL}"}
        self.write("verdict", "", {"accepted": False, "refusals": [refusal], "ms": 1.0})
        for horizon in (0.25, 1.0):
            for recipe in (self.base, *self.singles.values(), self.best):
                self.run(Trial(recipe, horizon, 0), "base" if recipe == self.base else "search")
        self.run(Trial(self.singles["silu"], 0.25, 1), outcome="diverged", reason="nan: loss is nan", loss={})
        self.run(Trial(self.base, 0.25, 1), "base", audit={"predicted": [3.3, 0.05]})
        self.run(Trial(self.singles["rotary"], 0.25, 1), outcome="killed", reason="hopeless: 1 %", loss={},
                 predicted=[3.1, 0.02])
        return self

    def nominate(self):
        """The ablation of the best, and its replicates."""
        body = Nominated(number=1, mean=0.4, sd=0.01, parts=("rotary", "relu-squared"))
        self.write("nominated", self.best, body)
        while (proof := Proof(self.snapshot(), self.best, body)).wanted() or proof.final is None:
            for trial, purpose in proof.wanted():
                assert trial.seed < SEEDS
                self.run(trial, purpose)
            if proof.wanted() == []:
                self.write("ablation", self.best, proof.ablation.settle())
        return self

    def seal(self):
        """The seal and its verification runs, block by block, on which the candidate is worth `self.worth`; after a
        crown, the best single idea's."""
        body = self.snapshot().state.nominated[-1].body
        snapshot = self.snapshot()
        entry = Entry(len(snapshot.state.sealed) + 1, PROTECTED)
        self.write("sealed", self.best, Proof(snapshot, self.best, body).seal(self.base, best_single(snapshot), entry))
        while wanted := (proof := Proof(self.snapshot(), self.best, body)).wanted():
            for trial, purpose in wanted:
                assert trial.seed >= FRESH
                self.run(trial, purpose)
        self.write("verification", self.best, (found := Proof(self.snapshot(), self.best, body).verify()))
        if found.passed:
            seed = proof.seeds()[0]
            self.write("crowned", self.best, {"trial": Trial(self.best, 1.0, seed).key, "name": EVIL, "seed": seed,
                                              "heldout": 1.9, "sample": f"first ```\n{EVIL}\n"})
        for trial, purpose in Proof(self.snapshot(), self.best, body).beside():
            self.run(trial, purpose)
        return self

    def beside(self, loss=1.9):
        """The preset's run, of the transfer card."""
        card = Card(self.snapshot())
        (trip,) = card.missing(card.settings[-1])
        self.write("transfer", self.best, {
            "attempt": 1, "outcome": "completed", "loss": {"search": loss}, "device_s": 2.0, "horizon": 1.0,
            "setting": trip.setting.name, "role": trip.role, "trial": trip.trial.key, "recipe": dump(trip.recipe),
            "seed": trip.seed})
        return self

    def end(self, reason="finished"):
        """Close the session; returns its folder and its state."""
        self.write("end", "", {"reason": reason})
        return self.close()

    def close(self):
        """The folder and the state, the loop gone without an end."""
        state = fold(self.session.ledger.events())
        self.session.close()
        return self.session.path, state
