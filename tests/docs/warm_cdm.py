"""A process that has imported torch already and runs ``cdm`` for those who ask, each in a fork of its own.

The commands of a page then cost what they do and not, each time, the seconds of the import. The shim that asks hands
over its standard streams, folder, environment and arguments, and leaves with the status it is told.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def serve(address: str) -> None:
    """Answer until the parent ends this process. The socket appears when it is ready."""
    import torch

    import cascaded_diffusion

    for name in cascaded_diffusion.__all__:
        getattr(cascaded_diffusion, name)
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children need not be waited for
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(client)
            client.close()


def answer(client: socket.socket) -> None:
    """Run one command in this process and end it."""
    head, streams, _, _ = socket.recv_fds(client, 8, 3)
    body = client.makefile("rb").read(int.from_bytes(head, "little"))
    arguments, folder, environment = json.loads(body)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    from cascaded_diffusion.cli.app import main

    status: object = 1
    try:
        main(arguments)
    except SystemExit as end:
        status = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        client.sendall(str(status).encode())
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
