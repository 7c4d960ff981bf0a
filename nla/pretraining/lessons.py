"""What a target reads while it is pretrained: texts, descriptions of texts, and texts that follow a description.

The verbalizer and the reconstructor start as copies of the target, so it must be able to write a description of a
text it was shown, through the chat template, and to continue from a description as from the text itself. It never meets
an activation: that is learned in the warm start.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from nla.data.source import Document, Source
from nla.models.explanations import format_response
from nla.pretraining.tokenizer import END


@dataclass(frozen=True, slots=True)
class Lessons:
    """Draws training texts from a source; the draw is keyed by seed and number, so that any order gives the same.

    Args:
        source: documents of the split `pretrain`, and `explanation` for the descriptions.
        verbalizer_template, reconstructor_template: the prompts of the NLA, with a text in the marker's place.
        shares: probability of a plain text, of a description, of a text after its description.
    """

    source: Source
    tokenizer: PreTrainedTokenizerBase
    verbalizer_template: str
    reconstructor_template: str
    shares: tuple[float, float, float] = (0.4, 0.3, 0.3)
    seed: int = 0

    def text(self, document: Document, number: int) -> str:
        """The `number`-th lesson, made of `document`."""
        rng = random.Random(f"{self.seed}/{number}/{document.id}")
        kind = rng.choices(("read", "describe", "write"), self.shares)[0]
        ends = [match.end() for match in re.finditer(r"\w+\b", document.text)]
        ends = ends[len(ends) // 6 :]
        if kind == "read" or not ends:
            return document.text + END
        end = rng.choice(ends)
        explanation = self.source.explanation(document, end, rng.randrange(2**31))
        if explanation is None:
            return document.text + END
        if kind == "write":
            opening = self.reconstructor_template.replace("{explanation}", explanation)
            return opening + document.text[end:] + END
        prompt = self.verbalizer_template.replace("{injection_char}", document.text[:end])
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": format_response(explanation)}]
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False)
        if not isinstance(rendered, str):
            raise TypeError("the chat template must render one conversation to one string")
        return rendered

    def tokens(self, documents: Sequence[Document], first: int) -> list[list[int]]:
        """Token ids of the lessons `first`, `first + 1`, ... made of `documents`."""
        texts = [self.text(document, first + index) for index, document in enumerate(documents)]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]
