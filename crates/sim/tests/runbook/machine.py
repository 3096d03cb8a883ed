#!/usr/bin/env python3
"""The first process of a machine in the runbook's world: a service manager and a journal, as small as the runbook needs.

A machine is a set of namespaces (processes, network, mounts, host name). This program is its process 1: it starts the
machine's unit (chainfire, flaredb or placement-driver) from its unit file, keeps what it prints with the moment it printed
it, starts it again where the unit says so, and takes orders over a socket. When it dies, the kernel ends everything in
the machine.

    machine.py init FOLDER          process 1; FOLDER holds `unit-name`, `unit`, `socket` and `journal`
    systemctl, journalctl           the same program under these names, asking process 1 or reading the journal

Of a unit file it knows Type (notify or exec), ExecStart, ExecReload as SIGHUP, User, Restart, RestartSec, TimeoutStartSec,
TimeoutStopSec and Environment; the rest (sandboxing, the watchdog, limits of restarts) is systemd's own business.
"""

import json
import os
import pwd
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

UNIT = ""


def unit_of(folder):
    """Which program the machine runs."""
    with open(os.path.join(folder, "unit-name"), encoding="utf-8") as file:
        return file.read().strip()


def seconds(text, otherwise):
    """`15`, `15s`, `1min 30s`, `100ms`."""
    if not text:
        return otherwise
    units = {"ms": 0.001, "s": 1, "": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)\s*([a-z]*)", text))


def read_unit(path):
    settings = {}
    with open(path, encoding="utf-8") as file:
        text = file.read().replace("\\\n", " ")
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith(("#", ";")):
            settings.setdefault(name.strip(), []).append(value.strip())
    return settings


