"""What is counted for Prometheus, by its own client: no question, and no name of a client."""

from __future__ import annotations

from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cot_engine.serve.desk import Busy, Cancelled, Desk
from cot_engine.serve.ticket import Ticket

CONTENT = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_KINDS = ("prefilled", "cached", "decoded")


class Metrics:
    """The counters of one server."""

    def __init__(self, desk: Desk) -> None:
        own = CollectorRegistry()
        self.registry = own
        self.requests = Counter(
            "cot_engine_requests", "Requests answered.", ["path", "status"], registry=own
        )
        self.searches = Counter(
            "cot_engine_searches", "Searches over.", ["strategy", "outcome"], registry=own
        )
        self.tokens = Counter("cot_engine_tokens", "Of the model.", ["role", "kind"], registry=own)
        self.flops = Counter("cot_engine_flops", "Of the model.", ["role"], registry=own)
        self.seconds = Histogram(
            *("cot_engine_search_seconds", "From a search's first event to its last."),
            buckets=_SECONDS,
            registry=own,
        )
        running = Gauge("cot_engine_running", "Searches that have a place.", registry=own)
        running.set_function(lambda: desk.running)
        waiting = Gauge("cot_engine_waiting", "Searches that wait for a place.", registry=own)
        waiting.set_function(lambda: desk.waiting)
        kept = Gauge("cot_engine_trace_bytes", "Of traces in memory.", registry=own)
        kept.set_function(lambda: desk.shelf.bytes)
        desk.on_over.append(self.over)

    def over(self, ticket: Ticket) -> None:
        """Count a search."""
        error = ticket.failure
        outcome = "answered" if error is None else "failed"
        if isinstance(error, (Busy, Cancelled)):
            outcome = "handed back" if isinstance(error, Busy) else "cancelled"
        self.searches.labels(ticket.call.strategy.name, outcome).inc()
        if ticket.seconds:
            self.seconds.observe(ticket.seconds)
        for role, used in ticket.usage.items():
            values = asdict(used)
            for kind in _KINDS:
                self.tokens.labels(role, kind).inc(values[kind])
            self.flops.labels(role).inc(used.flops)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
