"""The sandbox's tokenizer: words of a closed vocabulary, numbers as digits, decoding that is exact.

A token that begins a word carries a marker in place of the space before it, so `is 43.` is `▁is ▁4 3 .` and
decodes without a space within 43. Words outside the vocabulary become `<unk>`.
"""

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<unk>", "<end>", "<system>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<{{ message.role }}>{{ message.content | trim }}<end>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_PIECE = r"▁?\d|▁?[A-Za-z]+|▁?[^\sA-Za-z\d▁]+"


def vocabulary(texts: Iterable[str]) -> list[str]:
    """All tokens that the texts need, the special ones first. Every digit is there in both forms."""
    pieces = {form + digit for digit in "0123456789" for form in ("", "▁")}
    for text in texts:
        pieces.update(re.findall(_PIECE, "▁" + text.replace(" ", "▁")))
    return [*SPECIAL_TOKENS, *sorted(pieces)]


def build_tokenizer(tokens: Iterable[str], max_length: int) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer with a chat template over the given vocabulary."""
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(_PIECE), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
