"""The live page, in Gradio. Every text reaches it as plain text: no component here takes markup from a text.

Models are not safe to call from two threads (hooks, adapters), so all events wait in one queue.
"""

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from nla.app.session import Explanation, Session, Words
from nla.errors import NLAError
from nla.models.pair import NLA
from nla.models.target import Target

SHADES = {  # relative error: 0 is perfect, 1 is no better than the mean of the text's activations
    "error below 0.25": "#1a7f4b",
    "below 0.5": "#7a9a2e",
    "below 0.75": "#c98a1b",
    "below 1": "#cc5f2d",
    "no better than the mean": "#b3263a",
    "malformed": "#6b6b76",
}
BOUNDS = (0.25, 0.5, 0.75, 1.0)
HOW_TO = """# What does the model have in mind?

Type a text and read it, then choose a token: its activation is explained in words, and the words are turned back into
an activation. **Look at the error first**: a wrong explanation reads as fluently as a right one. 0 is perfect, 1 is no
better than the mean of the text's activations."""
EDIT = """## Change the explanation

Edit the words and see what that does to the model. *From the original text* and *from the edited text*: the activation
is replaced by the text's reconstruction. *Steered by the edit*: only the difference of the two is added to it."""
STYLE = """
.gradio-container { max-width: 1100px !important; margin: auto; }
#tokens .token { cursor: pointer; }
footer { display: none !important; }
"""


def theme() -> Any:
    """Calm, and with the fonts of the machine: Gradio's own would be asked from a server."""
    return gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def page(nla: NLA, target: Target, max_new_tokens: int = 150) -> gr.Blocks:
    """The page for one pair; every visitor has a text of their own."""
    with gr.Blocks(title="nla", analytics_enabled=False) as blocks:
        session, explanations, seed = gr.State(None), gr.State([]), gr.State(0)
        gr.Markdown(HOW_TO)
        text = gr.Textbox(label="Text", lines=3, max_length=20_000, elem_id="text", placeholder="A sentence or two")
        read = gr.Button("Read", variant="primary", elem_id="read")
        tokens = gr.HighlightedText(
            label=f"Tokens · {visible(nla.base_model)}, layer {nla.layer}", elem_id="tokens", color_map=SHADES,
            show_legend=True, show_inline_category=False, combine_adjacent=False, show_whitespaces=True,
            interactive=False, buttons=[],
        )  # fmt: skip
        token = gr.Dropdown(label="Chosen token", choices=[], interactive=True, elem_id="token")
        with gr.Row():
            with gr.Column(scale=2):
                chosen = gr.Radio(label="Explanations", choices=[], elem_id="explanations")
                figures = gr.Textbox(label="Error", interactive=False, elem_id="figures", lines=1, max_lines=6)
                parts = gr.Dataframe(
                    headers=["sentence", "error rises without it by"], datatype=["str", "number"], interactive=False,
                    wrap=True, label="What each sentence adds", elem_id="sentences", buttons=[],
                )  # fmt: skip
                again = gr.Button("Sample again", elem_id="again")
                with gr.Accordion("Settings", open=False):
                    samples = gr.Slider(1, 8, value=1, step=1, label="Samples at once")
                    temperature = gr.Slider(0.1, 1.5, value=1.0, step=0.1, label="Temperature")
                    strength = gr.Slider(0.0, 4.0, value=1.0, step=0.25, label="Strength of an edit")
            own = gr.Label(label="What the model itself expects next", elem_id="own", show_heading=False, buttons=[])
        gr.Markdown(EDIT)
        edited = gr.Textbox(label="Explanation", lines=3, max_length=5000, elem_id="edited", interactive=True)
        change = gr.Button("What does this change?", elem_id="change")
        distance = gr.Textbox(label="Nearness to the activation", interactive=False, elem_id="distance", lines=2)
        with gr.Row():
            before = gr.Label(label="Next, from the original text", elem_id="before", show_heading=False, buttons=[])
            after = gr.Label(label="Next, from the edited text", elem_id="after", show_heading=False, buttons=[])
            steered = gr.Label(label="Next, steered by the edit", elem_id="steered", show_heading=False, buttons=[])
        with gr.Row():
            plainly = gr.Textbox(label="Continuation", interactive=False, lines=2, elem_id="continuation")
            steered_text = gr.Textbox(
                label="Continuation, steered by the edit", interactive=False, lines=2, elem_id="steered-on"
            )

        changes = [distance, before, after, steered, plainly, steered_text]
        details = [figures, parts, edited, *changes]
        panel = [explanations, tokens, chosen, own, *details]

        def begin(text: str) -> list[Any]:
            new = Session(nla, target, text, max_new_tokens)
            names = [(f"{place}: {visible(name)}", index) for index, (place, name) in enumerate(_numbered(new))]
            nothing = [[[] for _ in new.tokens], _shaded(new, []), gr.Radio(choices=[], value=None), None]
            return [new, gr.Dropdown(choices=names, value=None), *nothing, *_details(None, None)]

        one: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        here = [session, explanations, token]
        for start in (read.click, text.submit):
            start(_told(begin), text, [session, token, *panel], **one)
        tokens.select(_clicked, None, token, **one)
        token.change(_told(_explain), here, panel, **one)
        again.click(_told(_sample), [*here, seed, samples, temperature], [explanations, seed, chosen, *details], **one)
        chosen.input(_told(_choose), [*here, chosen], details, **one)
        change.click(_told(_edit), [*here, chosen, edited, strength], changes, **one)
    return blocks


