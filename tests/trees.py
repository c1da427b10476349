"""Searches as text, for golden files."""

from __future__ import annotations

from cot_engine.core.events import Cut, Finished, Grown, Judged, Retraced, Scored, Selected
from cot_engine.core.trace import Trace


def tree(trace: Trace) -> str:
    """A search as text: what was grown from what, who met whom, who went on."""
    lines = []
    for event in trace:
        if isinstance(event, Grown):
            lines.append(f"{event.unit}{' (forced)' if event.forced else ''}")
            for chain in event.chains:
                step = chain.steps[-1]
                faults = f"  !{' '.join(step.faults)}" if step.faults else ""
                lines.append(f"  {chain.id}  {step.logprob:.3f}  {step.text!r}{faults}")
        elif isinstance(event, Judged):
            m = event.match
            margins = " ".join(f"{v.margin:+.2f}" for v in m.verdicts)
            by = f" by {m.broken_by}" if m.broken_by else ""
            lines.append(f"    {m.first} v {m.second}: {margins} {m.outcome}{by} -> {m.winner}")
        elif isinstance(event, Selected):
            by = f"  by {event.by}" if event.by else ""
            lines.append(f"  kept {' '.join(event.kept)}  merged {event.merged or '-'}{by}")
        elif isinstance(event, Scored):
            numbers = " ".join(f"{id} {number:.3f}" for id, number in event.scores.items())
            kind = event.about + ", probability" * event.probability
            lines.append(f"  {event.scorer} ({kind}): {numbers}")
        elif isinstance(event, Retraced):
            why = f"{event.score:.3f} < {event.threshold:.3f}, {event.attempt} of {event.of}"
            lines.append(f"  back to {event.to} from {' '.join(event.parents)}: {why}")
        elif isinstance(event, Cut):
            lines.append(f"  cut {event.what}: {event.asked} -> {event.granted}")
        elif isinstance(event, Finished):
            lines.append(f"answer {event.answer!r} from {event.chain}, faults {event.faults}")
            lines += [f"  {role}: {usage}" for role, usage in sorted(event.usage.items())]
    return "\n".join(lines) + "\n"
