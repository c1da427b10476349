"""What can go wrong around a forward pass, and what those who wait for it are told."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable

import torch

from cot_engine.core.requests import Choose, Generate, Measure
from cot_engine.errors import BackendGone, CotEngineError, ModelError, said

_TAG = re.compile(r"<(/?)([A-Z][A-Z0-9_]{0,31})>")


def attempt(act: Callable[[], None]) -> BaseException | None:
    """Run `act`; what it raised, whatever that was, emptied (see `emptied`), or None.

    To be looked at after the handler has been left, so that nothing of a failed attempt is held
    while it is retried.
    """
    try:
        act()
    except BaseException as error:  # a thread that dies leaves everybody waiting
        return emptied(error)
    return None


def emptied(error: BaseException) -> BaseException:
    """`error` without the variables of the frames it passed through: a traceback keeps every tensor
    of a failed forward pass alive. Where it happened can still be read."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            chain += [one.__cause__, one.__context__]
    return error


def out_of_memory(error: BaseException) -> bool:
    """CUDA says so by type; the CPU allocator only in words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
    )


def failure(error: BaseException) -> ModelError:
    """What one of those in flight is told: its own error, never one that stops its event loop."""
    if isinstance(error, CotEngineError):
        told = ModelError(error.message, error.hint)
    elif out_of_memory(error):
        told = ModelError("There was not enough memory.", "Use --quantize, or a smaller model.")
    elif isinstance(error, torch.AcceleratorError):  # CUDA answers nothing after one
        told = BackendGone(f"The device failed: {said(error)}", "Load the model again.")
    else:
        told = ModelError(
            f"The model failed: {said(error)}",
            "Other requests go on; if this one fails again it is a defect of model or engine.",
        )
    told.__cause__ = error
    return told


def not_numbers(request: Generate | Choose | Measure, written: str = "") -> ModelError:
    """`written` is what the candidate had of its own, after the request's prefix."""
    if isinstance(request, Measure):
        doing = "is asked what it makes of an answer"
    elif isinstance(request, Choose):
        doing = "is asked for a verdict" if request.role == "judge" else "is asked to choose"
    else:
        text = "".join(segment.text for segment in request.prefix) + written
        tags = _TAG.findall(text)
        if request.role != "generate":
            doing = f"writes as a {request.role}"
        elif not tags:
            doing = "begins its reply"
        else:
            closed, tag = tags[-1]
            doing = f"goes on after </{tag}>" if closed else f"writes <{tag}>"
    return ModelError(
        f"The model's logits are not numbers (nan or infinite) where it {doing}.",
        "With --dtype float16 its numbers may have overflowed: use bfloat16 or float32. Otherwise "
        "its weights are damaged: download them again.",
    )
