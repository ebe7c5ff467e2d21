"""What the checks remember of the truth: failures by name, who is disturbed, how long something has lasted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

from hasupervisor.model import Cause, OperationKind, OperationState, Record, State, Step, StepKind, VerdictKind
from tests.sim.host import Daemon, Host
from tests.sim.lives import Life


@dataclass(slots=True)
class Tries:
    """The failed lives of one name, by the truth, since a person last forgave them."""

    failures: list[float] = field(default_factory=list)
    served_before: bool = False  # the last of them had answered somebody well
    needed: bool = False  # and nobody else served when it failed: users wait for it
    served_at: float = float("-inf")  # when one of its lives was last routed and able

    def counted(self, now: float, window: float) -> int:
        """How many the supervisor must reckon with at least: those of the window, and all since it last served."""
        lately = sum(now - at < window - 1.0 for at in self.failures)
        since = sum(at > self.served_at for at in self.failures)
        return max(lately, since)


class Ledger:
    """Kept up to date at every cycle and step."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.tries: dict[str, Tries] = defaultdict(Tries)
        self.disturbed: set[str] = set()
        self.everybody_lied_about_since: float | None = None
        self.routed_when_lies_began: frozenset[str] = frozenset()
        self.restarted_in_common_cause: set[str] = set()
        self.served_at_start: frozenset[str] = frozenset()
        self.routed_at_start: frozenset[str] = frozenset()  # a stale file may route a new life: nobody can know
        self.routed_before: frozenset[str] = frozenset()  # names, by the plan before
        self.joined: set[str] = set()  # lives that have been routed
        self.went_by: tuple[int, bool] = (-1, False)  # in which cycle something was the matter that ends by itself
        self.grown: dict[str, tuple[int, int]] = {}  # names with one failure more: how many, and births at the last
        self._failed_at: dict[str, tuple[int, int]] = {}  # how many failures were written down, after how many births
        self._counted: set[str] = set()
        self._fresh: list[str] = []
        self._operations: dict[str, str | None] = {}
        self._since: dict[Hashable, float] = {}
        self._kinds: dict[Hashable, str | None] = {}

    def lasting(self, what: Hashable, holds: bool, now: float) -> float:
        """Seconds for which `what` has held without a break, as far as it was looked at."""
        if not holds:
            self._since.pop(what, None)
            return 0.0
        return now - self._since.setdefault(what, now)

    def lasting_as(self, what: Hashable, kind: str | None, now: float) -> float:
        """Seconds for which `what` has been of that very kind; None: of none that counts."""
        if self._kinds.get(what) != kind:
            self._kinds[what] = kind
            self._since.pop(what, None)
        return self.lasting(what, kind is not None, now)

    def cause(self, daemon: Daemon, step: Step) -> Cause:
        """Why the instance of this step is ended; what nobody asked for is healing."""
        record = daemon.loop.records().get(step.name)
        return record.leaving.cause if record is not None and record.leaving is not None else Cause.HEAL

    def unknown(self, daemon: Daemon, life: Life) -> bool:
        """Whether the daemon cannot know of this life: dockerd or somebody else made it behind its back."""
        listed = {fact.runtime_id for fact in daemon.picture.view().facts}
        return life.late and life.runtime_id not in listed

    # --- what happens ------------------------------------------------------------------------------------------------

    def started(self) -> None:
        """A daemon has started: waiting begins anew. It does not know whom an earlier one has restarted, and why."""
        self.host.dockerd.lies_since = float("-inf")
        self.everybody_lied_about_since = None
        self._since.clear()
        live = self.host.nginx.disk
        self.routed_at_start = frozenset(life.runtime_id for life in self.host.lives() if life.address in live)
        self.served_at_start = frozenset(
            life.runtime_id for life in self.host.lives() if life.able and life.proven and life.address in live
        )

    def stepped(self, daemon: Daemon, step: Step) -> None:
        """After the checks of this step."""
        life = self.host.dockerd.lives.get(step.name)
        ends = step.kind in (StepKind.STOP, StepKind.KILL)
        if ends and life is not None and life.alive and life.runtime_id == step.runtime_id:
            if self.cause(daemon, step) is Cause.HEAL:
                self._failed(daemon, life)
                if life.able and life.runtime_id in self.joined and step.kind is StepKind.STOP:
                    self.disturbed.add(step.name)
                if self.everybody_lied_about_since is not None:
                    self.restarted_in_common_cause.add(step.name)
            self._counted.add(life.runtime_id)

    def launch_failed(self, name: str) -> None:
        tries = self.tries[name]
        tries.failures.append(self.host.engine.now)
        tries.served_before = tries.needed = False

    def cycled(self, daemon: Daemon) -> None:
        """After a cycle, before its checks."""
        records = daemon.loop.records()
        for name in self._fresh:  # the step came before the plan of its cycle was to be seen
            self.tries[name].needed |= self._nobody_else_serves(daemon, name)
        self._fresh.clear()
        for life in self.host.dockerd.lives.values():
            if life.alive and life.address in self.host.nginx.live and life.proven:
                self.tries[life.name].served_at = self.host.engine.now
                self.joined.add(life.runtime_id)
            if life.exit_code is not None and life.runtime_id not in self._counted:
                record = records.get(life.name)
                if record is not None and record.leaving is None and record.ended == life.runtime_id:
                    self._failed(daemon, life)
                self._counted.add(life.runtime_id) if record is not None and record.ended == life.runtime_id else None
        self._growth(daemon)
        for name in [name for name in self.tries if name not in records]:
            del self.tries[name]
        self.forgive(daemon)
        self.disturbed = {name for name in self.disturbed if self._still_out(daemon, name)}
        self.lies()

    def _growth(self, daemon: Daemon) -> None:
        """Who has failed once more, by what is written down."""
        self.grown.clear()
        before, self._failed_at = self._failed_at, {}
        steps = daemon.loop.latest.steps if daemon.loop.latest is not None else ()
        begun = {step.name for step in steps if step.kind is StepKind.START}
        for name, record in daemon.loop.records().items():
            count, births = len(record.failures), self.host.dockerd.births[name] - (name in begun)
            known, at = before.get(name, (0, -1))
            if count > known > 0:
                self.grown[name] = count, at
            if record.state is State.SERVING:
                at = -1  # what could not be ended has recovered: it may fail again
            self._failed_at[name] = (count, births if count > known else at)

    def forgive(self, daemon: Daemon) -> None:
        """A person who restarts an instance forgives its failures; each when its turn has come."""
        for operation in daemon.loop.operations:
            if operation.kind is OperationKind.RESTART and operation.state is OperationState.RUNNING:
                for name in operation.targets[:1]:
                    self.tries.pop(name, None)
        for name, record in daemon.loop.records().items():
            if record.operation != self._operations.get(name):
                self._operations[name] = record.operation
                self.tries.pop(name, None)

    def _failed(self, daemon: Daemon, life: Life) -> None:
        if life.runtime_id in self._counted:
            return
        self._counted.add(life.runtime_id)
        tries = self.tries[life.name]
        tries.failures.append(self.host.engine.now)
        tries.served_before = life.proven
        tries.needed = life.proven and self._nobody_else_serves(daemon, life.name)
        if life.proven:
            self._fresh.append(life.name)

    def _nobody_else_serves(self, daemon: Daemon, name: str) -> bool:
        """As far as the daemon knows: then it does not let users wait."""
        plan = daemon.loop.latest
        others = [j for j in plan.instances if j.record.name != name] if plan is not None else []
        good = (VerdictKind.SERVING, VerdictKind.BUSY)
        return not any(j.record.in_rotation and j.verdict.kind in good for j in others)

    def _still_out(self, daemon: Daemon, name: str) -> bool:
        record, life = daemon.loop.records().get(name), self.host.dockerd.lives.get(name)
        if record is None or self.is_over(record) or name in daemon.loop.wants.drained:
            return False
        if record.leaving is not None and record.leaving.cause is not Cause.HEAL:
            return False
        return life is None or not (life.able and life.address in self.host.nginx.live and record.leaving is None)

    def is_over(self, record: Record) -> bool:
        """Whether a restart has shown that it does not help: given up, failed again by the truth, or out for long."""
        if record.parked_at is not None or record.stuck is not None:
            return True
        if record.disturbed_at is None:
            return False
        began, now = record.disturbed_at, self.host.engine.now
        failed_again = any(at > began + 1.0 for at in self.tries[record.name].failures)
        return failed_again or now - began >= self.host.policy.start_timeout

    def lies(self) -> None:
        """Follows a fault that makes all probes fail although everybody serves."""
        dockerd, now = self.host.dockerd, self.host.engine.now
        if now >= dockerd.lies_until:
            self.everybody_lied_about_since = None
            self.restarted_in_common_cause.clear()
            return
        live = self.host.nginx.live
        well = [life for life in self.host.lives() if life.able and life.bad_at <= dockerd.lies_since <= life.lied_at]
        routed = [life for life in well if life.address in live]
        if self.everybody_lied_about_since is None and dockerd.lies_since != float("-inf"):
            if len(routed) < 2 or now - dockerd.lies_since > 2.0:
                return
            self.everybody_lied_about_since = dockerd.lies_since
            self.routed_when_lies_began = frozenset(life.runtime_id for life in routed)
        first = [life for life in self.host.lives() if life.runtime_id in self.routed_when_lies_began and life.able]
        if len(first) + len(self.restarted_in_common_cause) < max(2, len(self.routed_when_lies_began)):
            self.everybody_lied_about_since = None  # something else is wrong as well
            dockerd.lies_since = float("-inf")
