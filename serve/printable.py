"""What users say, made fit for a log or a terminal: one line, bounded, nothing in it that moves the cursor."""

from __future__ import annotations

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
_CUT = "…"


def printable(text: str | bytes, limit: int = 200) -> str:
    r"""A text with everything but letters, marks, digits, signs and the plain space escaped, and cut where too long.

    Escaped are control characters (line breaks and the escape that begins a terminal's commands among them), what
    reverses the direction of writing, invisible characters, lone surrogates, and the backslash itself, so that two
    texts that differ within the limit still differ.

    Args:
        text: anything; bytes are read as UTF-8, and those that are not become `\udc..`.
        limit: the most characters of the answer, 1 or more; a `…` at its end says that it was cut.
    """
    if limit < 1:
        raise ValueError(f"limit must be 1 or more, got {limit}")
    # One character can become no less than one, so what lies behind the limit need not be looked at, however long.
    if isinstance(text, bytes):
        text = text[: 4 * (limit + 1)].decode("utf-8", "surrogateescape")
    head = text[: limit + 1]
    if len(head) <= limit and head.isprintable() and "\\" not in head:
        return head
    parts, length = [], 0
    for character in head:
        part = character if character.isprintable() and character != "\\" else _escaped(character)
        parts.append(part)
        length += len(part)
        if length > limit:
            break
    else:
        return "".join(parts)
    while length > limit - len(_CUT):  # whole escapes go, so that none is left in half
        length -= len(parts.pop())
    return "".join(parts) + _CUT


def _escaped(character: str) -> str:
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
