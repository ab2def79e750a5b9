"""What the command line shows: nothing that steers the terminal."""

import io

from client.display import Screen


def test_control_characters_of_the_service_are_shown_and_not_obeyed() -> None:
    file = io.StringIO()
    Screen(file=file, width=80).print("a\x1b[31mred\x07")
    assert file.getvalue() == "a\\x1b[31mred\\x07\n"
