"""One command starts several workers on one machine, and ends them all."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from keras_maml import launch


def program(tmp_path, text):
    path = tmp_path / "program.py"
    path.write_text(text)
    return str(path)


def test_every_worker_knows_its_place_and_says_its_number(tmp_path, capfd):
    path = program(tmp_path, "import os, sys; print(os.environ['TF_CONFIG']); print(sys.argv[1:])")
    assert launch.main(["--workers", "2", path, "--workers", "x"]) == 0
    lines = capfd.readouterr().out.splitlines()
    for index in range(2):
        config = next(line for line in lines if line.startswith(f"[{index}] " + "{"))
        config = json.loads(config[4:])
        assert config["task"] == {"type": "worker", "index": index}
        assert len(set(config["cluster"]["worker"])) == 2
        assert f"[{index}] ['--workers', 'x']" in lines


def test_modules_are_run(capfd):
    assert launch.main(["--workers", "1", "-m", "json.tool", "--help"]) == 0
    assert "[0] usage:" in capfd.readouterr().out


def test_what_a_program_takes_is_passed_on_as_it_is(tmp_path, capfd):
    path = program(tmp_path, "import sys; print(sys.argv[1:])")
    assert launch.main(["--workers", "1", path, "--", "-m", "--", "y"]) == 0
    assert launch.main(["--workers", "1", "--", path, "x"]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said == ["[0] ['--', '-m', '--', 'y']", "[0] ['x']"]


@pytest.mark.parametrize("code", [0, 3])
def test_what_a_worker_leaves_behind_ends_with_it(tmp_path, capfd, code):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = program(
        tmp_path,
        "import os, subprocess, sys\n"
        "pipe = os.open(sys.argv[1], os.O_WRONLY)\n"
        "subprocess.Popen(['sh', '-c', 'sleep 30; echo outlived >&0'], stdin=pipe)\n"
        f"print('the last line'); sys.exit({code})\n",
    )
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    with open(reader) as file:
        assert launch.main(["--workers", "1", path, str(pipe)]) == code
        assert file.read() == ""  # until nobody can write any more
    said = ["Worker 0 failed with 3: stopping the others."] if code else []
    assert capfd.readouterr().out.splitlines() == ["[0] the last line", *said]


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit(3)", 3, "Worker 1 failed with 3: stopping the others."),
        ("os.kill(os.getpid(), 9)", 137, "Worker 1 was ended by SIGKILL: stopping the others."),
    ],
)
def test_one_that_fails_ends_all(tmp_path, capfd, end, code, said):
    path = program(
        tmp_path,
        "import json, os, signal, sys\n"
        "if json.loads(os.environ['TF_CONFIG'])['task']['index'] == 1:\n"
        f"    {end}\n"
        "signal.pause()\n",
    )
    assert launch.main(["--workers", "2", path]) == code
    assert said in capfd.readouterr().out


def test_a_signal_ends_workers_that_do_not_listen(tmp_path, monkeypatch):
    path = program(
        tmp_path,
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True)\n"
        "while True: signal.pause()\n",
    )
    command = "from keras_maml import launch; import sys; launch.PATIENCE = 0.1; launch.main()"
    launcher = subprocess.Popen(
        [sys.executable, "-c", command, "--workers", "2", path], stdout=subprocess.PIPE, text=True
    )
    overdue = threading.Timer(120, launcher.kill)
    overdue.start()
    try:
        numbers = [int(launcher.stdout.readline().split()[1]) for _ in range(2)]
        launcher.send_signal(signal.SIGTERM)
        assert "Signal SIGTERM" in launcher.stdout.read()
        launcher.wait()
    finally:
        overdue.cancel()
        launcher.kill()
    for number in numbers:
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_no_workers_are_refused(capsys):
    with pytest.raises(SystemExit):
        launch.main(["--workers", "0", "train.py"])
    assert "must be at least 1, got 0" in capsys.readouterr().err


def test_no_program_is_refused(capsys):
    with pytest.raises(SystemExit):
        launch.main(["--workers", "2", "-m"])
    assert "a program is needed" in capsys.readouterr().err
