"""Pages: the kernel says which pages were written; what fills no page is read at every step.

Tensors stay where they are. Watched are the whole pages that a tensor fills alone, so that no
neighbour in the heap can cause a false alarm, and no alias of a tensor is cut off. What is left,
the edges of large tensors and all small ones, is some kilobytes, read at every step in one go. A
written page is no alarm yet: its blocks are compared with the reference; equal bytes are a note.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from frostline.guarding.pages import mappings
from frostline.guarding.pages.record import COLLAPSE, PAGE, PageRecord, interior
from frostline.guarding.reference import BLOCK, HostBlocks, Reference

LEAST = 8 * PAGE
"""Bytes of whole pages below which a tensor is cheaper to read than to watch."""


class PageTier:
    """A record of writes to the memory of some references.

    Args:
        references: what to watch.
        huge: whether to make large tensors of huge pages; see :class:`PageRecord`.

    Raises:
        PagesUnavailable: the kernel refuses.

    Attributes:
        references: what it vouches for.
        nbytes: how many bytes that are.
        equal_writes: names of tensors that were written and held the same bytes afterwards.
    """

    def __init__(self, references: Sequence[Reference], *, huge: bool = False) -> None:
        self.references = list(references)
        self.nbytes = sum(reference.nbytes for reference in references)
        self.equal_writes: dict[str, int] = {}
        self._ranges: list[tuple[int, int, Reference, HostBlocks]] = []
        self._rest: list[tuple[memoryview, Reference, HostBlocks]] = []
        for reference in references:
            for piece in reference.pieces:
                if isinstance(piece, HostBlocks) and piece.span is not None:
                    self._add(reference, piece, piece.span)
        self._ranges.sort(key=lambda entry: entry[0])
        self._starts = [entry[0] for entry in self._ranges]
        self._record = PageRecord([(low, high) for low, high, *_ in self._ranges], huge=huge)
        self._expected = self._seen = self._digest_of_rest()
        self._owed: list[tuple[int, int]] = []

    def _add(self, reference: Reference, piece: HostBlocks, span: tuple[int, int]) -> None:
        start, end = interior(*span)
        if end - start < LEAST:
            self._rest.append((piece.view, reference, piece))
            return
        self._ranges.append((start, end, reference, piece))
        for edge in (piece.view[: start - span[0]], piece.view[end - span[0] :]):
            if edge.nbytes:
                self._rest.append((edge, reference, piece))

    @property
    def huge_bytes(self) -> int:
        """Bytes of the tensors that are large enough for huge pages."""
        return sum(end - start for start, end, *_ in self._ranges if end - start >= COLLAPSE)

    @property
    def bytes_read_each_step(self) -> int:
        """What fills no page."""
        return sum(view.nbytes for view, *_ in self._rest)

    def look(self) -> list[Reference]:
        """The references whose content is not what it was, as far as it was written since."""
        # Asking re-arms in the same call, and only then is content read: no write falls between.
        written = self._owed + self._record.written()
        self._owed = []
        found = {id(ref): ref for ref in self._differing(written)}
        now = self._digest_of_rest()
        if now != self._expected:
            found |= {id(ref): ref for ref in self._rest_differing()}
            self._expected = now
        return list(found.values())

    def touched(self) -> list[Reference]:
        """What may have been written since this was last asked; the next look knows of it too."""
        written = self._record.written()
        self._owed += written
        now = self._digest_of_rest()
        changed, self._seen = now != self._seen, now
        return self._candidates(written, changed)

    def pending(self) -> list[Reference]:
        """What may have been written since the last look."""
        self._owed += self._record.written()
        return self._candidates(self._owed, self._digest_of_rest() != self._expected)

    def _candidates(self, written: Sequence[tuple[int, int]], rest: bool) -> list[Reference]:
        found = {id(ref): ref for _, _, ref, _ in self._within(written)}
        if rest:
            found |= {id(ref): ref for _, ref, _ in self._rest}
        return list(found.values())

    def _within(
        self, written: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int, Reference, HostBlocks]]:
        """The watched ranges that these pages lie in, cut to the pages."""
        for start, end in written:
            number = max(0, bisect_right(self._starts, start) - 1)
            for low, high, reference, piece in self._ranges[number:]:
                if low >= end:
                    break
                if high > start:
                    yield max(low, start), min(high, end), reference, piece

    def _differing(self, written: Sequence[tuple[int, int]]) -> list[Reference]:
        found: list[Reference] = []
        for low, high, reference, piece in self._within(written):
            if self._blocks_differ(piece, low, high):
                found.append(reference)
            else:
                name = reference.name
                self.equal_writes[name] = self.equal_writes.get(name, 0) + 1
        return found

    @staticmethod
    def _blocks_differ(piece: HostBlocks, start: int, end: int) -> bool:
        origin = piece.span[0] if piece.span is not None else start
        first, last = (start - origin) // BLOCK, -(-(end - origin) // BLOCK)
        return bool(piece.changed(first, last))

    def _digest_of_rest(self) -> int:
        from xxhash import xxh3_64

        state = xxh3_64()
        for view, *_ in self._rest:
            state.update(view)
        return state.intdigest()

    def _rest_differing(self) -> list[Reference]:
        """Compared by the blocks that hold what was read."""
        found = []
        for view, reference, piece in self._rest:
            if view.nbytes == piece.nbytes:
                differ = bool(piece.changed(0, piece.count))
            else:
                head = piece.changed(0, 1)
                differ = bool(head or piece.changed(piece.count - 1, piece.count))
            if differ:
                found.append(reference)
        return found

    def unbroken(self) -> bool:
        """Whether the kernel kept the record on every page all the time."""
        return not self._record.verify()

    def close(self) -> None:
        """Watch no more."""
        self._record.close()


def why_not(reference: Reference, private: mappings.Private) -> str | None:
    """Why the pages of this tensor tell too little, or None if they tell all.

    Args:
        reference: what is to be watched.
        private: which memory of this process nobody else can write.
    """
    for piece in reference.pieces:
        if not isinstance(piece, HostBlocks):
            return "on a device, or not contiguous"
        if piece.span is not None and (reason := private.why_not(*piece.span)):
            return reason
        if piece.nbytes and piece.is_pinned:
            return "pinned memory, which a device writes past the page tables"
    return None
