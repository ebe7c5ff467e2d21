"""Deliberate defects of the pure decisions: small edits of their source, each of which the simulator has to find."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old` stands once in `hasupervisor/decide/<file>` and is replaced by `new`."""

    name: str  # what the defect does, as a sentence
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "an instance is routed before it has answered a prompt",
        "health.py",
        'if not case.proven:\n        return _loading(case, "answers; its',
        'if False:\n        return _loading(case, "answers; its',
    ),
    Mutant(
        "a busy instance that misses probes counts as hung",
        "health.py",
        "ago <= progress_window(traffic, case.policy):\n        return Verdict(VerdictKind.BUSY,",
        "ago <= progress_window(traffic, case.policy):\n        return Verdict(VerdictKind.HUNG,",
    ),
    Mutant(
        "a frozen instance counts as busy for ever",
        "health.py",
        "if ago is not None and ago <= case.policy.interval + case.policy.timeout:",
        "if ago is not None:",
    ),
    Mutant(
        "a single missed probe makes a sick instance well",
        "health.py",
        "return Verdict(last.kind, missed) if last.kind is VerdictKind.SERVING else last",
        "return Verdict(VerdictKind.SERVING, missed)",
    ),
    Mutant(
        "a successful start resets the count of failures",
        "repair.py",
        "parked_at=None, gpus=gate.gpus)",
        "parked_at=None, gpus=gate.gpus, failures=())",
    ),
    Mutant(
        "retries do not back off",
        "repair.py",
        "gate.policy.backoff * 2.0 ** (count - 1)",
        "gate.policy.backoff",
    ),
    Mutant(
        "a failing instance is never parked",
        "repair.py",
        "parked = count >= gate.policy.attempts",
        "parked = False",
    ),
    Mutant(
        "a life that could not be ended at once is counted as two failures",
        "repair.py",
        "if ended is not None and ended == record.ended:",
        "if False:",
    ),
    Mutant(
        "healing goes on while a person has paused the service",
        "repair.py",
        "held = gate.asleep or gate.paused or gate.no_disturbance",
        "held = gate.asleep or gate.no_disturbance",
    ),
    Mutant(
        "an instance that was drained by hand is started again",
        "repair.py",
        "    if gate.drained:\n",
        "    if False:\n",
    ),
    Mutant(
        "an instance is stopped while requests are in flight",
        "repair.py",
        "quiet=gate.unrouted and in_flight == 0",
        "quiet=gate.unrouted",
    ),
    Mutant(
        "an instance is stopped before nginx has let go of it",
        "repair.py",
        "quiet=gate.unrouted and in_flight == 0",
        "quiet=in_flight == 0",
    ),
    Mutant(
        "the remains of an ended instance are never cleared away",
        "repair.py",
        "    return Turn(record, state, sentence, step)",
        "    return Turn(record, state, sentence) if step else Turn(record, state, sentence, step)",
    ),
    Mutant(
        "a common cause is never found",
        "brakes.py",
        "if not really or len(together) < 2 or 2 * len(together) <= served:",
        "if True:",
    ),
    Mutant(
        "an instance that ails is restarted while another one is restarted",
        "brakes.py",
        "other = waits_for(seen, verdict, around.disturbed, around, policy, now)",
        "other = None",
    ),
    Mutant(
        "what has just been started is started again, as the list does not show it yet",
        "placement.py",
        "return world.runtime.listed_at is None or world.runtime.listed_at <= acted",
        "return world.runtime.listed_at is None",
    ),
    Mutant(
        "all instances load at the same time",
        "placement.py",
        "if not policy.one_at_a_time:",
        "if True:",
    ),
    Mutant(
        "the start of the daemon forgets what was routed",
        "plan.py",
        "routed = fact.address in world.routed_at_start",
        "routed = False",
    ),
    Mutant(
        "restart --all restarts all at once",
        "rollout.py",
        "if record.name != target or",
        "if record.name not in operation.targets or",
    ),
    Mutant(
        "one instance too many stays when fewer are wanted",
        "scaling.py",
        "surplus = len(staying) - world.wants.desired\n",
        "surplus = len(staying) - world.wants.desired\n    surplus -= surplus > 0\n",
    ),
    Mutant(
        "two instances load on one card at the same time",
        "gpu/ledger.py",
        "if self.one_at_a_time and others:",
        "if False:",
    ),
    Mutant(
        "newcomers are placed on a card that is given up",
        "gpu/ledger.py",
        "return None if judgement.state is CardState.OK else (judgement.reason or judgement.state.value)",
        "return None",
    ),
    Mutant(
        "the only one that serves is drained off its card although it works",
        "plan.py",
        '"nobody else serves" if around.last else _paused(world)',
        "_paused(world)",
    ),
    # --- each from a defect of the first release that only a fault without an end can show ---------------------------
    Mutant(
        "one that may serve waits without an end for a trial that is over (defect 1)",
        "brakes.py",
        "return age < (HOLD if other.failed else policy.start_timeout)",
        "return True",
    ),
    Mutant(
        "in a common cause all wait without an end for the one that is tried first (defect 1)",
        "brakes.py",
        "waits_for(seen, verdict, [d for d in around.disturbed if d.name in cause.members], around, policy, now)",
        "next((d.name for d in around.disturbed if d.name != name), None)",
    ),
    Mutant(
        "one that ails waits without an end for one that waits for a GPU (defect 2)",
        "brakes.py",
        "if alone is not None or seen.record.disturbed_at is not None or not may_serve(seen, verdict, now):\n"
        "        return alone  # one whose turn has come is not kept waiting for another's\n"
        "    other = waits_for(seen, verdict, around.disturbed, around, policy, now)\n",
        "if alone is not None:\n"
        "        return alone\n"
        "    other = next((d.name for d in around.disturbed if d.name != name and not d.failed), None)\n",
    ),
    Mutant(
        "a loader that comes to no end keeps the others from starting while nobody serves (defect 10)",
        "plan.py",
        "beside = endless | overdue if last and seen.record.load_s is not None else endless",
        "beside = endless",
    ),
    Mutant(
        "one witness is enough for SIGKILL: two probes that are missed (defect 5)",
        "health.py",
        "probe.miss is Miss.SILENT and case.uses_no_cpu:",
        "probe.miss is Miss.SILENT:",
    ),
    Mutant(
        "one that computes counts as hung as soon as one that does nothing (defect 5)",
        "health.py",
        "if p99 is None or not self.uses_no_cpu:",
        "if p99 is None:",
    ),
    Mutant(
        "an instance is stopped while it may have work that cannot be seen (defect 6)",
        "drain.py",
        "if traffic.in_flight_known and not counted_before:",
        "if True:",
    ),
    Mutant(
        "one whose work cannot be seen is suspect without an end (defect 6)",
        "health.py",
        "if silent >= hang_after:",
        "if surely and silent >= hang_after:",
    ),
    Mutant(
        "the last answer stands for ever, however old it is (defect 9)",
        "health.py",
        "if told_at is not None and now - told_at > stale_after(policy):",
        "if False:",
    ),
    Mutant(
        "an instance that cannot be asked any more is shown as serving (defect 9)",
        "repair.py",
        "if verdict.since is None:",
        "if True:",
    ),
    Mutant(
        "a container that is never removed is waited for without an end (defect 17)",
        "repair.py",
        "if lasts < REMOVAL or gate.asleep is not None:",
        "if True:",
    ),
    Mutant(
        "an instance that cannot be ended is not replaced (defect 17)",
        "scaling.py",
        "return record.stuck is None and (",
        "return (",
    ),
)
