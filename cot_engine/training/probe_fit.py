"""A probe fitted on a model's own responses: logistic regression, its penalty chosen and its
probabilities calibrated on problems that it was not fitted on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cot_engine.errors import InputError
from cot_engine.judging.probe import WHOLE, Head, Probe
from cot_engine.training.probe_samples import Samples

PENALTIES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
"""Of the mean squared weight of standardised features, beside the mean loss of a response."""
SHARES = (0.7, 0.15)
"""Of the problems: to fit on, and to choose and calibrate on; the rest is measured on."""
LEAST = 20
"""Responses of either outcome without which nothing is fitted."""

Blocks = dict[str, np.ndarray]


@dataclass(frozen=True)
class Parts:
    """Which rows are for what, no problem in two of them."""

    fitting: np.ndarray
    tuning: np.ndarray
    measuring: np.ndarray


@dataclass(frozen=True)
class Fitted:
    """A head with the penalty that was chosen, and the mean loss (nats) of the problems it was
    chosen on, beside that of always saying their share."""

    head: Head
    penalty: float
    loss: float
    base: float


def split(problems: np.ndarray, names: Sequence[str]) -> Parts:
    """Rows by the lot of their problem's name, so that data that grows keeps its parts."""
    lots = {at: _lot(names[int(at)]) for at in np.unique(problems)}
    lot = np.array([lots[at] for at in problems])
    first, second = SHARES[0], SHARES[0] + SHARES[1]
    return Parts(lot < first, (lot >= first) & (lot < second), lot >= second)


def check_enough(names: Sequence[str], n: int) -> None:
    """Raises InputError if `n` responses to each problem of these names could not be enough,
    however many of them are right: before they are sampled."""
    parts = split(np.arange(len(names)), names)
    for part, what in ((parts.fitting, "fit"), (parts.tuning, "calibrate"), (parts.measuring, "")):
        count = int(part.sum()) * n
        least = 2 * LEAST if what else 1
        if count < least:
            raise InputError(
                f"{len(names):,} questions with {n:,} responses each leave {count:,} to"
                f" {what or 'measure'} on, and it takes {least}.",
                "Take more questions (--problems), or more --responses.",
            )


def _lot(name: str) -> float:
    return int(hashlib.sha256(f"probe|{name}".encode()).hexdigest()[:12], 16) / 16**12


def fit_probe(
    samples: Samples,
    parts: Parts,
    layers: tuple[int, ...],
    width: int,
    marks: Mapping[str, str],
    digest: str,
) -> tuple[Probe, dict[str, Fitted], list[str]]:
    """The probe, how each head was fitted, and sentences about those that could not be.

    Raises InputError if the responses are all right or all wrong.
    """
    fitted: dict[str, Fitted] = {}
    notes: list[str] = []

    def fit(name: str, blocks: Blocks, labels: np.ndarray, rows: np.ndarray) -> None:
        made = fit_head(blocks, labels, rows, parts)
        if isinstance(made, str):
            notes.append(f"No head for {name}: {made}")
        else:
            fitted[name] = made

    for number, tag in enumerate(samples.stages):
        rows = samples.arrays[f"closed/{tag}"] > 0
        facts = samples.arrays[f"facts/{tag}"]
        labels = np.where(np.isnan(facts), samples.label, facts)
        blocks = stage_features(samples, tag)
        if tag in marks and (claims := _claims(samples, number)) is not None:
            own = fit_head(*claims, _of_claims(samples, parts, number))
            if isinstance(own, str):
                notes.append(f"No head for the claims of {tag}: {own}")
            else:
                fitted[f"claim:{tag}"] = own
                blocks["claims"] = _pooled(samples, number, own.head)
        fit(tag, blocks, labels, rows)
    fit(WHOLE, whole_features(samples), samples.label, np.ones(len(samples), bool))
    if WHOLE not in fitted:
        raise InputError(
            f"Nothing can be fitted: {notes[-1].partition(': ')[2]}",
            "Take harder questions for a model that is always right, easier ones for one that never"
            " is, more of them (--problems), or sample at a higher --temperature.",
        )
    heads = {name: each.head for name, each in fitted.items()}
    return Probe(layers, width, heads, dict(marks), digest), fitted, notes


def stage_features(samples: Samples, tag: str) -> Blocks:
    """What a stage's head reads (`judging.probe.stage_blocks`), a row each."""
    a = samples.arrays
    tokens = np.maximum(a[f"tokens/{tag}"], 1)
    return {
        "end": a[f"end/{tag}"],
        "mean": a[f"mean/{tag}"],
        "likelihood": (a[f"nats/{tag}"] / tokens)[:, None],
    }


def whole_features(samples: Samples) -> Blocks:
    """What the head "whole" reads (`judging.probe.whole_blocks`), a row each; NaN for a stage that
    is not there."""
    a, blocks = samples.arrays, {}
    for tag in samples.stages:
        there = a[f"closed/{tag}"] > 0
        if there.any():
            blocks[f"end:{tag}"] = np.where(there[:, None], a[f"end/{tag}"], np.float32(np.nan))
    likelihood = (samples.nats / np.maximum(samples.tokens, 1))[:, None]
    return {**blocks, "mean": samples.mean, "likelihood": likelihood}


def _claims(samples: Samples, stage: int) -> tuple[Blocks, np.ndarray, np.ndarray] | None:
    """The states of a stage's claims, whether they are true, and which that is known of."""
    if "claim" not in samples.arrays:
        return None
    mine = samples.claim_stage == stage
    known = mine & ~np.isnan(samples.claim_true)
    if not known.any():
        return None
    labels = np.nan_to_num(samples.claim_true[mine])
    return {"end": samples.claim[mine]}, labels, known[mine]


