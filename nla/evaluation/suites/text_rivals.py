"""Rivals that are made of words: an explanation without an activation, and an explanation without its order.

`prompt_only`: the target itself, asked in its chat template, describes the text; this pair's reconstructor reads it.
`bag_of_explanation`: a linear map from the words of this verbalizer's explanations, in place of the reconstructor.
"""

from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table

from nla.core.fve import normalized_activations
from nla.core.records import well_formed
from nla.data.teachers.local import LocalTeacher
from nla.data.teachers.protocol import Passage, Reply
from nla.errors import DataError, TeacherError
from nla.evaluation.activations import EvaluatedRows
from nla.evaluation.bootstrap import Resamples, Variance
from nla.evaluation.cells import cells
from nla.evaluation.explanations import ORTHOGONAL, Texts, explain, score
from nla.evaluation.ranks import shared
from nla.evaluation.subject import Subject
from nla.evaluation.suites.controls import missing, training_rows
from nla.evaluation.suites.rivals import bag_of, ridge, squared_error
from nla.models.explanations import CLOSE, OPEN
from nla.models.prompts import token_ids

ASKED_AT_ONCE = 16
CONTEXT_CHARACTERS = 400  # of an example's text, counted from its end
WORDING = (
    "A language model has read the text below, from its beginning to its last character; it has not seen what follows. "
    "Say what it knows and expects at that point, in the very form of these examples, each of which is about another "
    "text:\n\n{examples}\n\nAnswer with nothing but your description."
)


def text_rivals(
    subject: Subject, *, documents: int = 256, asked: int = 64, examples: int = 3, vocabulary: int = 2000
) -> dict[str, Any]:
    """FVE of `prompt_only` on `asked` rows, and of `bag_of_explanation` on all.

    Both learn the form of the explanations from those that this verbalizer writes of the activations of `documents`
    training documents, the first as `examples` in its prompt.
    """
    try:
        training = training_rows(subject.target, subject.data, documents)
    except DataError as error:
        nothing = missing(f"no training activations: {error}")
        return {"prompt_only": nothing, "bag_of_explanation": nothing}
    settings = subject.settings
    texts = explain(
        subject.nla, training.activation, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size
    )
    return {
        "prompt_only": prompt_only(subject, training, texts, asked, examples),
        "bag_of_explanation": bag_of_explanation(subject, training, texts, vocabulary),
    }


def prompt_only(subject: Subject, training: EvaluatedRows, texts: Texts, asked: int, examples: int) -> dict[str, Any]:
    """`{fve, ci95, n, well_formed, pair}`: what the target writes of the text, and this pair on the same rows.

    The whole reply is read, or what stands between explanation tags; an empty one counts as orthogonal.
    """
    target, rows, most = subject.target, subject.rows, subject.settings.max_new_tokens
    shown = _examples(training, texts, examples)
    if not shown:
        return missing("the verbalizer has explained no training activation in the right form: no example to give")
    teacher = LocalTeacher(
        subject.nla.base_model, max_tokens=most, temperature=0.0, max_unusable=1.0,
        question=WORDING.replace("{examples}", "\n\n".join(shown)),
    )  # fmt: skip
    try:
        teacher.borrow(target.model, target.tokenizer)
    except TeacherError as error:
        return missing(str(error))
    chosen = [k * len(rows) // min(asked, len(rows)) for k in range(min(asked, len(rows)))]
    passages = [Passage(rows.document_id[row], rows.text[row]) for row in chosen]
    longest = max(len(teacher.prompt_ids(passage)) for passage in passages) + most
    limit = getattr(target.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        return missing(f"the question, the text and the answer take {longest} tokens, and the target reads {limit}")
    batches = [passages[first : first + ASKED_AT_ONCE] for first in range(0, len(passages), ASKED_AT_ONCE)]
    replies = [reply for batch in shared(batches, teacher.replies) for reply in batch]
    said = [spoken(reply) for reply in replies]
    place = torch.tensor(chosen)
    resamples = Resamples([rows.document[row] for row in chosen], subject.settings.bootstrap, subject.seed)
    variance = Variance(rows.activation[place], resamples)
    error = score(subject.reconstruct(said), rows.activation[place], said).error
    return {
        **variance.fve(error),
        "n": len(chosen),
        "well_formed": float(well_formed(said).double().mean()),
        "pair": variance.fve(subject.greedy.scores.error[place]),
    }


def bag_of_explanation(subject: Subject, training: EvaluatedRows, texts: Texts, vocabulary: int) -> dict[str, Any]:
    """`{fve, ci95, activations}` of a ridge from counts of the explanation's tokens to the activation.

    Fitted on this verbalizer's explanations of training activations. What the reconstructor explains beyond it is not
    in the words alone. Malformed explanations count as orthogonal, as for the pair.
    """
    formed = [index for index, text in enumerate(texts.explanation) if text is not None]
    if len(formed) < 2:
        return missing("fewer than two training activations were explained in the right form")
    tokenizer = subject.target.tokenizer

    def tokens(written: Sequence[str | None]) -> list[list[int]]:
        return token_ids(tokenizer, [text or "" for text in written], special=False)

    learnt = tokens([texts.explanation[index] for index in formed])
    bag = bag_of(learnt, vocabulary)
    seen = normalized_activations(training.activation[torch.tensor(formed)])
    written = subject.greedy.texts.explanation
    prediction = ridge(bag(learnt), seen, [training.document[index] for index in formed], bag(tokens(written)))
    error = squared_error(prediction, normalized_activations(subject.rows.activation))
    error = torch.where(well_formed(written), error, ORTHOGONAL)
    return {**subject.variance.fve(error), "activations": len(formed)}


def spoken(reply: Reply) -> str | None:
    """What a reply says: between explanation tags, or all of it; None if that is nothing."""
    inside = reply.text.partition(OPEN)[2].partition(CLOSE)[0].strip()
    return inside or reply.text.replace(OPEN, "").replace(CLOSE, "").strip() or None


def _examples(training: EvaluatedRows, texts: Texts, count: int) -> list[str]:
    """Ends of training texts with the verbalizer's explanation, each of another document."""
    found: dict[str, str] = {}
    for document, text, explanation in zip(training.document, training.text, texts.explanation, strict=True):
        if explanation is not None and len(found) < count:
            found.setdefault(document, f"Text: …{text[-CONTEXT_CHARACTERS:]}\nDescription: {explanation}")
    return list(found.values())


def table(result: dict[str, Any]) -> Table:
    found = Table(title="Rivals made of words", title_justify="left")
    found.add_column("in place of the explanation, or of its reader")
    for column in ("FVE", "95% interval", "this pair", "95% interval"):
        found.add_column(column, justify="right")
    asked, bag = result["prompt_only"], result["bag_of_explanation"]
    pair = asked.get("pair") or {"fve": None, "ci95": None}
    label = "the target on the text alone" + (f", {asked['n']} rows" if "n" in asked else "")
    found.add_row(label, *cells(asked["fve"], asked["ci95"]), *cells(pair["fve"], pair["ci95"]))
    found.add_row("ridge on the bag of the explanation's tokens", *cells(bag["fve"], bag["ci95"]), "", "")
    return found
