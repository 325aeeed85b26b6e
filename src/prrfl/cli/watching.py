"""``prrfl watch``: a page in the browser that follows what happens in a folder."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from prrfl.cli.screen import console
from prrfl.errors import Stopped

PORT = 8610


def watch(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="folder of a run, a comparison or a federation (the server's, or a site's)"
        ),
    ],
    port: Annotated[int, typer.Option(help="port to listen at, on this machine only; 0 chooses one")] = PORT,
) -> None:
    """Show a run, a comparison or a federation in the browser while it goes on.

    The page is served to this machine only, until Ctrl-C. Nothing in the folder is locked or changed.
    """
    from prrfl.live.following import Watched, follow
    from prrfl.live.serving import PageServer

    watched = Watched(follow(folder), folder)
    try:
        with PageServer(port, watched.to_json) as server:
            text = f"{folder}: open {server.url} in a browser; Ctrl-C ends"
            console.print(text, soft_wrap=True, highlight=False)
            server.serve_forever()
    except Stopped as stop:
        if stop.signal != signal.SIGINT:
            raise
    console.print("Stopped watching; what was watched is not affected.")
