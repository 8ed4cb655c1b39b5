r"""Find the ends of the fields of a block of lines: separators outside of quotes.

Quotes are those of RFC 4180: a field that starts with `"` ends at the next `"` that is
not doubled. A block with only such quotes is split as a whole, by the parity of the
number of quotes before each byte. Other blocks are read line by line, and a line with a
stray quote is a bad row.

# S separators
"""

from typing import NamedTuple

import numpy as np

from pipelines.formats.fields import Text
from pipelines.schema import Text as TextFormat

MAX_QUOTED_BYTES = 1 << 20
_OPEN = -1
_QUOTE, _NEW_LINE, _RETURN = ord('"'), ord("\n"), ord("\r")


class Structure(NamedTuple):
    """The fields of a block.

    Attributes:
        text: The content, without the quotes around fields.
        ends: Increasing positions in `text.raw` where fields end, int64 `(S,)`.
        is_end: Mask `(S,)` of those that end a line.
        spoiled: Mask of the lines that contain a stray quote; `None`: no line does.
        inner_ends: Increasing positions in `text.raw` of line feeds and carriage
            returns inside of quotes, int64; `None` if there are none.
        block: The original block.
        starts: Start of each line in `block`, int64; `None` if the same as in `text`.
    """

    text: Text
    ends: np.ndarray
    is_end: np.ndarray
    spoiled: np.ndarray | None = None
    inner_ends: np.ndarray | None = None
    block: bytes = b""
    starts: np.ndarray | None = None

    def line(self, position: int, start: int) -> bytes:
        """Return an original line without its line end."""
        if self.starts is None:
            end = self.ends[self.is_end][position]
            return self.text.raw[start:end]
        first, end = self.starts[position : position + 2]
        return self.block[first : end - 1]


def find(block: bytes, text_format: TextFormat) -> Structure:
    """Find the fields of a block of complete lines; the last may have no line end."""
    delimiter = ord(text_format.delimiter)
    if text_format.quoted and b'"' in block:
        return _find_quoted(block, delimiter)
    text = Text(block)
    content = text.bytes[text.first : text.end]
    if delimiter == _NEW_LINE - 1:
        ends = np.flatnonzero((content - np.uint8(9)) < 2) + text.first
    else:
        found = (content == delimiter) | (content == _NEW_LINE)
        ends = np.flatnonzero(found) + text.first
    return Structure(text, ends, text.bytes[ends] == _NEW_LINE)


def count_lines(block: bytes, text_format: TextFormat) -> int:
    """Return the number of lines of a block; line ends in quotes do not count."""
    if text_format.quoted and b'"' in block:
        structure = _find_quoted(block, ord(text_format.delimiter))
        return int(structure.is_end.sum())
    return block.count(b"\n") + (block[-1:] not in (b"", b"\n"))


def line_ends(block: bytes, text_format: TextFormat) -> np.ndarray:
    """Return the increasing end positions of the lines of a block, int64."""
    if text_format.quoted and b'"' in block:
        structure = _find_quoted(block, ord(text_format.delimiter))
        return structure.starts[1:]
    content = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(content == _NEW_LINE) + 1
    has_end = block[-1:] in (b"", b"\n")
    return ends if has_end else np.append(ends, len(block) + 1)


def is_closed(block: bytes, text_format: TextFormat) -> bool:
    """Return True if a block of lines ends outside of quotes."""
    delimiter = ord(text_format.delimiter)
    content = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(content == _QUOTE)
    if not len(quotes):
        return True
    ends = _find_ends(content, quotes, delimiter)
    if _delete_quotes(content, quotes, ends) is not None:
        return True
    if len(quotes) % 2:
        # If all other quotes are valid, the last one opens a field or is stray.
        before = content[quotes[-1] - 1] if quotes[-1] else _NEW_LINE
        ends = _find_ends(content, quotes[:-1], delimiter)
        if _delete_quotes(content, quotes[:-1], ends) is not None:
            return before not in (delimiter, _NEW_LINE)
    place, separator = 0, bytes([delimiter])
    while place < len(block):
        *_, end = _read_line(block, place, separator)
        if end == _OPEN:
            return False
        place = (block.index(b"\n", place) if end is None else end) + 1
    return True


def _find_ends(content, quotes, delimiter):
    """Return the ends of fields, from the parity of the quotes before them."""
    is_inside = _are_inside(content, quotes)
    is_separator = (content == delimiter) | (content == _NEW_LINE)
    return np.flatnonzero(is_separator & ~is_inside)


def _are_inside(content, quotes):
    is_inside = np.zeros(len(content), np.uint8)
    is_inside[quotes] = 1
    np.cumsum(is_inside, out=is_inside)  # modulo 256, which is even
    return (is_inside & 1).astype(bool)


