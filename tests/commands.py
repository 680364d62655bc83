"""Commands of the package in processes of their own, which need not import it first.

`python -m kd_jax.main` takes three CPU-seconds for its imports alone. A server that has imported
the package, but has no device and no flag yet, forks a process for each command; its working
directory, environment, output and signals are its own.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
# What the commands import; not the commands, whose flags are defined once a process.
IMPORTED = (
    'kd_jax.study',
    'kd_jax.extraction',
    'kd_jax.imported',
    'kd_jax.runtime',
    'kd_jax.command',
    'absl.app',
    'optuna',
)
OUTPUTS = ('stdout', 'stderr')

cpu = 0.0  # CPU-seconds of the commands that have ended
_server = None  # (its process, the socket to it)
_turn = threading.Lock()  # of threads, to ask it


class Command:
    """`python -m MODULE ARGUMENTS`, begun; with the methods of subprocess.Popen that tests use."""

    def __init__(self, module, *arguments, cwd=REPOSITORY, env=None):
        self.args = [sys.executable, '-m', module, *map(str, arguments)]
        self.returncode = self._output = None
        self._files = [tempfile.TemporaryFile() for _ in OUTPUTS]  # noqa: SIM115
        asked = {
            'module': module,
            'arguments': self.args[3:],
            'cwd': str(cwd),
            'env': dict(env or os.environ),
        }
        (self.pid,) = _ask(asked, [file.fileno() for file in self._files])

    def poll(self):
        global cpu
        if self.returncode is None:
            status, seconds = _ask({'ended': self.pid})
            if status is not None:
                self.returncode = os.waitstatus_to_exitcode(status)
                cpu += seconds
                self._output = self.output()
                for file in self._files:
                    file.close()
        return self.returncode

    def wait(self, timeout=300):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(self.args, timeout, *self.output())
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def output(self):
        """(stdout, stderr) so far."""
        if self._output is None:
            found = (os.pread(f.fileno(), os.fstat(f.fileno()).st_size, 0) for f in self._files)
            return tuple(content.decode() for content in found)
        return self._output

    def communicate(self, timeout=300):
        self.wait(timeout)
        return self.output()


def run(module, *arguments, timeout=300, **how):
    """A command to its end."""
    command = Command(module, *arguments, **how)
    stdout, stderr = command.communicate(timeout)
    return subprocess.CompletedProcess(command.args, command.returncode, stdout, stderr)


def preload(*modules):
    """Commands need not import these either, from now on."""
    _ask({'import': modules})


def _ask(request, files=()):
    with _turn:
        return _answer(request, files)


def _answer(request, files):
    global _server
    if _server is None:
        here, there = socket.socketpair()
        process = subprocess.Popen(
            [sys.executable, __file__, str(there.fileno())],
            pass_fds=[there.fileno()],
            cwd=REPOSITORY,
            env=os.environ | {'XLA_FLAGS': ''},
        )
        there.close()
        _server = process, here
    connection, message = _server[1], json.dumps(request).encode()
    socket.send_fds(connection, [len(message).to_bytes(4, 'big')], list(files))
    connection.sendall(message)
    return json.loads(_exactly(connection, int.from_bytes(_exactly(connection, 4), 'big')))


def stop():
    """Ends the server; its CPU-seconds and those of its commands are this process's children's."""
    global cpu, _server
    if _server is not None:
        process, connection = _server
        connection.close()
        process.wait()
        cpu, _server = 0.0, None


def _exactly(connection, count):
    content = b''
    while len(content) < count:
        more = connection.recv(count - len(content))
        assert more, 'the other side is gone'
        content += more
    return content


def _serve(connection):
    while True:
        head, files, _, _ = socket.recv_fds(connection, 4, len(OUTPUTS))
        if not head:
            return
        size = int.from_bytes(head + _exactly(connection, 4 - len(head)), 'big')
        request = json.loads(_exactly(connection, size))
        if 'import' in request:
            _import(request['import'])
            answer = []
        elif 'ended' in request:
            pid, status, usage = os.wait4(request['ended'], os.WNOHANG)
            answer = [status, usage.ru_utime + usage.ru_stime] if pid else [None, 0.0]
        else:
            pid = os.fork()
            if pid == 0:
                connection.close()
                _become(request, files)
            answer = [pid]
        for file in files:
            os.close(file)
        message = json.dumps(answer).encode()
        connection.sendall(len(message).to_bytes(4, 'big') + message)


def _import(modules):
    missing = [name for name in modules if name not in sys.modules]
    if not missing:
        return
    gc.disable()
    for name in missing:
        importlib.import_module(name)
    gc.enable()
    gc.freeze()  # or every collection in a child would copy the memory of what was imported


def _become(request, files):
    """The command, in the process that was forked for it; never returns."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
    os.chdir(request['cwd'])
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(request['env'])
    import jax

    for name, value in request['env'].items():  # jax read its own when it was imported
        if name.startswith('JAX_') and before.get(name) != value:
            current = jax.config.values[name.lower()]
            parsed = (
                value.lower() in ('1', 'true')
                if isinstance(current, bool)
                else type(current or '')(value)
            )
            jax.config.update(name.lower(), parsed)
    sys.path[:1] = [request['cwd'], *filter(None, request['env'].get('PYTHONPATH', '').split(':'))]
    sys.argv = [request['module'], *request['arguments']]
    sys.modules.pop(request['module'], None)  # or runpy warns of one that was preloaded
    runpy.run_module(request['module'], run_name='__main__', alter_sys=True)
    sys.exit()  # a module that returns has succeeded


if __name__ == '__main__':
    sys.path[0] = str(REPOSITORY)
    _import(IMPORTED)
    _serve(socket.socket(fileno=int(sys.argv[1])))