class Unit:
    """One service, all of it under one lock. States are systemd's."""

    def __init__(self, folder):
        self.folder = folder
        self.changed = threading.Condition()
        self.state = "inactive"
        self.why = "dead"
        self.process = None
        self.wanted = False
        self.since = time.time()
        self.restarts = 0
        self.journal = open(os.path.join(folder, "journal"), "a", buffering=1, encoding="utf-8")

    def write(self, source, message):
        self.journal.write(f"{time.time():.6f}\t{source}\t{message}\n")

    def enter(self, state, why):
        self.state, self.why, self.since = state, why, time.time()
        self.changed.notify_all()

    def settings(self):
        return read_unit(os.path.join(self.folder, "unit"))

    def setting(self, name, otherwise=""):
        return self.settings().get(name, [otherwise])[-1]

    def environment(self):
        environment = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        for line in self.settings().get("Environment", []):
            environment.update(part.split("=", 1) for part in shlex.split(line))
        return environment

    def begin(self):
        """Spawns the program; the lock is held."""
        arguments = shlex.split(self.setting("ExecStart"))
        environment = self.environment()
        notify = None
        if self.setting("Type") == "notify":
            path = os.path.join(self.folder, "notify")
            if os.path.exists(path):
                os.unlink(path)
            notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            notify.bind(path)
            os.chmod(path, 0o666)
            environment["NOTIFY_SOCKET"] = path
        try:
            self.process = subprocess.Popen(
                arguments, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                cwd="/", start_new_session=True, **self.user())
        except OSError as error:
            self.write("systemd", f"Failed to start {UNIT}.service: {error}")
            self.enter("failed", "exec")
            return
        self.enter("activating" if notify else "active", "start" if notify else "running")
        self.write("systemd", f"Starting {UNIT}.service..." if notify else f"Started {UNIT}.service.")
        threading.Thread(target=self.keep_output, args=(self.process,), daemon=True).start()
        threading.Thread(target=self.follow, args=(self.process,), daemon=True).start()
        if notify:
            threading.Thread(target=self.hear, args=(self.process, notify), daemon=True).start()

    def user(self):
        name = self.setting("User")
        if not name:
            return {}
        found = pwd.getpwnam(name)
        return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}

    def keep_output(self, process):
        for line in process.stdout:
            self.write(f"{UNIT}[{process.pid}]", line.decode("utf-8", "replace").rstrip("\n"))

    def hear(self, process, notify):
        notify.settimeout(0.2)
        while process.returncode is None:
            try:
                said = notify.recv(4096).decode("utf-8", "replace").splitlines()
            except socket.timeout:
                continue
            with self.changed:
                for line in said:
                    if line.startswith("STATUS="):
                        self.status = line[len("STATUS="):]
                    if line == "READY=1" and self.process is process and self.state == "activating":
                        self.enter("active", "running")
                        self.write("systemd", f"Started {UNIT}.service.")
        notify.close()

    def follow(self, process):
        code = process.wait()
        with self.changed:
            if self.process is not process:
                return
            self.process = None
            clean = code == 0 or (not self.wanted and code == -signal.SIGTERM)
            result = f"code={'killed' if code < 0 else 'exited'}, status={abs(code)}"
            if not clean:
                self.write("systemd", f"{UNIT}.service: Main process exited, {result}")
            again = self.wanted and (self.setting("Restart") == "always"
                                     or self.setting("Restart") == "on-failure" and not clean)
            if not again:
                self.wanted = False
                self.enter("inactive" if clean else "failed", "dead" if clean else result)
                return
            self.enter("activating", "auto-restart")
            self.restarts += 1
            self.changed.wait_for(lambda: not self.wanted, seconds(self.setting("RestartSec"), 0.1))
            if self.wanted and self.process is None:
                self.begin()
            elif self.process is None:
                self.enter("inactive", "dead")

    def start(self):
        with self.changed:
            if self.process is None:
                self.wanted = True
                self.begin()
            # A start that failed is over, even if another one is on its way.
            settled = self.changed.wait_for(
                lambda: self.state in ("active", "failed", "inactive") or self.why == "auto-restart",
                seconds(self.setting("TimeoutStartSec"), 90))
            if not settled or self.state != "active":
                return 1, f"Job for {UNIT}.service failed. See \"systemctl status {UNIT}.service\" and \"journalctl -xeu {UNIT}.service\" for details.\n"
            return 0, ""

    def stop(self):
        with self.changed:
            self.wanted = False
            self.changed.notify_all()
            process = self.process
            if process is None:
                if self.state != "failed":
                    self.enter("inactive", "dead")
                return 0, ""
            self.enter("deactivating", "stop-sigterm")
            process.send_signal(signal.SIGTERM)
            ended = self.changed.wait_for(lambda: self.process is not process,
                                          seconds(self.setting("TimeoutStopSec"), 90))
            if not ended:
                self.write("systemd", f"{UNIT}.service: State 'stop-sigterm' timed out. Killing.")
                process.kill()
                self.changed.wait_for(lambda: self.process is not process, 10)
            self.enter("inactive", "dead")
            return 0, ""

    def signal(self, number):
        with self.changed:
            if self.process is None:
                return 1, f"Failed to kill unit {UNIT}.service: no process runs\n"
            self.process.send_signal(number)
            return 0, ""

    def kill_for_good(self):
        """As a machine that loses its power: nothing is told, nothing starts again."""
        with self.changed:
            self.wanted = False
            process = self.process
            if process is not None:
                process.kill()
                self.changed.wait_for(lambda: self.process is not process, 30)
            self.enter("inactive", "dead")
        return 0, ""

    def is_active(self):
        return (0 if self.state == "active" else 3), self.state + "\n"

    def show(self):
        with self.changed:
            pid = self.process.pid if self.process else 0
            dot = {"active": "●", "failed": "×"}.get(self.state, "○")
            lines = [
                f"{dot} {UNIT}.service - {self.setting('Description', UNIT)}",
                f"     Loaded: loaded (/etc/systemd/system/{UNIT}.service; enabled)",
                f"     Active: {self.state} ({self.why}) since {time.strftime('%a %Y-%m-%d %H:%M:%S %Z', time.localtime(self.since))}",
            ]
            if pid:
                lines.append(f"   Main PID: {pid} ({UNIT})")
            if getattr(self, "status", ""):
                lines.append(f"     Status: \"{self.status}\"")
        lines.append("")
        lines.extend(journal_lines(self.folder, 10))
        return (0 if self.state == "active" else 3), "\n".join(lines) + "\n"

    def order(self, verb, rest):
        if verb == "restart":
            self.stop()
            return self.start()
        if verb == "kill":
            return self.signal(int(rest[0]))
        orders = {"start": self.start, "stop": self.stop, "status": self.show, "is-active": self.is_active,
                  "reload": lambda: self.signal(signal.SIGHUP), "power-off": self.kill_for_good}
        return orders[verb]()


