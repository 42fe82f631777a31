"""Numbers in words carry the unit that suits them, and reports fit 100 columns."""

from __future__ import annotations

import pytest

from planner.looking.wording import folded, share_words, size_words, span_words, table_lines


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (size_words(999), "999 bytes"),
        (size_words(1000), "1.000 kB"),
        (size_words(2_345_678), "2.346 MB"),
        (size_words(3.2e12), "3.200 TB"),
        (span_words(0), "0.00 s"),
        (span_words(0.0421), "42.1 ms"),
        (span_words(90), "90.00 s"),
        (span_words(150), "2.50 min"),
        (span_words(9000), "2.500 h"),
        (share_words(1, 8), "12.50 %"),
        (share_words(0, 0), "0.00 %"),
    ],
)
def test_units(words: str, expected: str) -> None:
    assert words == expected


def test_columns_are_aligned() -> None:
    assert table_lines(["name", "n"], [["a", "10"], ["bcdef", "9"]], text_columns=[0]) == [
        "  name    n",
        "  a      10",
        "  bcdef   9",
    ]


def test_long_lines_go_on_indented() -> None:
    line = "  " + "word " * 40
    lines = list(folded(["short", line]))
    assert lines[0] == "short" and max(map(len, lines)) <= 100
    assert lines[1].startswith("  word") and lines[2].startswith("      word")
    assert " ".join(" ".join(lines[1:]).split()) == " ".join(line.split())
