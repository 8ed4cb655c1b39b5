r"""The ends of the fields of a block of lines: separators outside of quotes.

Quotes are those of RFC 4180: a field that starts with `"` ends at the next `"` that is
not doubled. Blocks in which all quotes are of that kind are taken apart as a whole, by
whether an even or odd number of quotes comes before each byte; in others, lines are
read one after another, and a line with a stray quote is a bad row.

# S separators
"""

from typing import NamedTuple

import numpy as np

from pipelines.formats.fields import Text
from pipelines.schema import Text as TextFormat

MAX_QUOTED_BYTES = 1 << 16
_QUOTE, _NEW_LINE, _RETURN = ord('"'), ord("\n"), ord("\r")


class Structure(NamedTuple):
    """The fields of a block.

    Attributes:
        text: The content, without the quotes around fields.
        ends: int64 `(S,)`, rising: the places in `text.raw` where fields end.
        is_end: bool `(S,)`, which of them end a line.
        spoiled: bool, of each line, whether a quote in it is stray; `None`: none is.
        inner_ends: int64, rising: the places in `text.raw` of line ends, feeds and
            returns, that were inside of quotes; `None`: there are none.
        block: The block as it was.
        starts: int64, where each line starts in `block`; `None` if as in `text`.
    """

    text: Text
    ends: np.ndarray
    is_end: np.ndarray
    spoiled: np.ndarray | None = None
    inner_ends: np.ndarray | None = None
    block: bytes = b""
    starts: np.ndarray | None = None

    def line(self, position: int, start: int) -> bytes:
        """Return a line as it was, without its line end."""
        if self.starts is None:
            end = self.ends[self.is_end][position]
            return self.text.raw[start:end]
        first, end = self.starts[position : position + 2]
        return self.block[first : end - 1]


def find(block: bytes, text_format: TextFormat) -> Structure:
    """Find the fields of a block of whole lines; the last may have no line end."""
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
    """Number of lines of a block, each with the line ends inside of its quotes."""
    if text_format.quoted and b'"' in block:
        structure = _find_quoted(block, ord(text_format.delimiter))
        return int(structure.is_end.sum())
    return block.count(b"\n") + (block[-1:] not in (b"", b"\n"))


def line_ends(block: bytes, text_format: TextFormat) -> np.ndarray:
    """Return the places after the lines of a block: int64, rising."""
    if text_format.quoted and b'"' in block:
        structure = _find_quoted(block, ord(text_format.delimiter))
        return structure.starts[1:]
    content = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(content == _NEW_LINE) + 1
    has_end = block[-1:] in (b"", b"\n")
    return ends if has_end else np.append(ends, len(block) + 1)


def is_closed(block: bytes) -> bool:
    """Return whether a block ends outside of quotes, if none of them is stray."""
    return block.count(b'"') % 2 == 0


def _find_quoted(block, delimiter):
    if not block.endswith(b"\n"):
        block += b"\n"
    content = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(content == _QUOTE)
    is_inside = np.zeros(len(content), np.uint8)
    is_inside[quotes] = 1
    np.cumsum(is_inside, out=is_inside)  # modulo 256, which is even
    is_inside = (is_inside & 1).astype(bool)
    is_separator = (content == delimiter) | (content == _NEW_LINE)
    ends = np.flatnonzero(is_separator & ~is_inside)
    deleted = _delete_quotes(content, quotes, ends)
    if deleted is None:
        return _find_one_by_one(block, delimiter)
    return _strip(block, content, ends, deleted, is_inside, None)


def _delete_quotes(content, quotes, ends):
    """Return which bytes are no content; `None` if a quote is stray."""
    if len(quotes) % 2:
        return None
    opening, closing = quotes[::2], quotes[1::2]
    is_end = np.zeros(len(content) + 1, bool)
    is_end[ends] = True
    # A closing quote and an opening one beside each other stand for one quote.
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
        if end is None:  # a stray quote: the line ends where it would without quotes
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
    """Ends of the fields but the last, quotes to delete, quoted ranges, line's end.

    The line's end is `None` if a quote is stray or not closed.
    """
    ends, deleted, inside = [], [], []
    start = place
    if block.startswith(b"\xef\xbb\xbf", place):
        start += 3
    while True:
        if block.startswith(b'"', start):
            closing = _find_closing(block, start, deleted)
            if closing is None:
                return ends, deleted, inside, None
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
    """The quote that closes the one at `start`; those to delete are noted."""
    deleted.append(start)
    place = start + 1
    while True:
        place = block.find(b'"', place, start + MAX_QUOTED_BYTES)
        if place < 0:
            return None
        deleted.append(place)
        if not block.startswith(b'""', place):
            return place
        place += 2
