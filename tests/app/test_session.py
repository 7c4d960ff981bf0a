"""A text looked at live, by hand, on a tiny pair that remembers."""

import math

import pytest
import torch
from support.evaluation import remembering

from nla.app import Session
from nla.core.objectives import normalize
from nla.errors import DataError
from nla.models.pair import NLA
from nla.models.target import Target
from nla.report import read_tokens

TEXT = "Anna walks to the harbour"


@pytest.fixture
def session(nla: NLA, target: Target) -> Session:
    remembering(nla, target.read([TEXT], "all").activation)
    return Session(nla, target, TEXT)


def test_it_reads_what_the_report_reads(session: Session) -> None:
    (record,) = read_tokens(session.nla, session.target, [TEXT]).texts
    assert session.tokens == [token.token for token in record.results]
    for index, token in enumerate(record.results):
        (said,) = session.explain(index)
        assert said.text == token.description == f"row {index}."
        assert said.cosine == pytest.approx(token.cosine_similarity, abs=1e-5)
        assert said.relative_error == pytest.approx(token.relative_error, abs=1e-4)
        assert [rise for _, rise in said.sentences] == pytest.approx([token.sentences[0].contribution], abs=1e-4)
        assert dict(session.next_words(index)) == pytest.approx(dict(token.next_words), abs=1e-4)
        assert session.remark(index) == token.remark


def test_an_explanation_is_scored_by_hand(session: Session) -> None:
    activation = session.activation
    scaled = normalize(activation.double(), math.sqrt(activation.shape[1]))
    of_mean = float((scaled[1] - scaled.mean(0)).square().mean())
    expected = float((scaled[2] - scaled[1]).square().mean())
    wrong, malformed = session.score(1, ["row 2.", None])
    assert wrong.relative_error == pytest.approx(expected / of_mean, rel=1e-4)
    assert wrong.cosine == pytest.approx(float(torch.cosine_similarity(activation[2], activation[1], dim=0)), abs=1e-5)
    nothing = normalize(activation.mean(0).double(), math.sqrt(activation.shape[1]))  # what the empty text is read as
    rise = float((nothing - scaled[1]).square().mean()) - expected
    assert [text for text, _ in wrong.sentences] == ["row 2."]
    assert wrong.sentences[0][1] == pytest.approx(rise / of_mean, rel=1e-3)
    assert malformed.cosine == 0 and malformed.sentences == []
    assert malformed.relative_error == pytest.approx(2 / of_mean, rel=1e-4)


def test_what_each_of_two_sentences_adds(session: Session) -> None:
    """Both together are token 3's activation, the first alone token 2's, the second alone this token's own."""
    meant = {"One. Two.": 3, "One.": 2, "Two.": 1}
    plain = [session.score(1, [f"row {row}."])[0].relative_error for row in range(4)]
    session.nla.reconstruct = (  # type: ignore[method-assign,assignment]
        lambda texts: torch.stack([session.activation[meant[text]] for text in texts])
    )
    (said,) = session.score(1, ["One. Two."])
    assert said.relative_error == pytest.approx(plain[3], abs=1e-4)
    assert [text for text, _ in said.sentences] == ["One.", "Two."]
    # without the first the second is left, and the other way round
    rises = [rise for _, rise in said.sentences]
    assert rises == pytest.approx([plain[1] - plain[3], plain[2] - plain[3]], abs=1e-4)
    assert plain[1] == pytest.approx(0, abs=1e-4)


def test_samples_have_seeds(nla: NLA, target: Target) -> None:
    session = Session(nla, target, TEXT, max_new_tokens=4)
    given: list[tuple[object, ...]] = []

    def explain(activation: torch.Tensor, **options: object) -> list[list[str | None]]:
        given.append((activation.tolist(), options))
        return [["a", None, "b"]]

    nla.explain = explain  # type: ignore[method-assign,assignment]
    texts = [said.text for said in session.explain(2, samples=3, temperature=0.7, seed=5)]
    assert texts == ["a", None, "b"]
    options = {"samples": 3, "temperature": 0.7, "seed": 5, "max_new_tokens": 4}
    assert given == [(session.activation[2:3].tolist(), options)]


def test_an_edit_by_hand(session: Session) -> None:
    """The original is perfect, so its reconstruction changes nothing; the edited one is another token's activation."""
    target, activation, index = session.target, session.activation, 2
    edit = session.edit(index, "row 2.", "row 4.", strength=1.0, tokens=5)
    assert edit.before.cosine == pytest.approx(1, abs=1e-5)
    assert edit.after.cosine == pytest.approx(
        float(torch.cosine_similarity(activation[4], activation[2], dim=0)), abs=1e-5
    )
    assert dict(edit.own_words) == pytest.approx(dict(session.next_words(index)), abs=1e-5)
    assert dict(edit.before_words) == pytest.approx(dict(edit.own_words), abs=1e-4)
    # h + |h| (unit(AR(edited)) - unit(h)) = |h| unit(AR(edited)), since the original is perfect
    assert dict(edit.steered_words) == pytest.approx(dict(edit.after_words), abs=1e-4)
    ids = torch.tensor([target.tokenizer(TEXT)["input_ids"]])[:, : session.position[index] + 1]
    logits = target.splice(ids, torch.tensor([session.position[index]]), activation[4:5])[0, -1]
    for word, probability in edit.after_words:
        listed = logits.topk(18).indices.tolist()  # three times as many tokens as words are listed
        spellings = [i for i in listed if word in (target.tokenizer.decode([i]).strip(), target.tokenizer.decode([i]))]
        assert float(logits.softmax(-1)[spellings].sum()) == pytest.approx(probability, abs=1e-4)
    written = target.model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
    assert edit.own_continuation == target.tokenizer.decode(written, skip_special_tokens=True)
    follows = int(logits.argmax())
    assert edit.steered_continuation.startswith(target.tokenizer.decode([follows], skip_special_tokens=True))


def test_no_strength_changes_nothing(session: Session) -> None:
    edit = session.edit(2, "row 2.", "row 4.", strength=0.0, tokens=5)
    assert dict(edit.steered_words) == pytest.approx(dict(edit.own_words), abs=1e-5)
    assert edit.steered_continuation == edit.own_continuation


def test_mistakes(session: Session, nla: NLA, target: Target) -> None:
    for text, message in ((" \n", "the text is empty"), ("town " * 600, "the live page reads 512: use nla report")):
        with pytest.raises(DataError, match=message):
            Session(nla, target, text)
    for edited in ("", "  ", "x" * 5001, "a </explanation> b", f"a {nla.verbalizer.prompt.marker} b"):
        with pytest.raises(DataError, match="the edited explanation is empty, too long"):
            session.edit(0, "row 0.", edited)