def _explain(session: Session | None, found: list[list[Explanation]], index: int | None) -> Any:
    """The greedy explanation of a token, made when the token is first chosen."""
    if session is None or index is None:
        return gr.skip()
    if not found[index]:
        found[index] = session.explain(index)
    shown = found[index][0]
    radio = gr.Radio(choices=_choices(found[index]), value=0)
    words = _bars(session.next_words(index))
    return [found, _shaded(session, found), radio, words, *_details(shown, session.remark(index))]


def _sample(
    session: Session | None, found: list[list[Explanation]], index: int | None, seed: int, count: int,
    heat: float,
) -> list[Any]:  # fmt: skip
    """Further explanations of the token, and the newest one shown."""
    if session is None or index is None:
        raise gr.Error("Choose a token first.")
    found[index] = found[index] + session.explain(index, int(count), float(heat), seed)
    last = len(found[index]) - 1
    radio = gr.Radio(choices=_choices(found[index]), value=last)
    return [found, seed + 1, radio, *_details(found[index][last], session.remark(index))]


def _choose(session: Session | None, found: list[list[Explanation]], index: int | None, which: int | None) -> Any:
    """Another one of the explanations, shown."""
    if session is None or index is None or which is None:
        return gr.skip()
    return _details(found[index][which], session.remark(index))


def _edit(
    session: Session | None, found: list[list[Explanation]], index: int | None, which: int | None, edited: str,
    strength: float,
) -> list[Any]:  # fmt: skip
    """What an edited explanation changes in the model."""
    if session is None or index is None or which is None:
        raise gr.Error("Choose a token first.")
    original = found[index][which].text
    if original is None:
        raise gr.Error("This explanation is malformed: sample another one to edit.")
    result = session.edit(index, original, edited, strength)
    told = "\n".join(f"{name}: {_nearness(said)}" for name, said in
                     (("original", result.before), ("edited", result.after)))  # fmt: skip
    words = [_bars(each) for each in (result.before_words, result.after_words, result.steered_words)]
    return [told, *words, result.own_continuation, result.steered_continuation]


def _clicked(event: gr.SelectData) -> int:
    """The index of the token that was clicked."""
    return event.index


def serve(blocks: gr.Blocks, port: int | None = None, *, share: bool = False, wait: bool = True) -> str:
    """Serve the page to this machine alone, or with `share` also at a public address; its local address.

    Without `wait` it returns at once; `blocks.close()` ends it. Raises OSError for a port that is taken.
    """
    _, address, _ = blocks.launch(
        server_name="127.0.0.1", server_port=port, share=share, prevent_thread_lock=not wait, theme=theme(), css=STYLE,
        footer_links=[], ssr_mode=False, mcp_server=False, enable_monitoring=False,
    )  # fmt: skip
    return address


def visible(text: str) -> str:
    """Nothing in it changes the writing direction or hides; a line break is shown as a sign."""
    return "".join(sign if sign.isprintable() else "·" for sign in text.replace("\n", "⏎"))


def _told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A person's mistake becomes a note on the page; as text, since Gradio's notes take markup."""

    @functools.wraps(handler)
    def run(*given: Any) -> Any:
        try:
            return handler(*given)
        except NLAError as error:
            raise gr.Error(html.escape(" ".join(str(error).split())), print_exception=False) from error

    return run


def _numbered(session: Session) -> list[tuple[int, str]]:
    return list(zip(session.position, session.tokens, strict=True))


def _shaded(session: Session, found: list[list[Explanation]]) -> list[tuple[str, str | None]]:
    """Tokens with the shade of their first explanation's error; None where none was asked for."""
    shades = [_shade(row[0]) if row else None for row in found] or [None] * len(session.tokens)
    return [(visible(token), shade) for token, shade in zip(session.tokens, shades, strict=True)]


def _shade(said: Explanation) -> str:
    if said.text is None:
        return "malformed"
    return list(SHADES)[sum(said.relative_error >= bound for bound in BOUNDS)]


def _choices(found: list[Explanation]) -> list[tuple[str, int]]:
    texts = ["(malformed)" if said.text is None else visible(" ".join(said.text.split())) for said in found]
    return [(f"{text} (error {said.relative_error:.2f})", k) for k, (text, said) in enumerate(zip(texts, found))]


def _details(said: Explanation | None, remark: str | None) -> list[Any]:
    """The panel of an explanation; what an earlier edit changed is cleared."""
    cleared = ["", None, None, None, "", ""]
    if said is None:
        return ["", [], "", *cleared]
    told = _nearness(said) + (f"\n{visible(remark)}" if remark else "")
    rows = [[visible(text), round(rise, 3)] for text, rise in said.sentences]
    return [told, rows, said.text or "", *cleared]


def _nearness(said: Explanation) -> str:
    return f"relative error {said.relative_error:.2f}, cosine {said.cosine:.3f}"


def _bars(words: Words) -> dict[str, float] | None:
    shown: dict[str, float] = {}
    for word, probability in words:
        shown[visible(word)] = shown.get(visible(word), 0.0) + probability
    return shown or None
