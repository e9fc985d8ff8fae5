"""What stands before a model: tokenizer, chat template, image processor, as its files say.

It does not know the model's weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from mrrag.errors import OTHERWISE, ModelError
from mrrag.hub import one_line
from mrrag.model.families import family_of
from mrrag.model.prompt import HUATUO, IMAGE, MISTRAL_INSTRUCT, Template
from mrrag.model.weights import stored_config

# Kinds in the layout of LLaVA's own code → the template that their own code writes, whatever
# the text model's tokenizer brings along.
PUBLISHED_TEMPLATES = {"llava_mistral": MISTRAL_INSTRUCT, "llava_qwen2": HUATUO}


def load_tokenizer(folder: Path, config: Any) -> Any:
    """Load the tokenizer, from tokenizer.json or from SentencePiece's tokenizer.model.

    Raises
    ------
    ModelError
        Where there is none, or it does not fit the model.
    """
    try:
        # The config is passed because transformers does not know the published kind.
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        raise ModelError(
            f"{folder.name} has no tokenizer that can be read ({one_line(error)}). It needs "
            "tokenizer.json or tokenizer.model: download the checkpoint again."
        ) from error
    if max(tokenizer.get_vocab().values()) >= config.text_config.vocab_size:
        raise ModelError(
            f"{folder.name}'s tokenizer knows {len(tokenizer)} tokens and its model "
            f"{config.text_config.vocab_size}. They do not belong together. Download it again."
        )
    # Every control token is then one of all_special_tokens, which nobody can type.
    control = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    unnamed = [token for token in control if str(token) not in tokenizer.all_special_tokens]
    if unnamed:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": unnamed}, replace_extra_special_tokens=False
        )
    return tokenizer


def load_template(folder: Path, tokenizer: Any, config: Any) -> Template:
    """Return the text that the checkpoint's chat template puts around an image and a question.

    In a published layout it is what the model's own code writes (:data:`PUBLISHED_TEMPLATES`),
    and without a template ``mistral_instruct``.

    Raises
    ------
    ModelError
        Where there is one that cannot be followed.
    """
    family, kind = family_of(config), stored_config(folder).get("model_type")
    if kind in PUBLISHED_TEMPLATES:
        return PUBLISHED_TEMPLATES[kind]
    stored = tokenizer.chat_template or _processor_template(folder)
    if isinstance(stored, dict):  # several, by name
        stored = stored.get("default")
    if not stored:
        return MISTRAL_INSTRUCT
    text = "\u2016"  # in no template, and never cut or escaped by one
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    rendered = ""
    # A text model's own template takes the whole turn as one string.
    for content in (parts, f"{IMAGE}\n{text}"):
        try:
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=stored,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError, ValueError):
            continue
        for placeholder in (tokenizer.decode([config.image_token_id]), IMAGE):
            opening, image, after = rendered.partition(placeholder)
            after_image, found, cue = after.partition(text)
            if image and found:
                opening = opening.removeprefix(tokenizer.bos_token or "") + family.before_image
                around = _around_picture(tokenizer, stored, placeholder, text)
                picture = (around[0] + family.before_image, family.after_image + around[1])
                return Template(opening, family.after_image + after_image, cue, picture)
    raise ModelError(
        f"The chat template of {folder.name} does not put a user's text after {IMAGE}; it gives "
        f"{rendered[:200]!r}. Choose another checkpoint. {OTHERWISE}"
    )


def _around_picture(tokenizer: Any, stored: str, placeholder: str, text: str) -> tuple[str, str]:
    """Return what a chat template puts before and after an image that follows a text."""
    parts = [{"type": "text", "text": text}, {"type": "image"}, {"type": "text", "text": text}]
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], chat_template=stored, tokenize=False
        )
    except (TemplateError, TypeError, ValueError):
        return MISTRAL_INSTRUCT.picture
    before, image, after = rendered.partition(text)[2].partition(placeholder)
    return (before, after.partition(text)[0]) if image else MISTRAL_INSTRUCT.picture


def _processor_template(folder: Path) -> str | None:
    """Return the template from where transformers 4 kept a processor's."""
    file = folder / "chat_template.json"
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["chat_template"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder.name}/{file.name} cannot be read. Download the checkpoint again."
        ) from error


def load_image_processor(folder: Path, config: Any) -> Any:
    """Load the checkpoint's image processor, with the family's settings.

    Where the checkpoint stores none, it is the one of the family's first model.
    """
    family = family_of(config)
    settings = family.settings(config)
    if any((folder / f).is_file() for f in ("preprocessor_config.json", "processor_config.json")):
        return family.processor.from_pretrained(folder, local_files_only=True, **settings)
    return family.processor(**settings)
