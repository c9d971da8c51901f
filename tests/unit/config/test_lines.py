from __future__ import annotations

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnout.config.lines import child, key_lines

DOCUMENT = '''\
# a comment with [brackets] and = signs
top = "x" # "quoted"
"quoted key".'and more' = 1
dotted . name = [ 1,
  2, # two ]
  { inside = "}" },
]

[server]   # header
text = """
[not.a.table]
a = 1 \\""" still
"""
raw = \'\'\'
]]\'\'\'
when = 1979-05-27 07:32:00
inline = { a = 1, b.c = [ "," ], "d#" = { e = 2 } }

[[endpoint]]
name = "one"
[endpoint.served_as]
m = "n"
[[endpoint]]

name = "two"
[[endpoint.deep]]
x = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("top", 2),
        ('"quoted key"."and more"', 3),
        ("dotted.name", 4),
        ("dotted.name[1]", 5),
        ("dotted.name[2].inside", 6),
        ("server", 9),
        ("server.text", 10),
        ("server.raw", 14),
        ("server.when", 16),
        ("server.inline.b.c[0]", 17),
        ('server.inline."d#".e', 17),
        ("endpoint", 19),
        ("endpoint[0].name", 20),
        ("endpoint[0].served_as.m", 22),
        ("endpoint[1]", 23),
        ("endpoint[1].name", 25),
        ("endpoint[1].deep[0].x", 27),
    ],
)
def test_each_key_has_the_line_where_it_is_written(path: str, line: int) -> None:
    tomllib.loads(DOCUMENT)
    assert key_lines(DOCUMENT)[path] == line


def test_nothing_inside_a_string_is_a_key() -> None:
    assert not [path for path in key_lines(DOCUMENT) if path.startswith("not")]


def test_line_ends_of_windows_count_once() -> None:
    assert key_lines("a = 1\r\n\r\nb = 2\r\n") == {"a": 1, "b": 3}


def paths(path: str, value: object) -> set[str]:
    """Every table, element and key of a parsed document."""
    if isinstance(value, dict):
        below = [paths(child(path, name), member) for name, member in value.items()]
    elif isinstance(value, list):
        below = [paths(f"{path}[{index}]", member) for index, member in enumerate(value)]
    else:
        below = []
    return {path} - {""} | {name for names in below for name in names}


BARE = st.text("abc_-1", min_size=1, max_size=3)
SCALARS = st.sampled_from(["1", "-2.5", "true", '"a # ] } ="', "'\\'", '"""x\n[y]\n"""', '"\\"["', "1979-05-27", "inf"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[ # c\n{', '.join(items)} ]")
        | st.dictionaries(BARE, inner, max_size=2).map(
            lambda members: "{ " + ", ".join(f"{name} = {value}" for name, value in members.items()) + " }"
        )
    ),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(
    head=st.dictionaries(BARE, VALUES, max_size=3),
    tables=st.lists(st.tuples(BARE.map("t{}".format), st.dictionaries(BARE, VALUES, max_size=3)), max_size=3),
)
def test_every_key_that_the_parser_knows_has_a_line(
    head: dict[str, str], tables: list[tuple[str, dict[str, str]]]
) -> None:
    rows = [f"{name} = {value}" for name, value in head.items()]
    for table, members in tables:
        rows += [f"[[{table}]]", *(f"{name} = {value}" for name, value in members.items())]
    text = "\n".join(rows)
    assert set(key_lines(text)) == paths("", tomllib.loads(text))
