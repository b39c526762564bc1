"""Where the API key comes from, and that no message shows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from collab.config import default_config
from collab.llm.keys import LONGEST_BYTES, api_key, hidden, key_in_file, key_place

KEY = "sk-Secret.0123456789"


def keyed(variable: str = "OUR_KEY", path: object = "") -> str:
    llm = default_config().llm
    llm.update({"api_key_env": variable, "api_key_file": str(path)})
    return api_key(llm)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    return path


def test_variable_or_file_or_both_alike(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OUR_KEY", raising=False)
    assert keyed() == keyed("") == ""
    assert keyed(path=key_file) == keyed("", key_file) == KEY
    monkeypatch.setenv("OUR_KEY", f" {KEY}\n")
    assert keyed() == keyed(path=key_file) == KEY
    monkeypatch.setenv("OUR_KEY", "  ")  # as good as not set
    assert keyed() == "" and keyed(path=key_file) == KEY


def test_a_home_folder_may_be_written_short(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(key_file.parent))
    assert key_in_file("~/key") == KEY


def test_two_keys_that_differ_are_refused(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_KEY", "sk-other-Secret")
    with pytest.raises(ValueError, match="hold two different keys; unset one") as caught:
        keyed(path=key_file)
    assert "OUR_KEY" in str(caught.value) and str(key_file) in str(caught.value)
    assert "Secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; write the key into it"),
        (b" \n\n", "is empty"),
        (b"sk-Secret\nsk-Secret-2\n", "one line of ASCII"),
        (b"sk Secret", "no blanks"),
        ("sk-Sécret".encode(), "one line of ASCII"),
        (b"\xff\xfes\x00k\x00", "one line of ASCII"),
        (b"Secret" * LONGEST_BYTES, "must hold the key alone"),
    ],
)
def test_a_file_that_is_no_key_is_named_but_not_quoted(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        keyed(path=path)
    assert str(caught.value).startswith(f"llm.api_key_file='{path}'")
    assert "cret" not in str(caught.value)


def test_a_file_that_can_not_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"can't be read \(No such file or directory\); name a"):
        keyed(path=tmp_path / "gone")
    with pytest.raises(ValueError, match=r"can't be read \(Is a directory\)"):
        keyed(path=tmp_path)
    with pytest.raises(ValueError, match="can't be read"):
        keyed(path="nul\0")
    with pytest.raises(ValueError, match="can't be read"):
        keyed(path="~nobody-of-this-name/key")


@pytest.mark.parametrize("stand_in", ["", "x", "EMPTY", "ollama"])
def test_a_key_is_hidden_but_no_word_that_stands_in_for_one(stand_in: str) -> None:
    assert hidden(f"it is {KEY}, {KEY}!", KEY) == "it is ***, ***!"
    assert hidden("an EMPTY box at ollama", stand_in) == "an EMPTY box at ollama"


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs an endless file")
def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ValueError, match="must hold the key alone"):
        key_in_file("/dev/zero")


def test_the_place_is_named_for_messages() -> None:
    assert key_place(variable="OUR_KEY", path="") == "the variable OUR_KEY (llm.api_key_env)"
    assert key_place(variable="", path="") == "the variable (no variable) (llm.api_key_env)"
    assert key_place(variable="OUR_KEY", path="/k") == "the file /k (llm.api_key_file)"
