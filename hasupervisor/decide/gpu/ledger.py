"""Which card an instance starts on: what is free, what is promised, and who loads where. Pure.

NVML shows memory free while the model that it is promised to is still being read from disk. So an instance counts for
what it needs, or for what it uses where that is more, from the moment its start is decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from hasupervisor.decide.gpu.judge import Judgement, leaked_bytes
from hasupervisor.model import GpuPolicy
from hasupervisor.model.gpu import GB, CardState, CardView, DriverState, DriverView, GpuFact, Gpus

_NOBODY: frozenset[str] = frozenset()

WAITS = "waits for a GPU: "
"""How the reason of an instance begins that no card can take."""


@dataclass(frozen=True, slots=True)
class Account:
    """One card's books."""

    card: CardView
    last: bool = False  # taken after all others: it is throttled
    refused: str | None = None  # why no newcomer may come at all
    tenants: tuple[str, ...] = ()  # ours that are on it, or were promised a place
    loading: tuple[str, ...] = ()  # of these: not loaded yet
    staying: frozenset[str] = frozenset()  # ours whose processes are still on it
    free_bytes: int = 0  # as NVML says
    outstanding_bytes: int = 0  # promised and not used yet
    foreign_bytes: int = 0  # held by processes of others
    leaked_bytes: int = 0  # held by nobody who is listed

    @property
    def uuid(self) -> str:
        return self.card.uuid or ""

    def available(self, policy: GpuPolicy) -> int:
        """Bytes for newcomers."""
        return max(0, self.free_bytes - self.outstanding_bytes - policy.reserve_bytes)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance may start now: the cards that it gets, or why it has to wait."""

    gpus: tuple[str, ...] = ()
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Ledger:
    """The books of all cards in one cycle; `promise` returns the books after a start."""

    policy: GpuPolicy
    driver: DriverView
    accounts: tuple[Account, ...] = ()
    one_at_a_time: bool = True

    def place(self, name: str, before: Sequence[str] = (), beside: Set[str] = _NOBODY) -> Place:
        """A card for `name`; of equally good ones, that which it had `before`. Loaders in `beside` are not awaited."""
        if self.driver.state is DriverState.UNKNOWN:
            return Place(why_not=f"waits: {self.driver.sentence}")
        if not self.accounts and self.driver.state is DriverState.ABSENT and not self.policy.required:
            return Place()  # a host without GPUs
        if self.driver.state is not DriverState.OK:
            return Place(why_not=f"{WAITS}{self.driver.sentence}")
        fits = [account for account in self.accounts if self._why_not(account, name, beside) is None]
        if not fits:
            return Place(why_not=self._no_place(name, beside))
        return Place((min(fits, key=lambda account: self._rank(account, before)).uuid,))

    def promise(self, name: str, uuids: Sequence[str]) -> Ledger:
        """The books once `name` is being started on these cards."""

        def book(account: Account) -> Account:
            if account.uuid not in uuids:
                return account
            return replace(
                account,
                tenants=tuple(sorted({*account.tenants, name})),
                loading=tuple(sorted({*account.loading, name})),
                outstanding_bytes=account.outstanding_bytes + self.policy.need_bytes,
            )

        return replace(self, accounts=tuple(book(account) for account in self.accounts))

    def room(self) -> int | None:
        """How many more instances find a place, those apart that only wait for another to load; None: no limit."""
        if self.place("").gpus == () and self.place("").why_not is None:
            return None
        if self.driver.state is not DriverState.OK:
            return 0
        return sum(account.available(self.policy) // self.policy.need_bytes for account in self._open())

    def no_room(self) -> str | None:
        """Why no instance more finds a place, apart from one that only has to wait for another to load."""
        if self.room() != 0:
            return None
        return self.place("").why_not if self.driver.state is not DriverState.OK else self._no_memory()

    def roomiest(self) -> str | None:
        """The card with the most memory for one more, though somebody may be loading on it; None: no card has it."""
        if self.driver.state is not DriverState.OK:
            return None
        fits = [account for account in self._open() if account.available(self.policy) >= self.policy.need_bytes]
        best = max(fits, key=lambda account: (not account.last, account.available(self.policy)), default=None)
        return best.uuid if best is not None else None

    def _open(self) -> list[Account]:
        return [account for account in self.accounts if account.refused is None]

    def _why_not(self, account: Account, name: str, beside: Set[str]) -> str | None:
        if account.refused is not None:
            return account.refused
        if name in account.staying:
            return f"waits until its processes of before have left GPU {account.card.index}"
        if account.available(self.policy) < self.policy.need_bytes:
            return _little(account, self.policy)
        others = [other for other in account.loading if other != name and other not in beside]
        if self.one_at_a_time and others:
            return f"waits until {others[0]} has loaded on GPU {account.card.index}: one loads at a time on a GPU"
        return None

    def _no_place(self, name: str, beside: Set[str]) -> str:
        """The shortest wait that is true: somebody loads or leaves, else what is the matter with each card."""
        enough = [a for a in self._open() if a.available(self.policy) >= self.policy.need_bytes]
        waits = [words for account in enough if (words := self._why_not(account, name, beside)) is not None]
        return waits[0] if waits else self._no_memory()

    def _no_memory(self) -> str:
        need = f"{self.policy.need_bytes / GB:.1f} GB"
        if not self.accounts:
            return f"{WAITS}{self.driver.sentence}"
        each = "; ".join(_short(account, self.policy) for account in self.accounts)
        what = f"no GPU has {need} for it" if self._open() else "no healthy GPU is left"
        return f"{WAITS}{what}: {each}"

    def _rank(self, account: Account, before: Sequence[str]) -> tuple[bool, int, bool, int, int]:
        """Spread first: a card that dies takes all its instances along."""
        stranger = account.uuid not in before
        return account.last, len(account.tenants), stranger, -account.available(self.policy), account.card.index


@dataclass(frozen=True, slots=True)
class Tenant:
    """One of our instances as far as it concerns the cards."""

    name: str
    gpus: tuple[str, ...]  # given to it
    loads: bool  # started, and not proven yet


def ledger(
    gpus: Gpus,
    judgements: Sequence[tuple[CardView, Judgement]],
    tenants: Sequence[Tenant],
    policy: GpuPolicy,
    *,
    one_at_a_time: bool,
) -> Ledger:
    """Opens the books of a cycle."""
    accounts = tuple(_account(card, judgement, tenants, gpus, policy) for card, judgement in judgements)
    return Ledger(policy, gpus.driver, accounts, one_at_a_time)


def is_excluded(card: CardView, policy: GpuPolicy) -> bool:
    """Whether the configuration leaves that card to others."""
    return card.uuid in policy.exclude or str(card.index) in policy.exclude


def _account(card: CardView, judgement: Judgement, tenants: Sequence[Tenant], gpus: Gpus, policy: GpuPolicy) -> Account:
    here = [tenant for tenant in tenants if card.uuid in tenant.gpus]
    account = Account(
        card,
        last=judgement.last,
        refused=_refused(card, judgement, policy),
        tenants=tuple(sorted(tenant.name for tenant in here)),
        loading=tuple(sorted(tenant.name for tenant in here if tenant.loads)),
    )
    fact = card.fact
    if fact is None:
        return account
    used = _used_by(fact, gpus.users)
    outstanding = sum(_outstanding(tenant, used, policy) for tenant in here)
    return replace(
        account,
        staying=frozenset(used),
        free_bytes=fact.memory_free_bytes,
        outstanding_bytes=outstanding,
        foreign_bytes=sum(
            p.memory_bytes or 0 for p in fact.processes if not (p.pid in gpus.users or p.pid in gpus.dead)
        ),
        leaked_bytes=leaked_bytes(fact, gpus.dead) or 0,
    )


def _refused(card: CardView, judgement: Judgement, policy: GpuPolicy) -> str | None:
    if is_excluded(card, policy):
        return "left to others by gpu.exclude"
    if card.uuid is None or card.fact is None:
        return judgement.reason or "has not been seen yet"
    if card.fact.mig:
        return f"is split by MIG, which is not supported: nvidia-smi -i {card.index} -mig 0"
    return None if judgement.state is CardState.OK else (judgement.reason or judgement.state.value)


def _used_by(fact: GpuFact, users: Mapping[int, str]) -> dict[str, int | None]:
    """Bytes that each of ours uses on the card; None: it is there, and the driver does not tell how much it has."""
    found: dict[str, int | None] = {}
    for process in fact.processes:
        name = users.get(process.pid)
        if name is not None:
            before = found.get(name, 0)
            told = before is not None and process.memory_bytes is not None
            found[name] = (before or 0) + (process.memory_bytes or 0) if told else None
    return found


def _outstanding(tenant: Tenant, used: Mapping[str, int | None], policy: GpuPolicy) -> int:
    """What is promised to it and not in NVML's figures yet. Where the driver does not tell: all, while it loads."""
    has = used.get(tenant.name, 0)
    if has is None:
        return policy.need_bytes if tenant.loads else 0
    return max(0, policy.need_bytes - has)


def _little(account: Account, policy: GpuPolicy) -> str:
    words = f"{account.available(policy) / GB:.1f} GB for newcomers"
    others = [
        f"{bytes_ / GB:.1f} GB {whose}"
        for bytes_, whose in (
            (account.foreign_bytes, "held by processes that are none of ours"),
            (account.leaked_bytes if account.leaked_bytes > GB else 0, "held by no living process"),
        )
        if bytes_
    ]
    return ", ".join([words, *others])


def _short(account: Account, policy: GpuPolicy) -> str:
    return f"GPU {account.card.index}: {account.refused or _little(account, policy)}"
