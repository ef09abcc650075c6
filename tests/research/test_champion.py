"""The champion's folder: what was called so from outside is text in it."""

from dataclasses import replace

from sessions import EVIL
from sitting import created, loop
from stand_in import MICRO

from research import champion
from research.propose import Part
from research.track import load_track


def test_a_name_from_outside_is_text_in_the_champions_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(champion.evaluate, "evaluate", lambda *_: 1.0)
    with created(tmp_path / "s") as session:
        parts = (Part("calm", (), why=EVIL + " is why"),)
        arm = replace(loop(session).snapshot.arms[0], name=f"{EVIL}\n# more", parts=parts)
        monkeypatch.setattr(champion.checkpoint, "load", lambda folder: (arm.recipe, {}, {"seed": 1}))
        (session.trial_dir("x") / "checkpoint").mkdir(parents=True)
        champion.crown(session, load_track(MICRO), arm, "x")
        text = (session.champion / "diff.md").read_text()
    assert "<script" not in text and "\x1b" not in text and "[x](y)" not in text and "\n# more" not in text
    assert "&lt;script&gt;" in text.splitlines()[0] and "is why" in text