def init(folder):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    unit = Unit(folder)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(os.path.join(folder, "socket.new"))
    server.listen(64)
    os.rename(os.path.join(folder, "socket.new"), os.path.join(folder, "socket"))
    threading.Thread(target=reap, args=(unit,), daemon=True).start()
    while True:
        connection, _ = server.accept()
        threading.Thread(target=answer, args=(unit, connection), daemon=True).start()


def reap(unit):
    """Takes in processes whose parents have gone; the unit's own are waited for by their threads."""
    while True:
        time.sleep(0.5)
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
                if state == "Z" and parent == "1" and not (unit.process and unit.process.pid == int(name)):
                    os.waitpid(int(name), os.WNOHANG)
            except (OSError, ValueError):
                continue


def answer(unit, connection):
    with connection:
        asked = json.loads(connection.makefile("r").readline())
        try:
            code, text = unit.order(asked[0], asked[1:])
        except Exception as error:  # whoever asked is to hear of it
            code, text = 1, f"{type(error).__name__}: {error}\n"
        connection.sendall((json.dumps([code, text]) + "\n").encode())


def ask(folder, *words):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(os.path.join(folder, "socket"))
    connection.sendall((json.dumps(words) + "\n").encode())
    return json.loads(connection.makefile("r").readline())


def systemctl(folder, arguments):
    signals = {"SIGKILL": 9, "SIGSTOP": 19, "SIGCONT": 18, "SIGHUP": 1, "SIGTERM": 15}
    rest, verb, units = [], None, []
    words = iter(arguments)
    for word in words:
        if word in ("-s", "--signal"):
            rest.append(str(signals[next(words)]))
        elif word.startswith("-"):
            continue
        elif verb is None:
            verb = word
        else:
            units.append(word.removesuffix(".service"))
    if units != [UNIT]:
        sys.stderr.write(f"Unit {' '.join(units) or '(none)'}.service could not be found.\n")
        return 4
    code, text = ask(folder, verb, *rest)
    (sys.stderr if verb == "start" and code else sys.stdout).write(text)
    return code


def journal_lines(folder, last=None, since=0.0):
    host = socket.gethostname()
    shown = []
    with open(os.path.join(folder, "journal"), encoding="utf-8", errors="replace") as file:
        for line in file:
            moment, source, message = line.rstrip("\n").split("\t", 2)
            if float(moment) >= since:
                stamp = time.strftime("%b %d %H:%M:%S", time.localtime(float(moment)))
                source = source if "[" in source else f"{source}[1]"
                shown.append(f"{stamp} {host} {source}: {message}")
    return shown if last is None else shown[-last:]


def journalctl(folder, arguments):
    last, since, unit = None, 0.0, None
    words = iter(arguments)
    for word in words:
        if word == "-u":
            unit = next(words)
        elif word == "-n":
            last = int(next(words))
        elif word == "--since":
            since = moment(next(words))
        elif word != "--no-pager":
            sys.stderr.write(f"journalctl: {word} is not known here\n")
            return 1
    if unit not in (UNIT, f"{UNIT}.service"):
        print("-- No entries --")
        return 0
    for line in journal_lines(folder, last, since):
        print(line)
    return 0


def moment(text):
    """`1 hour ago`, or seconds since the epoch as `@…`."""
    if text.startswith("@"):
        return float(text[1:])
    number, unit, _ = text.split()
    each = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[unit.rstrip("s")]
    return time.time() - float(number) * each


def main():
    global UNIT
    name = os.path.basename(sys.argv[0])
    folder = sys.argv[2] if name == "machine.py" else os.environ["MACHINE"]
    UNIT = unit_of(folder)
    if name == "machine.py":
        return init(folder)
    return {"systemctl": systemctl, "journalctl": journalctl}[name](folder, sys.argv[1:])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:
        os._exit(0)
