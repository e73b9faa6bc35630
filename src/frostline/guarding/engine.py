"""The engine: all tiers over one target. It finds and sizes changes; answering is the guard's."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from frostline._collapsing import collapse
from frostline._content import dtype_name
from frostline._names import NamedTensor
from frostline._results import ChangeKind
from frostline.errors import PagesUnavailable
from frostline.freezing.sealing import smallest
from frostline.guarding import local
from frostline.guarding.arguments import Proof
from frostline.guarding.identity import Identity, Look, is_frozen_parameter, unique
from frostline.guarding.pages import tier as page_tier
from frostline.guarding.pages.kernel import why_unavailable
from frostline.guarding.pages.mappings import Private
from frostline.guarding.pages.tier import PageTier
from frostline.guarding.patrol import LEAST_SECONDS, Patrol
from frostline.guarding.reference import Reference
from frostline.guarding.target import Target, Watched, places_by_name, standing_at

HUGE_SECONDS = 1e-9
"""What making huge pages of a byte takes: 0.7 to 2 s for 1 GB."""


@dataclass(eq=False)
class Suspect:
    """A tensor that is not as it was.

    Attributes:
        watched: which.
        reference: its content as it was.
        kind: what differs.
        tier: which look saw it.
        now: the tensor at its name now; None if there is none.
        rebound: whether its memory is elsewhere.
        replaced: whether it is another object.
    """

    watched: Watched
    reference: Reference
    kind: ChangeKind
    tier: str
    now: Tensor | None
    rebound: bool = False
    replaced: bool = False


@dataclass
class Clock:
    """How often a tier looked, and how long that took."""

    looks: int = 0
    seconds: float = 0.0

    def add(self, started: float) -> None:
        """Count a look that began at ``started``."""
        self.looks += 1
        self.seconds += time.perf_counter() - started


class Engine:
    """Looks at a target, tier by tier.

    Args:
        target: what to watch; its content now is what has to stay.
        overhead: fraction of a step's time that the patrol may take.
        proof: which tiers may run; see :func:`frostline.guard`.
        keep_copies: whether to keep every old value, so that all can be put back.

    Raises:
        PagesUnavailable: ``proof="pages"``, and the kernel cannot vouch for everything.
        UnsupportedTensor: a content cannot be read.
    """

    def __init__(
        self, target: Target, *, overhead: float, proof: Proof, keep_copies: bool = False
    ) -> None:
        self.target = target
        self.overhead, self.proof = overhead, proof
        self.key = int.from_bytes(os.urandom(8), "little")
        self._keep_copies = keep_copies
        self._references: dict[int, Reference] = {}
        self._refer_to(target.tensors)
        self.notes: list[str] = []
        self._events: dict[str, list[str]] = {}
        self.let_go_names: set[str] = set()
        self.known: set[int] = set()
        self.clocks = {name: Clock() for name in ("identity", "pages", "content", "full check")}
        self.pages: PageTier | None = None
        self.patrol = Patrol([], overhead)
        self._huge = self._began_anew = self._entered = False
        self.pages_broken = self.cut_short = False
        self.unwatched: dict[str, list[str]] = {}
        self.identity = Identity(target)
        self._bind()
        self._entered, self._began_anew = True, False

    # --- what it holds --------------------------------------------------------------------

    def _refer_to(self, tensors: Iterable[Watched]) -> None:
        new = [w for w in tensors if id(w) not in self._references]
        for watched in new:
            local.refuse_lazy(watched.name, watched.tensor)
        small = smallest({id(w): w.tensor.numel() * w.tensor.element_size() for w in new})
        for watched in new:
            copy = self._keep_copies or id(watched) in small
            self._references[id(watched)] = Reference(
                watched.name, watched.tensor, self.key, keep_copy=copy
            )

    def reference(self, watched: Watched) -> Reference:
        """The content of ``watched`` as it was."""
        return self._references[id(watched)]

    @property
    def references(self) -> list[Reference]:
        """The content of all, as it was."""
        return [self._references[id(w)] for w in self.target.tensors]

    @property
    def nbytes(self) -> int:
        """Bytes that are watched."""
        return sum(reference.nbytes for reference in self.references)

    def _bind(self) -> None:
        """Give every reference to the tier that can vouch for it."""
        paged, others = self._split()
        written = self.pages.equal_writes if self.pages is not None else {}
        # What was written since the last look goes with the old record, so the next look reads all.
        self._began_anew = self._began_anew or self.pages is not None
        self.close()
        try:
            if paged:
                self.pages = PageTier(paged, huge=self._huge)
                self.pages.equal_writes = written
        except PagesUnavailable as refusal:
            if self.proof == "pages" and not self._entered:
                raise
            self.pages_broken = True
            self.unwatched[str(refusal)] = [r.name for r in paged]
            others = self.references
        patrol = Patrol(others, self.overhead)
        patrol.go_on_from(self.patrol)
        self.patrol = patrol

    def _split(self) -> tuple[list[Reference], list[Reference]]:
        if self.proof == "content":
            return [], self.references
        why = why_unavailable()
        private = Private()
        paged, self.unwatched = [], {}
        for reference in self.references:
            reason = why or page_tier.why_not(reference, private)
            if reason is None:
                paged.append(reference)
            else:
                self.unwatched.setdefault(reason, []).append(reference.name)
        if self.unwatched and self.proof == "pages" and not self._entered:
            reason, names = next(iter(self.unwatched.items()))
            raise PagesUnavailable(
                f"{names[0]}: {reason}. Use proof='auto', which reads the content of what the "
                "kernel cannot vouch for"
            )
        watched = set(map(id, paged))
        return paged, [r for r in self.references if id(r) not in watched]

    @property
    def all_notes(self) -> list[str]:
        """What is worth knowing and no alarm; equal events of numbered siblings are told once."""
        written = self.pages.equal_writes if self.pages is not None else {}
        events = {**self._events}
        if written:
            events["written with the bytes that were there, or written and put back"] = list(
                written
            )
        return self.notes + [
            f"{pattern}: {what}" + (f" ({count} tensors)" if count > 1 else "")
            for what, names in events.items()
            for pattern, count in collapse(names)
        ]

    def is_paged(self, suspect: Suspect) -> bool:
        """Whether the kernel witnesses the writes to it."""
        pages = self.pages
        return pages is not None and any(r is suspect.reference for r in pages.references)

    def rebind(self) -> None:
        """After restoring or replacing: what is there now is looked at from now on."""
        for watched in self.target.tensors:
            self.reference(watched).rebind(watched.tensor)
        self.identity.rebase()
        self._bind()

    def restored(self, suspects: Iterable[Suspect]) -> None:
        """These are as they were again: look at them as before."""
        self.known.difference_update(id(s.watched) for s in suspects)
        began_anew = self._began_anew
        self.rebind()
        # This answers to a look, which has read what was written before it.
        self._began_anew = began_anew

    def close(self) -> None:
        """Watch no more."""
        if self.pages is not None:
            self.pages.close()
            self.pages = None

    # --- looking --------------------------------------------------------------------------

    def look(self, step_seconds: float | None) -> list[Suspect]:
        """What the cheap tiers see now."""
        found = self._look_at_identity()
        if self.pages is not None:
            started = time.perf_counter()
            found += self._suspects(self.pages.look(), "pages")
            self.clocks["pages"].add(started)
            if self._should_be_huge(step_seconds):
                self._huge = True
                self._bind()
            found += self._read_what_began_anew()
        started = time.perf_counter()
        if self.patrol.nbytes and self.overhead > 0:
            seen = self._suspects(self.patrol.run(step_seconds), "content")
            found += seen + self._beside(seen)
            self.clocks["content"].add(started)
        return self._once(found)

    def witnessed_clean(self) -> set[int]:
        """Ids of the references that the kernel witnesses to be unchanged right now."""
        if self.pages is None or self._began_anew or not self.identity.stands_still:
            return set()
        written = {id(r) for r in self.pages.pending() if r.differs}
        return {id(r) for r in self.pages.references} - written

    def _should_be_huge(self, step_seconds: float | None) -> bool:
        """Whether asking the kernel takes more than its share, and huge pages would have paid.

        Whoever rents until the rent has cost the price, and buys then, never pays twice the best.
        """
        clock = self.clocks["pages"]
        if self._huge or self.pages is None or step_seconds is None:
            return False
        too_slow = clock.seconds > clock.looks * max(LEAST_SECONDS, self.overhead * step_seconds)
        return too_slow and clock.seconds > HUGE_SECONDS * self.pages.huge_bytes > 0

    def _read_what_began_anew(self) -> list[Suspect]:
        """A new record knows nothing of what was written before it, so every byte is read once."""
        if not self._began_anew or self.pages is None:
            return []
        self._began_anew = False
        return self._suspects([r for r in self.pages.references if r.differs], "pages")

    def full_check(self, seconds: float | None = None) -> list[Suspect]:
        """Look everything up and read every byte, for at most ``seconds`` if that is given."""
        started = time.perf_counter()
        self.clear_verdicts()
        found = self._look_at_identity(everything=True)
        for number, watched in enumerate(list(self.target.tensors)):
            if seconds is not None and time.perf_counter() - started > seconds:
                self.notes.append(
                    f"the last full check stopped after {seconds:g} s, {number} of "
                    f"{len(self.target.tensors)} tensors read"
                )
                self.cut_short = True
                break
            if id(watched) not in self.known and self.reference(watched).differs:
                found += [self._suspect(watched, "full check")]
        else:
            self._began_anew = False
        if self.pages is not None and not self.pages.unbroken():
            self.pages_broken = True
        self.clocks["full check"].add(started)
        return self._once(found)

    def clear_verdicts(self) -> None:
        """Take what devices still had to say; a full check says it all again."""
        self.patrol.rest()

    def _once(self, found: list[Suspect]) -> list[Suspect]:
        """The first suspicion of each tensor that was not reported yet, in the model's order."""
        first: dict[int, Suspect] = {}
        for suspect in found:
            if id(suspect.watched) not in self.known:
                first.setdefault(id(suspect.watched), suspect)
        if len(first) < 2:
            return list(first.values())
        order = {id(w): number for number, w in enumerate(self.target.tensors)}
        return sorted(first.values(), key=lambda s: order.get(id(s.watched), len(order)))

    def _suspects(self, references: Iterable[Reference], tier: str) -> list[Suspect]:
        found = list(references)
        if not found:
            return []
        by_reference = {id(self.reference(w)): w for w in self.target.tensors}
        return [self._suspect(by_reference[id(r)], tier) for r in found if id(r) in by_reference]

    def _beside(self, seen: list[Suspect]) -> list[Suspect]:
        """What else of the same modules differs: a norm's statistics tell more together."""
        owners = {id(s.watched.owner) for s in seen}
        known = {id(s.watched) for s in seen} | self.known
        return [
            self._suspect(w, "content")
            for w in (self.target.tensors if owners else ())
            if id(w.owner) in owners and id(w) not in known and self.reference(w).differs
        ]

    def _suspect(self, watched: Watched, tier: str) -> Suspect:
        return Suspect(watched, self.reference(watched), "value", tier, watched.tensor)

    def _look_at_identity(self, everything: bool = False) -> list[Suspect]:
        started = time.perf_counter()
        look = self.identity.look(everything)
        found: list[Suspect] = []
        if look.replaced or look.modules or everything:
            found += self._look_up_again()
        if look.moved:
            moved = (w for w in unique(look.moved) if w.places)  # the others hang nowhere now
            found += [s for w in moved if (s := self._moved(w)) is not None]
        flagged = self._flagged(look, everything)
        found += flagged
        if found or look.moved or look.replaced or look.modules:
            self.identity.rebase()
            self._bind()
        self.clocks["identity"].add(started)
        return found

    def _moved(self, watched: Watched) -> Suspect | None:
        """The same object with other memory: a move, or another content."""
        reference = self.reference(watched)
        suspect = Suspect(watched, reference, "value", "identity", watched.tensor, rebound=True)
        if reference.rebind(watched.tensor):
            if reference.differs:
                return suspect
            self._note(watched, "moved to other memory, equal bytes")
            return None
        suspect.kind = _kind_of(reference, watched.tensor)
        return suspect

    def _look_up_again(self) -> list[Suspect]:
        """Every name, from the models down."""
        live = places_by_name(self.target)
        found: list[Suspect] = []
        for watched in list(self.target.tensors):
            for place in list(watched.places):
                entry = standing_at(live, place)
                if entry is None or entry.attribute != place.attribute:
                    # Parametrised, the same name means what the value is computed from.
                    found += self._missing(watched, place)
                elif entry.tensor is watched.tensor:
                    place.owner = entry.owner
                elif local.is_shard(watched.tensor) and not local.is_shard(entry.tensor):
                    self._note(watched, "gathered at a look, and compared at another one")
                elif place.kind == "attribute":
                    # An output that a forward keeps; a buffer is what a statistic should be.
                    found += self.release(watched, "is stored anew by the code of its module")
                else:
                    found += self._replaced(watched, place, entry)
        return found

    def _missing(self, watched: Watched, place: NamedTensor) -> list[Suspect]:
        if id(watched) in self.known:
            return []
        reference = self.reference(watched)
        self._drop_place(watched, place)
        alone = Watched(place.name, [place], watched.tensor, watched.by_flag, watched.part)
        return [Suspect(alone, reference, "missing", "identity", None)]

    def _replaced(self, watched: Watched, place: NamedTensor, entry: NamedTensor) -> list[Suspect]:
        """Another object at a name: what counts is its content."""
        self._drop_place(watched, place)
        named = NamedTensor(
            place.name, entry.tensor, entry.kind, entry.persistent, entry.owner, entry.attribute
        )
        new = self._standing(entry.tensor)
        if new is None:
            new = Watched(place.name, [], entry.tensor, watched.by_flag, watched.part)
            self._references[id(new)] = self.reference(watched).copy()
            self.target.tensors.append(new)
        new.places.append(named)
        reference = self.reference(new)
        suspect = Suspect(new, reference, "value", "identity", entry.tensor, True, True)
        if id(watched) in self.known:
            self.known.add(id(new))
            return []
        if not reference.rebind(entry.tensor):
            suspect.kind = _kind_of(reference, entry.tensor)
            return [suspect]
        if not reference.differs:
            suspect.kind = "replaced"
        return [suspect]

    def _standing(self, tensor: Tensor) -> Watched | None:
        """A tied tensor is replaced at several places by one object."""
        return next((w for w in self.target.tensors if w.tensor is tensor), None)

    def _drop_place(self, watched: Watched, place: NamedTensor) -> None:
        watched.places = [other for other in watched.places if other is not place]
        if not watched.places:
            self.target.tensors = [w for w in self.target.tensors if w is not watched]

    def _flagged(self, look: Look, everything: bool) -> list[Suspect]:
        """Parameters whose flag was switched on: thawed by their owner, or by somebody else."""
        candidates = self.target.tensors if everything else look.flagged
        found = []
        for watched in list(candidates):
            if not (watched.tensor.requires_grad and is_frozen_parameter(watched)):
                continue
            if watched.by_flag:
                found += self.release(watched, "became trainable")
            elif id(watched) not in self.known:
                suspect = self._suspect(watched, "identity")
                suspect.kind = "requires_grad"
                found.append(suspect)
        return found

    def release(self, watched: Watched, why: str) -> list[Suspect]:
        """Check a tensor a last time and watch it no more."""
        last = [self._suspect(watched, "identity")] if self._differs_unknown(watched) else []
        self.target.tensors = [w for w in self.target.tensors if w is not watched]
        self.let_go_names.add(watched.name)
        self._note(watched, f"{why}, and was let go")
        return last

    def let_go(self, thawed: Iterable[Watched]) -> list[Suspect]:
        """Let go of what flags do not freeze any more; checked a last time."""
        found = [s for watched in thawed for s in self.release(watched, "became trainable")]
        self.identity.rebase()
        self._bind()
        return found

    def _differs_unknown(self, watched: Watched) -> bool:
        return id(watched) not in self.known and self.reference(watched).differs

    def admit(self, tensors: Iterable[Watched]) -> None:
        """Watch these too, as they are now."""
        new = list(tensors)
        self.target.tensors += new
        self._refer_to(new)
        self.identity.rebase()
        self._bind()

    def accept(self, suspects: Iterable[Suspect]) -> None:
        """These changed by somebody's wish, as a cast does: what is there now has to stay."""
        # Of another object with equal bytes the same is expected already.
        altered = [(s, s.now) for s in suspects if s.kind != "replaced" and s.now is not None]
        if not altered:
            return
        for suspect, now in altered:
            watched = suspect.watched
            copy = suspect.reference.old.copy is not None
            self._references[id(watched)] = Reference(watched.name, now, self.key, keep_copy=copy)
        self.identity.rebase()
        self._bind()

    def settle(self, suspects: Iterable[Suspect]) -> None:
        """Report these once only: they are known to differ."""
        self.known.update(id(s.watched) for s in suspects)

    def _note(self, watched: Watched, what: str) -> None:
        names = self._events.setdefault(what, [])
        if watched.name not in names:
            names.append(watched.name)


def _kind_of(reference: Reference, tensor: Tensor) -> ChangeKind:
    """What of its description is another; nothing, where its memory was freed."""
    if list(tensor.shape) != reference.shape:
        return "shape"
    return "dtype" if dtype_name(tensor.dtype) != reference.dtype else "missing"
