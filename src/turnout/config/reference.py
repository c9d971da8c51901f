"""The reference page, rendered from the schema: `python -m turnout.config.reference > docs/configuration.md`.

A test compares the page with this rendering, so an option without documentation cannot exist.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import msgspec
from msgspec import inspect

from turnout.config.errors import literal
from turnout.config.schema import Config
from turnout.config.walk import expectation

_PREAMBLE = """\
# Configuration

<!-- Generated from src/turnout/core/options.py by `make docs`. Edit the descriptions there. -->

One TOML file, read by `turnout serve -c FILE`. `turnout check -c FILE` validates it and prints every value in force
with its origin. Unknown keys, wrong types and numbers that are not finite or out of range are errors that name file,
line, key, value and what was expected; all of them are reported at once.

**Environment.** `TURNOUT__SERVER__LISTEN=0.0.0.0:8080` sets `server.listen` and wins over the file: table and field in
capitals, joined by two underscores, lists as JSON. Arrays of tables (`[[model]]`, `[[endpoint]]`, `[[key]]`) can only
be set in the file. An unknown name that starts with `TURNOUT__` is an error.

**Credentials.** `${NAME}` in `endpoint.api_key` is replaced by the environment variable `NAME`, which must be set.
API keys of clients are stored as digests only: `turnout keys new` prints a key and the table to paste.

The smallest file:

```toml
[auth]
mode = "open"            # only on loopback; else add a [[key]]

[[endpoint]]
name = "gpu-0"
url = "http://127.0.0.1:8000"
models = ["qwen2.5-7b"]
```

Units end the names: `_s` seconds, `_ms` milliseconds, `_bytes` bytes. Ids such as L1 or D5 name rules of the
specification.
"""


def render() -> str:
    """Write the whole page."""
    return "\n".join([_PREAMBLE, *_sections()]).rstrip("\n") + "\n"


def _sections() -> Iterator[str]:
    schema = inspect.type_info(Config)
    assert isinstance(schema, inspect.StructType)
    for member in schema.fields:
        is_array = isinstance(member.type, inspect.ListType)
        section = member.type.item_type if isinstance(member.type, inspect.ListType) else member.type
        assert isinstance(section, inspect.StructType)
        yield f"## `[[{member.name}]]`" if is_array else f"## `[{member.name}]`"
        yield ""
        yield (section.cls.__doc__ or "").strip()
        yield ""
        yield "| Field | Value | Default | Meaning |"
        yield "|---|---|---|---|"
        for field in section.fields:
            cells = (f"`{field.name}`", expectation(field.type), _default(field), _description(field))
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        yield ""


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{literal(field.default_factory())}`"
    return "not set" if field.default is None else f"`{literal(field.default)}`"


def _description(field: inspect.Field) -> str:
    extra = field.type.extra_json_schema if isinstance(field.type, inspect.Metadata) else None
    return str((extra or {}).get("description", ""))


if __name__ == "__main__":
    sys.stdout.write(render())
