#!/usr/bin/env python3
"""A stand-in for ssh and sshd on one machine: `relay.py SOCKET HOST COMMAND...` has the command run by
a server that is no relation of its own, carries standard input there and the exit code back. When it
dies, all that the command notices is the end of its input."""
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading


def run(path, command):
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendall(json.dumps(command).encode() + b"\n")

        def feed():
            while chunk := os.read(0, 4096):
                line.sendall(chunk)
            line.shutdown(socket.SHUT_WR)

        threading.Thread(target=feed, daemon=True).start()
        answer = b""
        while chunk := line.recv(64):
            answer += chunk
    os._exit(int(answer) if answer else 255)


class Relay:
    """The far side, with hosts that exist in name only. While `deaf` it does not notice that the near
    side has died. What the commands say goes to `output`."""

    def __init__(self, count):
        self.deaf = False
        self.hosts = [f"far-{i}" for i in range(count)]
        self.folder = tempfile.TemporaryDirectory(prefix="maniple-relay-")
        self.path, self.output = self.folder.name + "/socket", self.folder.name + "/output"

    def __enter__(self):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()
        self.folder.cleanup()

    def _serve(self):
        while True:
            try:
                line, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(line,), daemon=True).start()

    def _carry(self, line):
        with line, line.makefile("rb", buffering=0) as stream:
            with open(self.output, "ab") as output:
                process = subprocess.Popen(json.loads(stream.readline()), stdin=subprocess.PIPE, stdout=output,
                                           stderr=output, start_new_session=True)

            def feed():
                try:
                    while chunk := stream.read(4096):
                        process.stdin.write(chunk)
                        process.stdin.flush()
                except OSError:
                    pass
                if self.deaf:
                    process.wait()
                process.stdin.close()

            threading.Thread(target=feed, daemon=True).start()
            code = process.wait()
            try:
                line.sendall(str(code % 256).encode())
            except OSError:
                pass

    def prefix(self):
        return []

    def overrides(self):
        return ["elastic.hosts=" + ",".join(self.hosts), "elastic.address=127.0.0.1",
                f"elastic.remote={os.path.abspath(__file__)} {self.path} {{host}}"]


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[3:])
