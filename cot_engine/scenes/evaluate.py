"""Measure a model on the frozen scenes benchmarks: greedy decoding, plain transformers.

    python -m cot_engine.scenes.evaluate MODEL_DIR --n 2000
    python -m cot_engine.scenes.evaluate MODEL_DIR --n 2000 --blank    # what the text alone tells
    python -m cot_engine.scenes.evaluate MODEL_DIR --split ood

Intervals are 95 % Wilson intervals. The majority rate of a type is the share of its most frequent
answer among the questions asked: what always saying that would earn.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from cot_engine.errors import InputError
from cot_engine.files.outputs import check_outputs
from cot_engine.scenes import TYPES, VERSION, SceneProblem, grade, grade_caption, parse, sample
from cot_engine.scenes.world import SIDE
from cot_engine.statistics import wilson


@torch.inference_mode()
def respond(
    model,
    processor,
    problems: list[SceneProblem],
    batch: int = 100,
    max_new_tokens: int = 256,
    blank: bool = False,
) -> list[str]:
    """Greedy responses, in the order of the problems; with and without pictures may be mixed.

    With `blank` every picture is an empty one.
    """
    empty = Image.new("RGB", (SIDE, SIDE), (220, 220, 220))
    replies = [""] * len(problems)
    # Alike prompts together: a batch is either all pictures or none.
    order = sorted(
        range(len(problems)), key=lambda i: (problems[i].text_only, len(problems[i].prompt))
    )
    for text_only in (False, True):
        rows = [i for i in order if problems[i].text_only is text_only]
        for k in range(0, len(rows), batch):
            some = rows[k : k + batch]
            texts = [
                processor.apply_chat_template(
                    [
                        {
                            "role": "user",
                            "content": [
                                *([] if text_only else [{"type": "image"}]),
                                {"type": "text", "text": problems[i].prompt},
                            ],
                        }
                    ]
                )
                for i in some
            ]
            images = None if text_only else [empty if blank else problems[i].image for i in some]
            inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
            inputs = inputs.to(model.device)
            out = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
            out = out[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(
                some, processor.batch_decode(out, skip_special_tokens=True), strict=True
            ):
                replies[i] = text
    return replies


def measure(problems: list[SceneProblem], replies: list[str]) -> dict:
    """Shares with intervals: answers (all, by type), valid stages, captions, objects in them."""

    def share(right: int, total: int) -> dict:
        low, high = wilson(right, total)
        return {
            "right": right,
            "total": total,
            "share": right / max(1, total),
            "low": low,
            "high": high,
        }

    parsed = [parse(r, p.staged) for p, r in zip(problems, replies, strict=True)]
    correct = [grade(r, p.answer) for p, r in zip(problems, replies, strict=True)]
    seen = [
        grade_caption((s or {}).get("CAPTION", ""), p.objects)
        for p, s in zip(problems, parsed, strict=True)
        if not p.text_only
    ]
    types: dict[str, dict] = {}
    result = {
        "n": len(problems),
        "valid_stages": share(sum(s is not None for s in parsed), len(parsed)),
        "objects": share(sum(a for a, _ in seen), sum(b for _, b in seen)),
        "captions": share(sum(a == b for a, b in seen), len(seen)),
        "answers": share(sum(correct), len(correct)),
        "types": types,
    }
    for kind in TYPES:
        rows = [i for i, p in enumerate(problems) if p.type == kind]
        if rows:
            most = Counter(problems[i].answer for i in rows).most_common(1)[0][1]
            types[kind] = share(sum(correct[i] for i in rows), len(rows)) | {
                "majority": most / len(rows)
            }
    return result


def table(result: dict) -> str:
    """The result as plain text."""
    lines = [f"{'':14}{'share':>7}  {'95 % interval':15}{'right/total':>12}{'majority':>10}"]

    def line(name: str, row: dict) -> None:
        majority = f"{row['majority']:10.3f}" if "majority" in row else ""
        lines.append(
            f"{name:14}{row['share']:7.3f}  [{row['low']:.3f}, {row['high']:.3f}] "
            f"{row['right']:>6}/{row['total']:<5}{majority}"
        )

    for name in ("valid_stages", "objects", "captions", "answers"):
        if result[name]["total"]:  # text-only problems have no captions
            line(name.replace("_", " "), result[name])
    for kind, row in result["types"].items():
        line("  " + kind, row)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--n", type=int, default=1000, help="questions (default 1000)")
    parser.add_argument("--split", choices=("test", "val", "ood"), default="test")
    parser.add_argument("--detail", choices=("brief", "normal", "full"), default="normal")
    parser.add_argument("--text-only", action="store_true", help="describe the objects instead")
    parser.add_argument("--blank", action="store_true", help="show an empty picture instead")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--wrong", type=Path, help="write the wrongly answered problems here")
    args = parser.parse_args()
    try:
        check_outputs([("--wrong", args.wrong)], [("the model", args.model)])
    except InputError as error:
        parser.exit(2, f"{error}\n")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if args.threads:
        torch.set_num_threads(args.threads)
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32).eval()
    more = {"detail": args.detail, "text_only": args.text_only}
    problems = [sample(0, i, args.split, **more) for i in range(args.n)]
    start = time.perf_counter()
    replies = respond(model, processor, problems, args.batch, blank=args.blank)
    seconds = time.perf_counter() - start
    result = measure(problems, replies)
    if args.wrong:
        rows = [
            {
                "id": p.id,
                "type": p.type,
                "prompt": p.prompt,
                "answer": p.answer,
                "response": r,
                "truth": p.response,
            }
            for p, r in zip(problems, replies, strict=True)
            if not grade(r, p.answer)
        ]
        args.wrong.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(table(result))
    asked = f"{VERSION}/{args.split}, {args.n} questions" + (", blank" if args.blank else "")
    print(f"{asked}, {seconds:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
