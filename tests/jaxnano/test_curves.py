"""The lines and the event file of a run say the same; the file is read back by tests.jaxnano.events."""

import math
import sys

import pytest

from jaxnano.cli import report_errors
from jaxnano.curves import Curves, require_tensorboard
from tests.jaxnano.events import crc32c, of, read_events, rows, scalars

ROWS = [{"step": 10, "progress": 0.25, "loss": 5.5, "tokens_per_s": 0.0, "elapsed_s": 1.0},
        {"step": 20, "progress": 0.5, "loss": None, "tokens_per_s": 3e5, "elapsed_s": 2.0},
        {"step": 40, "progress": 1.0, "loss": 1 / 3, "tokens_per_s": 4e5, "elapsed_s": 4.0}]


def test_the_check_sum_is_the_standards():
    assert crc32c(b"123456789") == 0xE3069283


def test_the_event_file_says_what_the_lines_say(tmp_path):
    with Curves(tmp_path, tensorboard=True) as curves:
        curves.write(ROWS[:1])
        curves.write(ROWS[1:])
        curves.final(40, {"search": 1.5, "protected": None})
    assert rows(tmp_path) == ROWS
    found = scalars(events := read_events(tmp_path))
    assert found.pop("loss_by_progress") == of("loss", ROWS, lambda row: round(1000 * row["progress"]))
    assert found.pop("final_loss/search") == [(40, 1.5)]
    assert found == {tag: of(tag, ROWS) for tag in ("loss", "tokens_per_s")}
    assert events[0].file_version == "brain.Event:2"
    at = {event.step: event.wall_time for event in events}
    assert math.isclose(at[1000] - at[20], 2.0), "points lie as far apart as they were measured"


def test_what_is_there_at_the_start_is_forgotten_but_for_what_is_kept(tmp_path):
    with Curves(tmp_path, tensorboard=True) as curves:
        curves.write(ROWS)
    with Curves(tmp_path, ROWS[:2], tensorboard=True) as curves:
        curves.write([ROWS[2] | {"loss": 0.25}])
    assert rows(tmp_path) == [*ROWS[:2], ROWS[2] | {"loss": 0.25}]
    events = read_events(tmp_path)
    assert scalars(events)["loss"] == [(10, 5.5), (40, 0.25)]
    assert [e.session_log.status for e in events if e.HasField("session_log")] == [1], "START: readers drop the old one"


def test_text_is_shown_as_it_is(tmp_path):
    Curves(tmp_path, tensorboard=True, about={"hypothesis": "# <b>big</b>\n![x](http://y)"}).close()
    (text,) = [value for event in read_events(tmp_path) for value in event.summary.value]
    assert text.metadata.plugin_data.plugin_name == "text"
    assert text.tag.startswith("hypothesis")
    assert text.tensor.string_val[0].decode() == "    # <b>big</b>\n    ![x](http://y)"


def test_rows_without_a_step_are_counted_and_words_left_out(tmp_path):
    with Curves(tmp_path, tensorboard=True) as curves:
        curves.write([{"alive": True, "loss": 2.0}, {"phase": "warm", "loss": 1.0}])
    assert scalars(read_events(tmp_path)) == {"loss": [(1, 2.0), (2, 1.0)]}


def test_no_event_file_unless_asked_for(tmp_path):
    with Curves(tmp_path) as curves:
        curves.write(ROWS)
        curves.final(40, {"search": 1.5})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_without_the_extra_one_line_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert report_errors(lambda: require_tensorboard() or 0) == 2
    assert 'pip install "jaxnano[tensorboard]" would do' in capsys.readouterr().err


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_json_has_not_is_refused(tmp_path, bad):
    with Curves(tmp_path) as curves, pytest.raises(ValueError, match="JSON"):
        curves.write([{"step": 1, "loss": bad}])
