"""A session from somebody else, with links in it: what they lead to is neither removed, nor overwritten, nor shown."""

import os
import shutil

import pytest
from sessions import Story
from sitting import created, drive

from jaxnano.cli import report_errors
from research import loop, report, share
from research.ledger.events import SessionError
from research.ledger.session import Session, read_result, write_result
from research.show.report import write_report

KEY = "0123456789abcdef-1-0"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A session with a report, its loop gone, whose trials left more than is kept."""
    with created(tmp_path_factory.mktemp("links") / "s") as session:
        drive(session)
        for folder in session.trials.iterdir():
            (folder / "checkpoint").mkdir()
        (session.path / "champion").mkdir()
    return session.path


@pytest.fixture
def copy(ended, tmp_path):
    return shutil.copytree(ended, tmp_path / "session")


@pytest.fixture
def elsewhere(tmp_path):
    """A folder that is none of the session's business; yields it and a function that says what is in it."""
    folder = tmp_path / "elsewhere"
    (folder / "inner").mkdir(parents=True)
    for name in ("precious", "checkpoint", "inner/precious", "log.txt"):
        (folder / name).write_text("mine " * 100_000)
    return folder, lambda: {p.relative_to(folder): p.is_file() and p.read_text() for p in folder.rglob("*")}


def link(place, target):
    """Put a link in the place of whatever is there."""
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    os.symlink(target, place)


PLACES = ["trials", "trials/KEY", "trials/KEY/checkpoint", "trials/KEY/anything", "champion", "workers", "plots",
          "trials/KEY/log.txt", "report.html", "workers/worker-0.log", "champion/checkpoint"]


@pytest.mark.parametrize("name", PLACES)
def test_a_link_is_named_and_refused_and_what_it_leads_to_stays(copy, elsewhere, capsys, name):
    folder, content = elsewhere
    place = copy / name.replace("KEY", sorted(p.name for p in (copy / "trials").iterdir())[0])
    link(place, folder / "precious" if place.suffix else folder)
    before = content()
    commands = {"resume": lambda: loop.run(loop.parse(["--session", str(copy), "--resume", "--minutes", "1"])),
                "report": lambda: report.main([str(copy)]),
                "share": lambda: share.main([str(copy), str(copy.parent / "out")])}
    for command in commands.values():
        assert report_errors(command) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and str(place) in line and f"is a link, to {folder}" in line
    assert content() == before and place.is_symlink()


@pytest.mark.parametrize("name", ["trials", "trials/KEY"])
def test_a_link_that_comes_later_is_not_followed_either(tmp_path, elsewhere, name):
    folder, content = elsewhere
    with Session.create(tmp_path / "s") as session:
        session.trial_dir(KEY)
        link(session.path / name.replace("KEY", KEY), folder)
        before = content()
        for action in (session.tidy, lambda: session.trial_dir(KEY)):
            with pytest.raises(SessionError, match="is a link"):
                action()
    assert content() == before


def test_a_file_is_replaced_and_not_written_through(tmp_path, elsewhere):
    """By its name, a link or a second name of somebody's file is the session's; what is in that file is not."""
    folder, content = elsewhere
    before = content()
    trial, other = tmp_path / "trial", tmp_path / "other"
    for made in (trial, other):
        made.mkdir()
    os.symlink(folder / "precious", trial / "result.json")
    os.link(folder / "precious", other / "result.json")
    os.symlink(folder / "precious", other / "result.json.tmp")
    for made in (trial, other):
        assert write_result(made, 1, {"outcome": "failed"}) == read_result(made) == {"outcome": "failed", "attempt": 1}
    story = Story(tmp_path / "s")
    story.propose()
    os.link(folder / "precious", story.session.path / "report.html")
    path, _ = story.end()
    write_report(path)
    assert "<html" in (path / "report.html").read_text() and content() == before
