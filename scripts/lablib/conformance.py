"""The table of docs/conformance.md: what attachd relies on in Cinder, and where it was seen."""

from __future__ import annotations

import os
import re

from lablib.state import PROJECT_DIR

# As tests/conformance names them, and what stands at the head of their column.
IDENTITIES = {
    "no-auth": "Cinder 29, no authentication",
    "member": "Keystone 30: member",
    "application-credential": "application credential",
    "service": "role service",
    "old": "Cinder 21, no authentication",
    "recorded": "recorded",
}

_CASES = PROJECT_DIR / "tests/cinder_conformance.rs"
_TABLE = PROJECT_DIR / "docs/conformance.md"
_BEGIN, _END = "<!-- table: scripts/test cinder -->\n", "<!-- end of table -->\n"

Seen = dict[str, dict[str, bool]]


def difference(seen: Seen) -> str:
    """Say how the table differs from what was seen; nothing where it doesn't, or where it was just written."""
    text = _TABLE.read_text()
    before, _, rest = text.partition(_BEGIN)
    table, _, after = rest.partition(_END)
    now = _table(seen)
    if table == now:
        return ""
    if os.environ.get("ATTACHD_BLESS"):
        _TABLE.write_text(before + _BEGIN + now + _END + after)
        return ""
    return f"the table in {_TABLE.name} is not what was seen (ATTACHD_BLESS=1 writes it):\n{now}"


def _table(seen: Seen) -> str:
    lines = [f"| case | differs | {' | '.join(IDENTITIES.values())} |", "|---" * (len(IDENTITIES) + 2) + "|"]
    for name, note in _cases():
        marks = [{True: "✓", False: "✗", None: "not run"}[seen[identity].get(name)] for identity in IDENTITIES]
        lines.append(f"| {name.replace('_', ' ')} | {note} | {' | '.join(marks)} |")
    return "\n".join(lines) + "\n"


def _cases() -> list[tuple[str, str]]:
    """The cases, and what their comments say of differences."""
    found = re.findall(r"((?:^///.*\n)*)^#\[tokio::test\]\nasync fn (\w+)", _CASES.read_text(), re.MULTILINE)
    return [(name, " ".join(line.removeprefix("///").strip() for line in comment.splitlines())) for comment, name in found]
