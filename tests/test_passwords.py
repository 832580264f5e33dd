"""Files of logins: what is made is read, what is odd is refused, and only the right password matches."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import passwords
from proxy.passwords import BadPasswords

PASSWORD = "corréct: horse\t".encode()


@pytest.fixture(scope="module")
def line() -> str:
    return passwords.line("alice", PASSWORD)


def test_what_is_made_is_read_and_matches_its_password_alone(line: str) -> None:
    entry = passwords.read(line.encode())["alice"]
    assert entry.matches(PASSWORD)
    assert not entry.matches(PASSWORD + b" ")
    assert not passwords.nobody().matches(PASSWORD)


def test_nothing_of_a_password_is_shown(line: str) -> None:
    assert "horse" not in line
    assert passwords.read(line.encode())["alice"].hash.hex() not in repr(passwords.read(line.encode()))


def test_two_entries_of_one_password_have_nothing_in_common(line: str) -> None:
    other = passwords.line("alice", PASSWORD)
    assert other.split(":")[-1] != line.split(":")[-1]


@dataclass(frozen=True, slots=True)
class Odd:
    sentence: str
    change: tuple[str, str]
    says: str = "line 2 is no entry"

    def __str__(self) -> str:
        return self.sentence


ODD = [
    Odd("a password as it is", (":scrypt:14:8:1", ":plain:14:8:1")),
    Odd("a hash that costs nothing", (":14:8:1", ":1:8:1")),
    Odd("a hash that costs all memory", (":14:8:1", ":20:8:1")),
    Odd("a short salt", ("==:", ":")),
    Odd("an odd login", ("alice", "@staff")),
    Odd("an empty login", ("alice", "")),
    Odd("a login that is not ASCII", ("alice", "alicé")),
    Odd("a line that goes on", ("alice:", "alice:x:")),
    Odd("the same login again", ("alice", "bob"), 'line 2 has the login "bob" again'),
]


@pytest.mark.parametrize("case", ODD, ids=str)
def test_a_line_that_is_no_entry_refuses_the_file(line: str, case: Odd) -> None:
    first = line.replace("alice", "bob", 1)
    with pytest.raises(BadPasswords, match=case.says):
        passwords.read(f"{first}\n{line.replace(*case.change, 1)}\n# end\n".encode())


@given(st.binary(max_size=300))
def test_any_bytes_are_a_file_or_refused_in_words(data: bytes) -> None:
    try:
        passwords.read(data)
    except BadPasswords as error:
        assert "\n" not in str(error)


def test_empty_lines_and_comments_say_nothing(line: str) -> None:
    assert list(passwords.read(f"\n# staff\n{line}\n\n".encode())) == ["alice"]


def test_one_line_is_replaced_and_the_others_stay(line: str) -> None:
    text = passwords.with_line("# staff\nbob:x\n", "alice", line)
    assert text == f"# staff\nbob:x\n{line}\n"
    assert passwords.with_line(text, "bob", "bob:y") == f"# staff\n{line}\nbob:y\n"
    assert passwords.with_line(text, "alice", "") == "# staff\nbob:x\n"


@pytest.mark.parametrize("password", [b"", b"x" * 256], ids=["none", "too long"])
def test_a_password_that_no_client_can_send_is_refused(password: bytes) -> None:
    with pytest.raises(ValueError, match="a password has 1 to 255 bytes"):
        passwords.line("alice", password)


@pytest.mark.parametrize("login", ["", "@staff", "#0", "*", "a:b", "a b", "-x", "x" * 65, "alicé"])
def test_a_login_that_would_mean_something_else_is_refused(login: str) -> None:
    with pytest.raises(ValueError, match="is no login"):
        passwords.line(login, b"x")
