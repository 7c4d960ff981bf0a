"""A local instruct model as a teacher: no service, no price, the same question and form of answer."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nla.data.teachers.cached import CachedTeacher
from nla.data.teachers.prompt import SYSTEM
from nla.data.teachers.protocol import Passage, Reply
from nla.errors import TeacherError
from nla.models.backbone import load_model, load_tokenizer
from nla.models.prompts import pad_id


class LocalTeacher(CachedTeacher):
    """Answers in batches, through the model's chat template.

    Args:
        dtype, revision: of the weights.
        batch_size: passages at a time.
        device: where it runs; None: the process's first GPU, else the CPU.
    """

    every_rank = True

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "bfloat16",
        revision: str | None = None,
        batch_size: int = 16,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.dtype, self.revision, self.batch_size, self.device = dtype, revision, batch_size, device
        self._loaded: tuple[Any, Any] | None = None

    def borrow(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Ask this loaded model instead of loading one. Raises TeacherError if it has no chat template."""
        self._loaded = model, self._with_template(tokenizer)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "revision": self.revision, "dtype": self.dtype}

    def answers(self, passages: dict[str, Passage]) -> Iterator[tuple[str, Reply]]:
        items = sorted(passages.items(), key=lambda item: len(item[1].text))
        for first in range(0, len(items), self.batch_size):
            batch = items[first : first + self.batch_size]
            for (key, _), reply in zip(batch, self.replies([passage for _, passage in batch]), strict=True):
                entry = self.ledger.enter(key, reply.input_tokens + reply.output_tokens, 0.0)
                self.ledger.settle(entry, key, reply, 0.0)
                yield key, reply

    @torch.no_grad()
    def replies(self, passages: list[Passage]) -> list[Reply]:
        """One reply to each passage, all at once: neither judged nor kept."""
        model, tokenizer = self._load()
        prompts = [self.prompt_ids(passage) for passage in passages]
        longest = max(map(len, prompts))
        pad = pad_id(tokenizer)
        device = next(model.parameters()).device
        tokens = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
        sampling = (
            {"do_sample": False} if self.temperature == 0 else {"do_sample": True, "temperature": self.temperature}
        )
        output = model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=self.max_tokens, pad_token_id=pad, **sampling
        )
        ends = model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends]) - {None} or {tokenizer.eos_token_id}
        replies = []
        for row, prompt in zip(output[:, longest:].tolist(), prompts, strict=True):
            length = next((index for index, token in enumerate(row) if token in ends), None)
            text = str(tokenizer.decode(row[:length], skip_special_tokens=True))
            replies.append(Reply(text, "cut" if length is None else "end", len(prompt), len(row[:length])))
        return replies

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            tokenizer = self._with_template(load_tokenizer(self.model, self.revision))
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._loaded = load_model(self.model, self.dtype, self.revision).to(device).eval(), tokenizer  # pyright: ignore
        return self._loaded

    def _with_template(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        if not tokenizer.chat_template:
            raise TeacherError(f"teacher.model={self.model}: has no chat template; give an instruct model")
        return tokenizer

    def prompt_ids(self, passage: Passage) -> list[int]:
        """The question about a passage in the model's chat template."""
        tokenizer, prompt = self._load()[1], self.prompt(passage)
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        try:
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        except Exception:  # a template without a system role
            joined = [{"role": "user", "content": f"{SYSTEM}\n\n{prompt}"}]
            ids = tokenizer.apply_chat_template(joined, add_generation_prompt=True, tokenize=True, return_dict=False)
        return [int(token) for token in ids]
