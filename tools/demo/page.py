"""The page: an image to click, a model to choose, and the drawing."""

import os
from collections.abc import Mapping
from typing import Any

os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # is read while gradio is imported

import gradio as gr

from demo.images import examples, read_image
from demo.models import Choice
from demo.session import Session
from mmsparse.errors import UsageError

TITLE = 'What a query attends to'
INTRODUCTION = (
    f'# {TITLE}\nUpload an image, choose a model of mmsparse, and click the image: the '
    'drawing shows what the query at this point attends to.'
)
FONTS = ('system-ui', 'sans-serif')  # installed ones: nothing is downloaded
KEPT = (600, 3600)  # every 10 minutes uploads older than an hour are deleted
# In a narrow window the drawing is scrolled: its panels would be too small.
STYLE = """
#result :has(> img) { overflow-x: auto; justify-content: flex-start }
#result img { min-width: 600px }
"""
THEME = gr.themes.Default(font=FONTS, font_mono=('ui-monospace', 'monospace'))


def build_page(choices: Mapping[str, Choice]) -> gr.Blocks:
    """Build the page.

    Args:
        choices: Models by title; the first is chosen.

    Returns:
        The page, to be launched.
    """
    shown = [image for _, image in examples()]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=KEPT) as page:
        state = gr.State()
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                model = gr.Dropdown(list(choices), label='Model', elem_id='model')
                upload = gr.File(
                    label='Upload an image',
                    file_types=['image'],
                    height=130,
                    elem_id='upload',
                )
                example = gr.Dataset(
                    label='Examples',
                    components=[gr.Image(render=False)],
                    samples=[[x] for x in shown],
                    type='index',
                )
            with gr.Column(scale=3, min_width=280):
                image = _image('image', label='Click a query', height=360)
        drawing = gr.Radio(label='Drawing', elem_id='drawing')
        notice = gr.Markdown(elem_id='notice')
        result = _image('result', show_label=False)
        legend = gr.Markdown(elem_id='legend')

    def start() -> tuple:
        return respond(Session(choices, shown[0]))

    def open_file(session: Session, path: str) -> tuple:
        try:
            session.open(read_image(path))
        except UsageError as error:
            gr.Warning(str(error), duration=None)
        return respond(session)

    def open_example(session: Session, index: int) -> tuple:
        session.open(shown[index])
        return respond(session)

    def choose(session: Session, title: str) -> tuple:
        session.choose(title)
        return respond(session)

    def draw(session: Session, title: str) -> tuple:
        session.drawing = title
        return respond(session)

    def click(session: Session, event: gr.SelectData) -> tuple:
        session.click(*event.index)
        return respond(session)

    def respond(session: Session) -> tuple:
        return (
            session,
            session.marked_image(),
            gr.update(choices=session.drawings, value=session.drawing),
            session.draw(),
            session.legend,
            session.notice,
            None,  # the next file may have the same name
        )

    outputs = [state, image, drawing, result, legend, notice, upload]
    with page:
        for event, function, inputs in (
            (page.load, start, []),
            (upload.upload, open_file, [state, upload]),
            (example.click, open_example, [state, example]),
            (model.input, choose, [state, model]),
            (drawing.input, draw, [state, drawing]),
            (image.select, click, [state]),
        ):
            event(
                function,
                inputs,
                outputs,
                concurrency_id='model',  # one at a time
                api_visibility='private',
                show_progress_on=result,
            )
    return page


def _image(name: str, **options: Any) -> gr.Image:
    return gr.Image(
        interactive=False, buttons=[], format='png', elem_id=name, **options
    )
