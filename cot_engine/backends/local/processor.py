"""What comes beside the weights of a checkpoint: tokenizer, image processor, template, ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cot_engine.backends.local.libraries import explained, quietly
from cot_engine.backends.models.family import Adapter
from cot_engine.errors import ModelError, cut, shown
from cot_engine.files.reading import read_json

_WORDS = (
    "Take tokenizer.json, tokenizer_config.json, the chat template and the processor's files from "
    "the original checkpoint."
)
_IMAGES = ("preprocessor_config.json", "processor_config.json")
_ORDINARY = "The answer is a red square"


def load_processor(folder: Path, kind: type[Adapter], parsed: Any) -> Any:
    """Tokenizer and image processor; `chat_template` is what transformers' processor would use."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder}: its tokenizer has no tokenizer.json.",
            "Take it from the original checkpoint, or convert the tokenizer: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers.",
        )
    if not any((folder / name).is_file() for name in _IMAGES):
        raise ModelError(
            f"{folder} does not say how pictures are prepared: it has neither {_IMAGES[0]} nor "
            f"{_IMAGES[1]}.",
            "Take them from the original checkpoint; training often leaves them out.",
        )
    with quietly(), explained(folder, "its processor or tokenizer cannot be loaded", _WORDS):
        from transformers import ProcessorMixin

        processor = kind.load_processor(folder, parsed)
        if not all(hasattr(processor, part) for part in ("tokenizer", "image_processor")):
            made = f"{_IMAGES[1]} makes a {type(processor).__name__} of it, which is no processor"
            raise ModelError(f"{folder}: {made} of pictures and text.", _WORDS)
        # The processor's own wins, wherever it stands; transformers asks the tokenizer last.
        own = ProcessorMixin.get_processor_dict(folder)[0].get("chat_template")
        processor.chat_template = own or processor.tokenizer.chat_template
    if not getattr(processor.tokenizer, "is_fast", False):
        raise ModelError(f"{folder}: its tokenizer does not use its tokenizer.json.", _WORDS)
    return processor


def check_words(folder: Path, tokenizer: Any) -> None:
    """Refuse a tokenizer that loses words: the model would answer another question."""
    with explained(folder, "its tokenizer cannot spell ordinary words", _WORDS):
        ids = tokenizer.backend_tokenizer.encode(_ORDINARY, add_special_tokens=False).ids
        written = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    lost = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
    if lost or "".join(written.split()).lower() != "".join(_ORDINARY.split()).lower():
        raise ModelError(
            f"{folder}: its tokenizer cannot spell ordinary words: of {_ORDINARY!r} it makes "
            f"{shown(written)}.",
            _WORDS,
        )


def template_of(found: Any, folder: Path) -> str | None:
    if isinstance(found, dict):
        if "default" not in found:
            raise ModelError(
                f"{folder} has {len(found)} chat templates and none called 'default': "
                f"{cut(', '.join(map(str, found)))}.",
                "Write the one to use to chat_template.jinja in that folder.",
            )
        found = found["default"]
    if found and not isinstance(found, str):
        raise ModelError(f"{folder}: its chat template is {shown(found)}, not a text.", _WORDS)
    return found or None


def end_tokens(
    folder: Path, config: dict[str, Any], tokenizer: Any, ends: tuple[str, ...] = ()
) -> set[int]:
    """The end tokens that the folder's files name, and none that a library assumes; besides them
    `ends`, as the family's models write them, where the tokenizer has them."""
    inner = config.get("text_config")
    found: set[int] = set()
    for values in (_generation(folder), config, inner if isinstance(inner, dict) else {}):
        value = values.get("eos_token_id")
        found.update(i for i in (value if isinstance(value, list) else [value]) if type(i) is int)
    known = tokenizer.get_vocab() if ends else {}
    return (
        found | {known[end] for end in ends if end in known} | ({tokenizer.eos_token_id} - {None})
    )


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    found = read_json(path, "generation config", ModelError) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def ungranted(folder: Path) -> list[str]:
    """What of the folder's wishes is not granted."""
    penalty = _generation(folder).get("repetition_penalty")
    if penalty in (None, 1):
        return []
    return [f"generation_config.json's repetition_penalty of {shown(penalty)} is not applied."]
