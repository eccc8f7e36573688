"""Serve a page on which a click into an image shows what a model attends to.

Models are those with trained weights in the repository, and small ones with random
weights; --model and --checkpoint add another. The page is served to this machine alone
and needs no network. Requires gradio: pip install 'mmsparse[demo]'.
"""

import argparse
import os
import socket
from contextlib import suppress
from importlib.util import find_spec
from threading import Event

from _cli import check_files, run

from demo.models import list_choices, load

import mmsparse
from mmsparse.errors import UsageError

LOCAL = ('127.0.0.1', 'localhost', '::1')


def main() -> None:
    args = parse_args()
    check(args)
    choices = list_choices(args.model, args.checkpoint)
    try:
        load(next(iter(choices.values())))
    except ValueError as error:
        raise UsageError(f'--model: {error}') from error
    serve(choices, args.host, args.port)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--model', metavar='NAME', help='model to show first, for example dat-tiny'
    )
    parser.add_argument(
        '--checkpoint', metavar='FILE', help='file with weights of --model'
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to serve at; 0.0.0.0 lets other machines in, without a password '
        '(default: 127.0.0.1)',
    )
    parser.add_argument('--port', type=int, default=7860, help='(default: 7860)')
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Check all options before anything is built."""
    if find_spec('gradio') is None:
        raise UsageError("the demo needs gradio: pip install 'mmsparse[demo]'")
    if args.checkpoint and not args.model:
        names = ', '.join(mmsparse.list_models())
        raise UsageError(f'--checkpoint needs --model, one of {names}')
    check_files(*filter(None, [args.checkpoint]))
    family = socket.AF_INET6 if ':' in args.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((args.host, args.port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise UsageError(
                f'cannot serve at --host {args.host} --port {args.port}: {reason}; '
                'choose another by --host or --port'
            ) from error


def serve(choices: dict, host: str, port: int) -> None:
    """Serve the page until the command is interrupted."""
    # A proxy cannot reach this machine's own address, which gradio checks.
    os.environ['NO_PROXY'] = ','.join(
        filter(None, [os.environ.get('NO_PROXY'), host, *LOCAL])
    )
    from demo.page import STYLE, THEME, build_page

    page = build_page(choices)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        theme=THEME,
        css=STYLE,
        footer_links=[],
        share=False,
        quiet=True,
        ssr_mode=False,
        enable_monitoring=False,
        prevent_thread_lock=True,
    )
    if host not in LOCAL:
        print('every machine that reaches this address can use the page')
    print(f'{address} (Ctrl+C ends the demo)', flush=True)
    with suppress(KeyboardInterrupt):
        Event().wait()
    page.close(verbose=False)


if __name__ == '__main__':
    run(main, OSError)
