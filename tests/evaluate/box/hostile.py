"""Programs that attack the box. None defines a right ``f``; an attack that works would pass.

``{outside}`` is a file that exists, ``{port}`` a TCP and UDP port and ``{socket}`` a Unix socket on
which the test listens, ``{parent}`` the process of the test.
"""

from __future__ import annotations

TESTS = "assert f(1) == 2\nassert f(5) == 6"
NAMES = ("f",)
RIGHT = "def f(x):\n    return x + 1\n"
# They take up their second, as the endless loop does.
SLOW = {"sleeps", "ignores_sigterm", "deep_recursion", "deep_structure", "returns_too_much"}

HOSTILE = {
    "fork_bomb": "import os\nwhile True:\n    os.fork()",
    "thread_bomb": """
import threading, time
while True:
    threading.Thread(target=time.sleep, args=(60,)).start()
""",
    "memory": "held = []\nwhile True:\n    held.append(bytearray(1 << 24))",
    "endless_loop": "while True:\n    pass",
    "sleeps": "import time\ntime.sleep(600)",
    "ignores_sigterm": """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
    "daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(1)
""",
    "new_session": "import os\nos.setsid()\nos.setpgid(0, 0)",
    "writes_outside": "open('{outside}', 'w').write('changed')",
    "truncates_outside": "import os\nos.truncate('{outside}', 0)",
    "removes_outside": "import os\nos.remove('{outside}')",
    "changes_mode_outside": "import os\nos.chmod('{outside}', 0)",
    "reads_outside": "print(open('{outside}').read())",
    "reads_environment": "import os\nprint(os.environ['BOX_SECRET'])",
    "reads_parents_environment": """
import os
held = open('/proc/{parent}/environ').read() + open(f'/proc/{{os.getppid()}}/environ').read()
""",
    "reads_home": "import os\nprint(os.listdir('{home}'))",
    "reads_memory_of_processes": """
import os
for process in ('self', os.getppid(), {parent}):
    open(f'/proc/{{process}}/mem', 'r+b')
""",
    "tcp": "import socket\nsocket.create_connection(('127.0.0.1', {port})).send(b'x')",
    "udp": """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))
""",
    "unix_socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('{socket}')",
    "listens": "import socket\nsocket.create_server(('127.0.0.1', 0))",
    "ptrace": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for process in ({parent}, os.getppid()):
    if libc.ptrace(16, process, 0, 0) == 0:
        raise SystemExit
raise OSError(ctypes.get_errno())
""",
    "mounts_and_keys": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
done = [libc.unshare(0x10000000), libc.mount(b'none', b'/', None, 1 << 18, None),
        libc.syscall(250, 0, -3, 1), libc.syscall(321, 0, None, 0), libc.syscall(425, 8, None)]
assert done == [-1] * 5
raise OSError
""",
    "executes": "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo ok'])",
    "kills_parent": "import os\nos.kill(os.getppid(), 9)\nos.kill({parent}, 9)",
    "kills_group": "import os\nos.killpg(0, 9)\nos.kill(-1, 9)",
    "signals_by_file_owner": """
import fcntl, os
for process in (os.getppid(), {parent}):
    read, write = os.pipe()
    fcntl.fcntl(read, fcntl.F_SETOWN, process)
    fcntl.fcntl(read, 10, 9)
    fcntl.fcntl(read, fcntl.F_SETFL, os.O_ASYNC)
    os.write(write, b'x')
""",
    "raises_its_limits": """
import resource
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
""",
    "a_gigabyte_of_output": """
import os
for _ in range(1024):
    os.write(1, b'x' * (1 << 20))
""",
    "fills_the_disk": """
number = 0
while True:
    number += 1
    with open(f'file{{number}}', 'wb', 0) as file:
        for _ in range(4):
            file.write(b'x' * (1 << 20))
""",
    "many_files": """
number = 0
while True:
    number += 1
    open(f'file{{number}}', 'w').close()
""",
    "nested_folders": """
import os
while True:
    os.mkdir('a')
    os.chdir('a')
""",
    "links_outside": "import os\nos.symlink('{outside}', 'link')\nos.link('{outside}', 'hard')",
    "deep_recursion": """
import sys
sys.setrecursionlimit(10**9)
def r():
    return r()
r()
""",
    "deep_structure": """
import sys
sys.setrecursionlimit(10**9)
nested = []
for _ in range(10**6):
    nested = [nested]
repr(nested)
""",
    "changes_the_tests": """
import builtins, sys, types
def nothing(*arguments, **keywords):
    return None
for name in ('compile', 'exec', 'eval', 'open', '__import__', '__build_class__'):
    setattr(builtins, name, nothing)
builtins.AssertionError = builtins.isinstance = nothing
main = sys.modules['__main__']
for module in list(sys.modules.values()):
    for name in dir(module):
        if callable(getattr(module, name, None)) and name in ('judge', 'receive', 'exec', 'send'):
            setattr(module, name, nothing)
check = f = nothing
""",
    "leaves": "import os\nprint('ok')\nos._exit(0)",
    "leaves_politely": "import sys\nprint('ok passed')\nsys.exit(0)",
    "leaves_when_called": "import os\ndef f(x):\n    os._exit(0)",
    "patches_equality": """
class Same(int):
    def __eq__(self, other):
        return True
    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = int.__hash__
def f(x):
    return Same(0)
""",
    "equal_to_everything": """
class Same:
    def __eq__(self, other):
        return True
    def __reduce__(self):
        import os
        return os._exit, (0,)
def f(x):
    return Same()
""",
    "forges_the_verdict": """
import json, os
for message in ({{"ready": True}}, {{"word": ""}}, {{"word": "0" * 32}}):
    body = json.dumps(message).encode()
    for file in range(64):
        try:
            os.write(file, len(body).to_bytes(4, 'big') + body)
        except OSError:
            pass
def f(x):
    return 0
""",
    "reads_the_word_from_frames_and_pipes": """
import gc, os, re, select, sys
def look():
    found, frame = set(), sys._getframe()
    while frame:
        found |= set(re.findall('[0-9a-f]{{32}}', repr(frame.f_locals)))
        frame = frame.f_back
    for held in gc.get_objects():
        if isinstance(held, (dict, list, tuple)):
            found |= set(re.findall('[0-9a-f]{{32}}', repr(held)[:10000]))
    for file in range(64):
        try:
            if select.select([file], [], [], 0)[0]:
                found |= set(re.findall('[0-9a-f]{{32}}', os.read(file, 1 << 16).decode()))
        except (OSError, ValueError):
            pass
    return found
def f(x):
    words = look()
    for word in words:
        for file in range(64):
            try:
                body = b'{{"word": "' + word.encode() + b'"}}'
                os.write(file, len(body).to_bytes(4, 'big') + body)
            except OSError:
                pass
    os._exit(0)
""",
    "hooks": """
import atexit, gc, os, signal, sys
def hook(*arguments):
    os.write(1, b'ok')
    os._exit(0)
atexit.register(hook)
sys.settrace(lambda *arguments: hook())
sys.setprofile(hook)
sys.addaudithook(hook)
sys.excepthook = sys.unraisablehook = hook
gc.callbacks.append(hook)
signal.signal(signal.SIGALRM, hook)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
""",
    "floods_the_judge": """
import os
flood = (4 << 20).to_bytes(4, 'big') + b'[' * (4 << 20)
for file in range(3, 64):
    try:
        os.write(file, flood)
    except OSError:
        pass
def f(x):
    return 0
""",
    "returns_too_much": "def f(x):\n    return 'x' * (1 << 26)",
    "returns_itself": "nested = []\nnested.append(nested)\ndef f(x):\n    return nested",
    "pretends_an_exception": """
class GeneratorExit(BaseException):
    pass
def f(x):
    raise GeneratorExit
""",
}
