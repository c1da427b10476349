"""A task of Inspect AI: the questions of a file, scored by inspect itself."""

import json

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
from inspect_ai.scorer import accuracy, ci, match
from inspect_ai.solver import generate


@task
def scenes(data: str = "items.jsonl"):
    with open(data, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    samples = []
    for row in rows:
        first, *rest = [ContentImage(image=path) for path in row["images"]] or [None]
        parts = [first, ContentText(text=row["question"]), *rest]
        message = ChatMessageUser(content=[part for part in parts if part is not None])
        samples.append(Sample(id=row["id"], input=[message], target=row["answer"]))
    scorer = match(location="exact")
    return Task(dataset=samples, solver=generate(), scorer=scorer, metrics=[accuracy(), ci()])
