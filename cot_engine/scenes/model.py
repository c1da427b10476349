"""The bundled model's shape: tokenizer, processor and an untrained `LlavaForConditionalGeneration`.

Everything is stock transformers; the sizes are small enough for training from scratch on a CPU.
"""

from __future__ import annotations

import re
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cot_engine.scenes import sample
from cot_engine.scenes.world import SIDE

PATCH = 16  # pixels a side: 16 image tokens, one to a cell
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")  # ids 0 to 3

# A tag, a coordinate, a word, a number below 100, or any other single character; a space goes with
# the word it precedes. Coordinates and such numbers are therefore always one token.
_PIECES = r"</?[A-Z]+>| ?[A-D][1-4](?![0-9A-Za-z])| ?[A-Za-z]+| ?[0-9]{1,2}(?![0-9])| ?[0-9]|[\s\S]"

# Words of judging prompts and everyday questions: the world has no use for them, but without them
# such prompts would be spelled out byte by byte.
_EXTRA = (
    "which candidate response answer question better first second tie image picture is are was of "
    "the to a an and or in on for with two these this that both given below above correct right "
    "wrong true false reply only number stage text describes problem solution final think step by "
    "compare judge choose please look carefully more accurate following it you your one Compare"
).split()

CHAT_TEMPLATE = (
    "<s>{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)


def _vocabulary() -> dict[str, int]:
    """Token -> id: specials, all 256 bytes, and whole words with and without a space before."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = set()
    for index in range(3000):
        for detail in ("normal", "brief", "full"):
            for text_only in (False, True):
                p = sample(0, index, detail=detail, text_only=text_only)
                words.update(re.findall(_PIECES, p.prompt + "\n"))
                words.update(re.findall(_PIECES, p.response))
    bare = {w.strip() for w in words if w.strip().isalnum()} | set(_EXTRA)
    bare |= {w.capitalize() for w in _EXTRA} | {str(n) for n in range(100)}
    words = {w for w in words if w.startswith("<")} | bare | {" " + w for w in bare}
    spelled = sorted(w.replace(" ", "Ġ") for w in words)
    tokens = [*SPECIAL, *alphabet, *(w for w in spelled if w not in alphabet)]
    return {token: i for i, token in enumerate(tokens)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words where known, bytes otherwise, so any text comes back as it was."""
    core = Tokenizer(models.BPE(vocab=_vocabulary(), merges=[], ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """The image side resizes to 64x64 with PIL alone; the text side ends a user turn with a line
    feed and an assistant turn with `</s>`."""
    square = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(
        size=square,
        do_center_crop=False,
        crop_size=square,
        do_convert_rgb=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(vocabulary: int) -> LlavaForConditionalGeneration:
    """An untrained model of 7 million parameters, in fp32."""
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=192,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    tokens: dict[str, Any]
    tokens = {"image_token_id": 3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=True,
        **tokens,
    )
    model = LlavaForConditionalGeneration(config)
    generation = model.generation_config
    generation.pad_token_id, generation.bos_token_id, generation.eos_token_id = 0, 1, 2
    generation.do_sample = False
    generation.max_new_tokens = 256
    return model
