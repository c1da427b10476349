"""What drawing from a whole vocabulary costs beside drawing from the 50 likeliest tokens."""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from cot_engine.backends.local.sampling import RowSampling, draw, keys
from cot_engine.core.requests import GREEDY, Sampling

KINDS = {
    "top-k 50": [Sampling(1.0, 1.0, 50)],
    "whole": [Sampling(1.0, 1.0, 0)],
    "whole and greedy": [Sampling(1.0, 1.0, 0), GREEDY],
    "whole, T 0.6, top-p 0.9": [Sampling(0.6, 0.9, 0)],
    "whole, T 1, top-p 0.9": [Sampling(1.0, 0.9, 0)],  # thousands of tokens, in these logits
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=151_936, help="size of the vocabulary")
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 32, 128])
    parser.add_argument("--rounds", type=int, default=5, help="turns; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{args.words} words in bf16, on {device}; ms{' of processor time' * (device == 'cpu')}")
    for rows in args.rows:
        made = torch.Generator().manual_seed(rows)
        logits = (3 * torch.randn(rows, args.words, generator=made)).bfloat16().to(device)
        stream = keys(*torch.arange(2 * rows, device=device).view(2, -1))
        took: dict[str, list[float]] = {name: [] for name in KINDS}
        for turn in range(args.rounds + 1):  # the first warms up
            for name, kinds in KINDS.items():
                hows = [kinds[i % len(kinds)] for i in range(rows)]
                settings = RowSampling.of(hows, torch.device(device))
                began = _now(device)
                draw(logits, settings, stream, banned=3)
                if turn:
                    took[name].append(1e3 * (_now(device) - began))
        base = took["top-k 50"]
        for name, times in took.items():
            ratio = statistics.median(a / b for a, b in zip(times, base, strict=True))
            print(f"{rows:4} rows  {name:24} {statistics.median(times):9.2f} {ratio:6.2f} x")


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