def _of_claims(samples: Samples, parts: Parts, stage: int) -> Parts:
    row = samples.claim_row[samples.claim_stage == stage].astype(int)
    return Parts(parts.fitting[row], parts.tuning[row], parts.measuring[row])


def _pooled(samples: Samples, stage: int, head: Head) -> np.ndarray:
    """By response, the summed log-probabilities that the claims are true; NaN where there are
    none."""
    mine = samples.claim_stage == stage
    logits = samples.claim[mine] @ head.weights["end"] + head.bias
    logs = -np.logaddexp(0.0, -logits.astype(np.float64))
    rows = samples.claim_row[mine].astype(int)
    total = np.bincount(rows, logs, len(samples))
    count = np.bincount(rows, minlength=len(samples))
    return np.where(count > 0, total, np.nan).astype(np.float32)[:, None]


def fit_head(blocks: Blocks, labels: np.ndarray, rows: np.ndarray, parts: Parts) -> Fitted | str:
    """One head on `blocks` [rows, size], of which `rows` count; or why there is none."""
    fitting, tuning = rows & parts.fitting, rows & parts.tuning
    for part in (fitting, tuning):
        right, total = float(labels[part].sum()), int(part.sum())
        if min(right, total - right) < LEAST:
            return (
                f"of {total:,} responses to {'fit' if part is fitting else 'calibrate'} on"
                f" {right:g} are right, and it takes {LEAST} of either kind."
            )
    scaling = {name: _scaling(values[fitting]) for name, values in blocks.items()}
    x = {k: _joined(blocks, scaling, part) for k, part in (("fit", fitting), ("tune", tuning))}
    y = {"fit": _tensor(labels[fitting]), "tune": _tensor(labels[tuning])}
    found: list[tuple[float, float, torch.Tensor, float, float, float]] = []
    weights = torch.zeros(x["fit"].shape[1])
    bias = 0.0
    for penalty in sorted(PENALTIES, reverse=True):  # each begins where a stronger one ended
        weights, bias = logistic(x["fit"], y["fit"], penalty, weights, bias)
        scale, shift, loss = calibrated(x["tune"] @ weights + bias, y["tune"])
        found.append((loss, penalty, weights, bias, scale, shift))
        if loss > min(each[0] for each in found) + 0.02:
            break
    loss, penalty, weights, bias, scale, shift = min(found, key=lambda each: each[0])
    head = _folded(blocks, scaling, (weights * scale).numpy(), bias * scale + shift)
    share = float(y["tune"].mean())
    base = -(share * math.log(share) + (1 - share) * math.log(1 - share))
    return Fitted(head, penalty, loss, base)


def logistic(
    x: torch.Tensor, y: torch.Tensor, penalty: float, weights: torch.Tensor, bias: float
) -> tuple[torch.Tensor, float]:
    """Weights and bias that make the mean cross-entropy of labels (0 to 1), and `penalty` / 2 times
    the squared weights, least; from a start."""
    w = weights.clone().requires_grad_()
    b = torch.tensor(float(bias), requires_grad=True)
    search = torch.optim.LBFGS([w, b], max_iter=100, history_size=10, line_search_fn="strong_wolfe")
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits

    def loss() -> Any:
        search.zero_grad()
        value = loss_of(x @ w + b, y) + penalty / 2 * (w @ w)
        value.backward()
        return value

    search.step(loss)
    return w.detach(), float(b.detach())


def calibrated(logits: torch.Tensor, y: torch.Tensor) -> tuple[float, float, float]:
    """The scale and shift of logits that make the mean cross-entropy least (Platt 1999), and what
    that is then."""
    x = logits.double()[:, None]
    w, b = logistic(x, y.double(), 1e-6, torch.ones(1, dtype=torch.double), 0.0)
    scale = max(float(w[0]), 0.0)  # one that is worse than chance says nothing
    made = x[:, 0] * scale + b
    loss = torch.nn.functional.binary_cross_entropy_with_logits(made, y.double())
    return scale, b, float(loss)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _scaling(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(all="ignore"):
        mean, sd = np.nanmean(values, 0), np.nanstd(values, 0)
    return np.nan_to_num(mean), np.maximum(np.nan_to_num(sd), 1e-6)


def _joined(blocks: Blocks, scaling: Mapping[str, Any], rows: np.ndarray) -> torch.Tensor:
    each = [(blocks[name][rows] - mean) / sd for name, (mean, sd) in scaling.items()]
    return _tensor(np.nan_to_num(np.concatenate(each, 1)))  # what is not there counts as the mean


def _folded(blocks: Blocks, scaling: Mapping[str, Any], weights: np.ndarray, bias: float) -> Head:
    """The head whose weights are those of features as they are."""
    own: dict[str, np.ndarray] = {}
    absent: dict[str, float] = {}
    at = 0
    for name, (mean, sd) in scaling.items():
        part = weights[at : at + len(mean)] / sd
        at += len(mean)
        own[name] = part.astype(np.float32)
        absent[name] = float(part @ mean)
        bias -= absent[name]
    return Head(float(bias), own, absent)


def logits(head: Head, blocks: Blocks) -> np.ndarray:
    """What a head says of every row [rows]."""
    total = np.full(len(next(iter(blocks.values()))), head.bias)
    for name, weights in head.weights.items():
        value = blocks[name] @ weights
        total += np.where(np.isnan(value), head.absent.get(name, 0.0), value)
    return total


def with_claims(samples: Samples, probe: Probe, tag: str) -> Blocks:
    """What a stage's head reads, claims included where the probe has a head for them."""
    blocks, head = stage_features(samples, tag), probe.heads.get(f"claim:{tag}")
    if head is not None:
        blocks["claims"] = _pooled(samples, samples.stages.index(tag), head)
    return blocks
