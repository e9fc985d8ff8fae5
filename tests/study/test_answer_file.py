"""One process writes answers, and no line that was written is ever lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mrrag.errors import SettingsError
from mrrag.study.answer_file import StoredAnswer, append_answers, open_answers, read_answers

ANSWER = StoredAnswer('No, "none",\tat all.', 0.25, ("d1", "d2"), 4)
# Open a file, say so, and stay.
HOLD = """
import sys, time
from pathlib import Path
from mrrag.study.answer_file import open_answers
with open_answers(Path(sys.argv[1])):
    print("open", flush=True)
    time.sleep(60)
"""


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    for key in ("a", "b"):
        with open_answers(tmp_path / "answers.csv") as stream:
            append_answers(stream, [(key, f"question\n{key}", ANSWER)])
    assert read_answers(tmp_path) == {"a": ANSWER, "b": ANSWER}


def test_a_file_is_refused_while_another_process_writes_and_free_once_that_is_killed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "answers.csv"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(SettingsError, match=r"Another experiment is writing to .*answers\.csv"):
            open_answers(path).__enter__()
        with open_answers(tmp_path / "answers-1.csv"):
            pass  # another part of the same experiment
        other.kill()
    with open_answers(path) as stream:
        append_answers(stream, [("a", "q", ANSWER)])
    assert read_answers(tmp_path) == {"a": ANSWER}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answers-1.csv", "answers.csv"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_file_that_is_full_is_said_in_a_sentence_and_keeps_whole_lines(tmp_path: Path) -> None:
    fill = """
import resource, sys
from pathlib import Path
from mrrag.errors import SettingsError
from mrrag.study.answer_file import StoredAnswer, append_answers, open_answers
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with open_answers(Path(sys.argv[1])) as stream:
        for n in range(100):
            append_answers(stream, [(str(n), "q", StoredAnswer("Yes", 0.5, (), None))])
except SettingsError as error:
    print(error)
"""
    command = [sys.executable, "-c", fill, str(tmp_path / "answers.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "There is no room left" in done.stdout, done.stderr
    assert 10 < len(read_answers(tmp_path)) < 100


def test_lines_that_are_damaged_or_not_ours_are_left_out(tmp_path: Path) -> None:
    with open_answers(tmp_path / "answers.csv") as stream:
        append_answers(stream, [("a", "q", ANSWER)])
        stream.write(b"b,q,not a number,,[],Yes\nc,q\nd,q,0.5,,[],cut o")
    assert read_answers(tmp_path) == {"a": ANSWER}
