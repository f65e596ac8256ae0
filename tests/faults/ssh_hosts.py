"""Hosts with sshd: the namespaces of network.py, reached by ssh itself with the words of the default of
elastic.remote. Keys, settings and logs are in a folder of their own; no other sshd is touched."""
import os
import pwd
import shutil
import subprocess
import tempfile
import time

import network

PATH = os.environ["PATH"] + ":/usr/sbin"
SERVER = """HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
PermitRootLogin yes
"""
CLIENT = """IdentityFile {folder}/user
IdentitiesOnly yes
StrictHostKeyChecking accept-new
UserKnownHostsFile {folder}/known
LogLevel ERROR
{hosts}"""


def missing():
    """Why there can be no such hosts here; empty when there can."""
    for program in ("sshd", "ssh", "ssh-keygen"):
        if not shutil.which(program, path=PATH):
            return f"{program} is missing"
    try:
        pwd.getpwnam("sshd")  # whom it becomes before it knows who is there
    except KeyError:
        return "the user sshd is missing"
    return network.missing()


class SshHosts(network.Network):
    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="maniple-ssh-")
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self.folder}/{key}"], check=True)
        self.servers = {}
        super().__enter__()
        hosts = "".join(f"Host {host}\nHostName {address}\n" for host, address in self.addresses.items())
        for name, text in (("server", SERVER), ("client", CLIENT)):
            with open(f"{self.folder}/{name}", "w") as file:
                file.write(text.format(folder=self.folder, hosts=hosts))
        try:
            for host in self.hosts:
                self._serve(host)
        except BaseException:
            self.__exit__(None, None, None)  # else the hosts would stay
            raise
        return self

    def __exit__(self, *words):
        for server in self.servers.values():
            server.kill()
            server.wait()
        super().__exit__(*words)
        shutil.rmtree(self.folder)

    def _serve(self, host):
        # sshd wants a folder in /run; that of the machine is left alone.
        command = (f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && "
                   f"exec {shutil.which('sshd', path=PATH)} -D -f {self.folder}/server -E {self.folder}/{host}.log")
        log = f"{self.folder}/{host}.log"
        if os.path.exists(log):  # of the time before the power went
            os.remove(log)
        self.servers[host] = subprocess.Popen(["ip", "netns", "exec", host, "sh", "-c", command])
        until = time.monotonic() + 10
        while not (os.path.exists(log) and "listening" in open(log).read()):
            if self.servers[host].poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"sshd does not start: {open(log).read() if os.path.exists(log) else ''}")
            time.sleep(0.02)

    def overrides(self):
        return ["elastic.hosts=" + ",".join(self.hosts), "elastic.address=10.77.0.1",
                f"elastic.remote=ssh -F {self.folder}/client -o BatchMode=yes -o ConnectTimeout=10 -o ControlPath=none {{host}}"]

    def power_off(self, host):
        super().power_off(host)
        self.servers[host].wait()

    def power_on(self, host):
        super().power_on(host)
        self._serve(host)