def _find_quoted(block, delimiter):
    if not block.endswith(b"\n"):
        block += b"\n"
    content = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(content == _QUOTE)
    is_inside = _are_inside(content, quotes)
    is_separator = (content == delimiter) | (content == _NEW_LINE)
    ends = np.flatnonzero(is_separator & ~is_inside)
    deleted = _delete_quotes(content, quotes, ends)
    if deleted is None:
        return _find_one_by_one(block, delimiter)
    return _strip(block, content, ends, deleted, is_inside, None)


def _delete_quotes(content, quotes, ends):
    """Return a mask of the quotes to delete; `None` if a quote is stray."""
    if len(quotes) % 2:
        return None
    opening, closing = quotes[::2], quotes[1::2]
    is_end = np.zeros(len(content) + 1, bool)
    is_end[ends] = True
    # A closing quote directly before an opening one stands for one quote.
    doubled = closing[:-1] + 1 == opening[1:]
    after_doubled = np.concatenate([[False], doubled])
    before_doubled = np.append(doubled, False)
    starts = is_end[opening - 1] | (opening == 0)
    starts |= (opening == 3) & (content[:3].tobytes() == b"\xef\xbb\xbf")
    stops = is_end[closing + 1]
    at = np.minimum(closing + 2, len(content) - 1)
    before = content[np.minimum(closing + 1, len(content) - 1)]
    stops |= (before == _RETURN) & is_end[at] & (content[at] == _NEW_LINE)
    if not (starts | after_doubled).all() or not (stops | before_doubled).all():
        return None
    is_deleted = np.zeros(len(content), bool)
    is_deleted[opening[~after_doubled]] = True
    is_deleted[closing] = True
    return is_deleted


def _strip(block, content, ends, is_deleted, is_inside, spoiled):
    kept = np.flatnonzero(~is_deleted)
    text = Text(content[kept].tobytes())
    is_end = content[ends] == _NEW_LINE
    starts = np.concatenate([[0], ends[is_end] + 1])
    places = np.searchsorted(kept, ends) + text.first
    inner_ends = None
    if is_inside is not None:
        is_line_end = (content == _NEW_LINE) | (content == _RETURN)
        inner = np.flatnonzero(is_line_end & is_inside)
        if len(inner):
            inner_ends = np.searchsorted(kept, inner) + text.first
    return Structure(text, places, is_end, spoiled, inner_ends, block, starts)


def _find_one_by_one(block, delimiter):
    """Go from field to field, for a block with stray quotes."""
    separator = bytes([delimiter])
    ends, deleted, spoiled, inside = [], [], [], []
    place, size = 0, len(block)
    while place < size:
        line_ends, line_deleted, line_inside, end = _read_line(block, place, separator)
        if (
            end is None or end == _OPEN
        ):  # a stray quote: the line ends as if quotes had no meaning
            end = block.index(b"\n", place)
            line_ends, line_deleted, line_inside = [], [], []
            spoiled.append(True)
        else:
            spoiled.append(False)
        ends += [*line_ends, end]
        deleted += line_deleted
        inside += line_inside
        place = end + 1
    content = np.frombuffer(block, np.uint8)
    is_inside = np.zeros(size, bool)
    for first, last in inside:
        is_inside[first:last] = True
    is_deleted = np.zeros(size, bool)
    is_deleted[deleted] = True
    ends, spoiled = np.array(ends, np.int64), np.array(spoiled, bool)
    return _strip(block, content, ends, is_deleted, is_inside, spoiled)


def _read_line(block, place, separator):
    """Return ends of fields except the last, quotes to delete, quoted ranges, line end.

    The line end is `None` if a quote is stray, and `_OPEN` if a quote is not closed in
    the block.
    """
    ends, deleted, inside = [], [], []
    start = place
    if block.startswith(b"\xef\xbb\xbf", place):
        start += 3
    while True:
        if block.startswith(b'"', start):
            closing = _find_closing(block, start, deleted)
            if closing is None or closing == _OPEN:
                return ends, deleted, inside, closing
            inside.append((start, closing))
            after = closing + 1
            if block.startswith(b"\r\n", after):
                return ends, deleted, inside, after + 1
        else:
            line_end = block.index(b"\n", start)
            after = block.find(separator, start, line_end)
            after = line_end if after < 0 else after
            if b'"' in block[start:after]:
                return ends, deleted, inside, None
        if block.startswith(b"\n", after):
            return ends, deleted, inside, after
        if not block.startswith(separator, after):
            return ends, deleted, inside, None
        ends.append(after)
        start = after + 1


def _find_closing(block, start, deleted):
    """Return the quote that closes the one at `start`; add quotes to `deleted`."""
    deleted.append(start)
    place = start + 1
    while True:
        place = block.find(b'"', place, start + MAX_QUOTED_BYTES)
        if place < 0:
            return _OPEN if start + MAX_QUOTED_BYTES > len(block) else None
        deleted.append(place)
        if not block.startswith(b'""', place):
            return place
        place += 2
